"""Where our kernels for NVIDIA GPUs apply, and attention's: narrow passes, in Pallas for Triton.

A block step at batch 1 reads all weights for 32 tokens, so memory bandwidth bounds it and whatever
runs between two reads of weights is lost time. XLA leaves gaps worth closing: attention with its
rotary embedding and cache writes takes seven kernels there, 25 µs a layer of LLaDA-8B on an H200.
narrow.py has the others.

`available` and the `fits` functions say where they apply; everywhere else XLA runs the same
mathematics.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jaxtyping import Float, Int

try:
    from jax.experimental.pallas import triton

    plt: Any = triton
except ImportError:  # JAX has announced to drop this backend: then XLA runs everything
    plt = None

# Best of seven tried on an H200, as are the warps and the steps in flight.
KEYS = 64  # that a program of the attention kernel takes at a time
PROGRAMS = 128  # of it at batch 1: about one a multiprocessor
NARROW = (16, 32, 64)  # tokens that the tensor cores' narrow side takes, a power of two
_FAR = -1e30  # below every score; finite, so that a program without a single valid key is harmless


def default_device() -> Any:
    """Where this process computes: a device, or a platform's name (`jax.default_device`)."""
    chosen: Any = getattr(jax.config, "jax_default_device", None)
    return chosen or jax.devices()[0]


def available() -> bool:
    """Whether this process computes on GPUs that the kernels were tuned for and tried on: compute
    capability 9.0 (H100, H200). Others may lack the shared memory that the tiles need."""
    return plt is not None and getattr(default_device(), "compute_capability", None) == "9.0"


def fits_attention(length: int, head_dim: int, dtype: Any) -> bool:
    """Whether `block_attention` takes blocks of `length` tokens."""
    return length in NARROW and head_dim in (64, 128) and dtype in (jnp.bfloat16, jnp.float16)


def block_attention(
    qkv: Float[Array, "B S K G h"],
    cos: Float[Array, "B S h"],
    sin: Float[Array, "B S h"],
    k_cache: Float[Array, "B T K h"],
    v_cache: Float[Array, "B T K h"],
    start: Int[Array, ""],
    key_lengths: Int[Array, " B"],
) -> tuple[Float[Array, "B S N h"], Float[Array, "B T K h"], Float[Array, "B T K h"]]:
    """Write the block's keys and values into the cache at column `start`, and attend.

    At small batches a head's keys are cut into pieces, one program each, and the pieces' softmaxes
    are put together at the end. The block's own keys are a piece of their own. Queries that share
    keys have a program each: they read the same keys, but from the chip's cache (2.2 MB a layer of
    Dream-7B's at 1056 columns), and there are too few key heads to fill the chip.

    Args:
      qkv: by key head: its queries, then its key and its value.
      cos, sin: as `attention.rotate` takes them.
      k_cache, v_cache: updated in place.
      start: first column of the block.
      key_lengths: columns of each row that are attended to.

    Returns:
      The heads' outputs and the two caches.
    """
    batch, length, kv_heads, group, h = qkv.shape
    queries = group - 2  # that share a key
    heads = kv_heads * queries
    columns = k_cache.shape[1]
    pieces = max(1, PROGRAMS // (batch * heads))
    # A static number of steps is what the compiler overlaps; columns beyond the end are masked.
    steps = -(-columns // (KEYS * pieces))
    half = h // 2
    to_log2 = h**-0.5 * 1.4426950408889634  # scores in powers of two: exp2 is what the chip has

    def kernel(
        qkv: Any,
        cos: Any,
        sin: Any,
        start: Any,
        key_lengths: Any,
        k_in: Any,
        v_in: Any,
        out: Any,
        top: Any,
        mass: Any,
        k_out: Any,
        v_out: Any,
    ) -> None:
        row, head, piece = pl.program_id(0), pl.program_id(1), pl.program_id(2)
        kv_head, query = lax.div(head, queries), lax.rem(head, queries)
        first = start[0]
        halves = pl.ds(0, half), pl.ds(half, half)

        def rotated(part: Any) -> tuple[Array, Array]:
            """The halves of a query or a key, turned as `attention.rotate` does."""
            a, b = (qkv[row, :, kv_head, part, d].astype(jnp.float32) for d in halves)
            c, s = (y[row, :, halves[0]].astype(jnp.float32) for y in (cos, sin))

            def sum_of(x: Array, y: Array) -> Array:
                x, y = (z.astype(cos.dtype).astype(jnp.float32) for z in (x, y))
                return (x + y).astype(qkv.dtype)

            return sum_of(a * c, -b * s), sum_of(b * c, a * s)

        q = rotated(query)

        def scores(k: tuple[Array, Array]) -> Array:
            first, second = (
                jnp.dot(a, b.T, preferred_element_type=jnp.float32)
                for a, b in zip(q, k, strict=True)
            )
            return (first + second) * to_log2

        def weighted(p: Array, v: Array) -> Array:
            return jnp.dot(p.astype(v.dtype), v, preferred_element_type=jnp.float32)

        def write(y: Array, best: Array, total: Array) -> None:
            out[piece, row, :, head, :] = y
            top[piece, row, :, head] = best
            mass[piece, row, :, head] = total

        @pl.when(piece == pieces)
        def own() -> None:
            k, v = rotated(queries), qkv[row, :, kv_head, queries + 1, :]

            @pl.when(query == 0)
            def keep() -> None:
                for d, part in zip(halves, k, strict=True):
                    k_out[row, pl.ds(first, length), kv_head, d] = part
                v_out[row, pl.ds(first, length), kv_head, :] = v

            z = scores(k)
            best = jnp.max(z, axis=1)
            p = jnp.exp2(z - best[:, None])
            write(weighted(p, v), best, jnp.sum(p, axis=1))

        @pl.when(piece < pieces)
        def cached() -> None:
            def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                y, best, total = carry
                begin = (piece * steps + i) * KEYS
                column = begin + jnp.arange(KEYS)
                inside = (column < columns)[:, None]
                at = row, pl.ds(begin, KEYS), kv_head
                first_half, second_half = (
                    plt.load(k_in.at[*at, d], mask=inside, other=0.0) for d in halves
                )
                k = first_half, second_half
                v = plt.load(v_in.at[*at, slice(None)], mask=inside, other=0.0)
                own = (column >= first) & (column < first + length)
                valid = (column < key_lengths[row]) & ~own
                z = jnp.where(valid[None], scores(k), _FAR)
                new = jnp.maximum(best, jnp.max(z, axis=1))
                p, shrink = jnp.exp2(z - new[:, None]), jnp.exp2(best - new)
                total = total * shrink + jnp.sum(p, axis=1)
                return y * shrink[:, None] + weighted(p, v), new, total

            zero = jnp.zeros((length,), jnp.float32)
            carry = (jnp.zeros((length, h), jnp.float32), zero + _FAR, zero)
            write(*lax.fori_loop(0, steps, step, carry))

    shape = (pieces + 1, batch, length, heads)
    caches = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k_cache, v_cache)]
    out, top, mass, k_cache, v_cache = pl.pallas_call(
        kernel,
        out_shape=(
            jax.ShapeDtypeStruct((*shape, h), jnp.float32),
            jax.ShapeDtypeStruct(shape, jnp.float32),
            jax.ShapeDtypeStruct(shape, jnp.float32),
            *caches,
        ),
        grid=(batch, heads, pieces + 1),
        input_output_aliases={5: 3, 6: 4},
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=3),
        name="block_attention",
    )(qkv, cos, sin, start[None], key_lengths, k_cache, v_cache)
    # Piece by piece, so that it is all elementwise and XLA makes one kernel of it.
    every = range(pieces + 1)
    best = functools.reduce(jnp.maximum, [top[i] for i in every])
    weights = [jnp.exp2(top[i] - best) for i in every]
    total = functools.reduce(jnp.add, [weights[i] * mass[i] for i in every])
    y = functools.reduce(jnp.add, [out[i] * weights[i][..., None] for i in every])
    y = y / total[..., None]
    return y.astype(qkv.dtype), k_cache, v_cache
