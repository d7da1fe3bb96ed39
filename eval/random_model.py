"""Models of random weights at a named size, for timing: drawn on the device, in their shardings."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, Sharding

import r2jax
from r2jax.config import LLADA_8B
from r2jax.sharding import check_mesh, param_shardings

SIZES = {
    "llada-8b": LLADA_8B,
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
}
# Weights of 1.5 / sqrt(fan in) and a sharp head give predictions that differ from position to
# position and confidences from near 0 to near 1, so that every rule has work (the goldens' recipe).
GAIN, HEAD_GAIN = 1.5, 9.0


@functools.cache
def _normal(shape: tuple[int, ...], dtype: Any, sharding: Sharding | None) -> Any:
    def draw(key: jax.Array, scale: float) -> jax.Array:
        return (scale * jax.random.normal(key, shape, dtype)).astype(dtype)

    return jax.jit(draw, out_shardings=sharding)


def random_model(
    config: r2jax.ModelConfig, dtype: Any, seed: int = 0, mesh: Mesh | None = None
) -> r2jax.Transformer:
    """A model of random weights, each drawn on the devices in its own dtype and sharding.

    Args:
      config: sizes.
      dtype: of the parameters.
      seed: the same weights on any mesh.
      mesh: from `r2jax.make_mesh`; None: JAX's default device.

    Raises:
      ValueError: the mesh cannot hold the model (`sharding.check_mesh`).
    """
    graph, state = nnx.split(
        nnx.eval_shape(lambda: r2jax.Transformer(config, dtype=dtype, rngs=nnx.Rngs(0)))
    )
    shardings: dict[Any, Sharding] = {}
    if mesh is not None:
        check_mesh(mesh, config)
        shardings = {
            path: leaf.get_value() for path, leaf in nnx.to_flat_state(param_shardings(state, mesh))
        }
    key = jax.random.key(seed)

    def fill(path: tuple[Any, ...], param: nnx.Variable) -> nnx.Variable:
        shape, sharding = param.get_value().shape, shardings.get(path)
        if len(shape) == 1:
            return param.replace(jnp.ones(shape, dtype, device=sharding))
        gain = {"head": HEAD_GAIN, "embed": shape[-1] ** 0.5}.get(path[0], GAIN)
        nonlocal key
        key, one = jax.random.split(key)
        return param.replace(_normal(shape, dtype, sharding)(one, gain / shape[-1] ** 0.5))

    return nnx.merge(
        graph,
        nnx.from_flat_state([(path, fill(path, p)) for path, p in nnx.to_flat_state(state)]),
    )
