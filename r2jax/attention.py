"""Bidirectional attention over a row's columns, with rotary positions and the cache.

What runs depends on the pass, by measurement on an H200 at LLaDA-8B's sizes in bfloat16:
  a full pass or training      cuDNN's fused attention (refresh 28.5 ms instead of 33.5)
  a block of up to 64 tokens   our kernel (kernels.py), where XLA takes seven
  everything else              XLA: float32, other devices, odd shapes
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float, Int

from r2jax import kernels
from r2jax.cache import LayerCache
from r2jax.sharding import batch_axes

WIDE = 128  # tokens of a pass from which cuDNN's kernel beats XLA's


def on_nvidia() -> bool:
    """Whether this process computes on NVIDIA GPUs that run cuDNN's fused attention (compute
    capability 8.0 and above; an AMD GPU's has letters)."""
    device = kernels.default_device()
    if getattr(device, "platform", device) != "gpu":
        return False
    major = str(getattr(device, "compute_capability", "")).split(".")[0]
    return major.isdecimal() and int(major) >= 8


def rotary(
    positions: Int[Array, "B S"], head_dim: int, theta: float, dtype: Any = jnp.float32
) -> tuple[Float[Array, "B S h"], Float[Array, "B S h"]]:
    """cos and sin of the half-split rotary embedding, one pair for all layers and heads.

    Args:
      positions: of the columns.
      head_dim, theta: as in `ModelConfig`.
      dtype: that `rotate` is to compute in; the angles are float32 in any case.
    """
    frequency = theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions[..., None].astype(jnp.float32) * frequency
    angle = jnp.concatenate([angle, angle], axis=-1)
    cos, sin = (_rounded(f(angle), dtype).astype(dtype) for f in (jnp.cos, jnp.sin))
    return cos, sin


def rotate(
    x: Float[Array, "B S N h"], cos: Float[Array, "B S h"], sin: Float[Array, "B S h"]
) -> Float[Array, "B S N h"]:
    """Rotate in the dtype of cos and sin: float32, then one cast back (LLaDA's
    rope_full_precision), or the model's, where every product is rounded (Dream)."""
    x32, cos32, sin32 = (y.astype(jnp.float32) for y in (x, cos[:, :, None], sin[:, :, None]))
    a, b = jnp.split(x32, 2, axis=-1)
    turned = jnp.concatenate([-b, a], axis=-1)
    y = _rounded(x32 * cos32, cos.dtype) + _rounded(turned * sin32, cos.dtype)
    return y.astype(x.dtype)


def _rounded(x: Float[Array, "*s"], dtype: Any) -> Float[Array, "*s"]:
    """float32 numbers that `dtype` has. XLA is free to drop a cast there and back, but not this."""
    if dtype == jnp.float32:
        return x
    info = jnp.finfo(dtype)
    return lax.reduce_precision(x, info.nexp, info.nmant)


def attention(
    q: Float[Array, "B S N h"],
    k: Float[Array, "B T K h"],
    v: Float[Array, "B T K h"],
    key_lengths: Int[Array, " B"] | None,
) -> Float[Array, "B S N h"]:
    """softmax(q kᵀ / √h) v over the first `key_lengths` keys of each row (None: all).

    Grouped queries (N a multiple of K) share consecutive key heads. Padded keys stand at the end,
    so a length says all there is to mask; fused kernels take it too.
    """
    fused = q.shape[1] >= WIDE and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    fused = fused and q.dtype != jnp.float32 and on_nvidia()
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=key_lengths, implementation="cudnn" if fused else "xla"
    )


def attend(
    qkv: Float[Array, "B S K G h"],
    rope: tuple[Float[Array, "B S h"], Float[Array, "B S h"]],
    key_lengths: Int[Array, " B"] | None,
    cache: LayerCache | None,
    start: Int[Array, ""] | int,
    keep: Int[Array, ""] | int,
    mesh: Mesh | None,
) -> tuple[Float[Array, "B S N h"], LayerCache]:
    """Rotary embedding, cache and attention of one layer.

    Args:
      qkv: by key head: its queries, then its key and its value.
      rope: cos and sin of the columns fed.
      key_lengths, cache, start, keep: as in `Transformer.hidden`.
      mesh: that the model is sharded on.

    Returns:
      The heads' outputs, and the keys and values of all columns.
    """
    batch, length, _, _, h = qkv.shape
    if (
        cache is not None
        and key_lengths is not None
        and _is_zero(keep)
        and kernels.fits_attention(length, h, qkv.dtype)
        and kernels.available()
    ):
        rows, heads = batch_axes(mesh, batch), "tensor"
        by_row, by_head = PartitionSpec(rows), PartitionSpec(rows, None, heads)
        run = on_shards(
            kernels.block_attention,
            mesh,
            (by_head, by_row, by_row, by_head, by_head, PartitionSpec(), by_row),
            (by_head, by_head, by_head),
        )
        y, k, v = run(qkv, *rope, cache.k, cache.v, jnp.asarray(start), key_lengths)
        return y, LayerCache(k, v)
    q = rotate(qkv[:, :, :, :-2].reshape(batch, length, -1, h), *rope)
    fresh = LayerCache(rotate(qkv[:, :, :, -2], *rope), qkv[:, :, :, -1])
    cache = fresh if cache is None else _overwrite(cache, fresh, start, keep)
    return attention(q, cache.k, cache.v, key_lengths), cache


def on_shards(run: Any, mesh: Mesh | None, inputs: Any, outputs: Any) -> Any:
    """`run` on each device's part: a kernel of ours is opaque to the partitioner, which would
    gather its operands."""
    if mesh is None:
        return run
    return jax.shard_map(run, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def _is_zero(keep: Array | int) -> bool:
    return isinstance(keep, int) and keep == 0


def _overwrite(
    cache: LayerCache, fresh: LayerCache, start: Array | int, keep: Array | int
) -> LayerCache:
    """Write `fresh` at column `start`, leaving its first `keep` columns as they were."""

    def write(old: Array, new: Array) -> Array:
        if not _is_zero(keep):
            kept = lax.dynamic_slice_in_dim(old, start, new.shape[1], axis=1)
            column = jnp.arange(new.shape[1])[None, :, None, None]
            new = jnp.where(column < keep, kept, new)
        return lax.dynamic_update_slice_in_dim(old, new, start, axis=1)

    return LayerCache(write(cache.k, fresh.k), write(cache.v, fresh.v))
