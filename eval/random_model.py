"""Models of random weights at a named size, for timing: drawn on the device, in their shardings."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

import r2jax
from r2jax.checkpoint import parameter_shapes
from r2jax.config import DREAM_7B, LLADA_8B
from r2jax.quantize import Quantization
from r2jax.sharding import check_mesh
from r2jax.weights import assemble

SIZES = {
    "llada-8b": LLADA_8B,
    "dream-7b": DREAM_7B,
    "tiny": r2jax.ModelConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=192,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        max_sequence_length=4096,
        rope_theta=500000.0,
        rms_norm_eps=1e-5,
        mask_id=511,
        eos_id=0,
        pad_id=0,
    ),
    "tiny-dream": dataclasses.replace(
        DREAM_7B,
        vocab_size=512,
        hidden_size=64,
        intermediate_size=192,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_sequence_length=4096,
        mask_id=511,
        eos_id=0,
        pad_id=0,
    ),
}
# Weights of 1.5 / sqrt(fan in) and a sharp head give predictions that differ from position to
# position and confidences from near 0 to near 1, so that every rule has work (the goldens' recipe).
GAIN, HEAD_GAIN, BIAS = 1.5, 9.0, 0.5


@functools.cache
def _draw(shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding | None) -> Any:
    def draw(key: jax.Array, scale: float) -> jax.Array:
        return (scale * jax.random.normal(key, shape, dtype)).astype(dtype)

    return jax.jit(draw, out_shardings=sharding)


def random_model(
    config: r2jax.ModelConfig,
    dtype: Any,
    seed: int = 0,
    mesh: Mesh | None = None,
    *,
    quantize: Quantization | None = None,
    head_gain: float = HEAD_GAIN,
    fused: bool | None = None,
) -> r2jax.Transformer:
    """A model of random weights, each drawn on the devices in its own sharding.

    Args:
      config: sizes.
      dtype: of the parameters that are not quantised.
      seed: the same weights on any mesh, fused or not; quantised ones are these, narrowed.
      mesh: from `r2jax.make_mesh`; None: JAX's default device.
      quantize: as for `r2jax.load`.
      head_gain: sharpness of the predictions; a lower one decodes fewer tokens a forward.
      fused: as for `r2jax.load`.

    Raises:
      ValueError: the mesh cannot hold the model (`sharding.check_mesh`).
    """
    if mesh is not None:
        check_mesh(mesh, config)
    shapes = parameter_shapes(config)
    keys = dict(zip(shapes, jax.random.split(jax.random.key(seed), len(shapes)), strict=True))

    def read(name: str, dtype: np.dtype, sharding: Sharding | None) -> jax.Array:
        shape = shapes[name]
        if name.endswith(".bias"):
            return _draw(shape, dtype, sharding)(keys[name], BIAS)
        if len(shape) == 1:
            return jnp.ones(shape, dtype, device=sharding)
        part = name.partition(".")[0]
        gain = {"head": head_gain, "embed": shape[-1] ** 0.5}.get(part, GAIN)
        return _draw(shape, dtype, sharding)(keys[name], gain / shape[-1] ** 0.5)

    return assemble(config, read, dtype=dtype, fused=fused, quantize=quantize, mesh=mesh)
