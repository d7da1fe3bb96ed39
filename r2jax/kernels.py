"""Two kernels for narrow passes (a block of a few rows) on NVIDIA GPUs, in Pallas for Triton.

A block step at batch 1 reads all weights for 32 tokens, so memory bandwidth bounds it and whatever
runs between two reads of weights is lost time. XLA leaves two such gaps worth closing, measured on
an H200 at LLaDA-8B's sizes: attention with its rotary embedding and cache writes takes seven
kernels, 25 µs a layer; the gated MLP writes both projections' partial sums to memory before it
multiplies them, 64 µs a layer instead of 55.

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
from jax.sharding import Mesh
from jaxtyping import Float, Int

try:
    from jax.experimental.pallas import triton

    plt: Any = triton
except ImportError:  # JAX has announced to drop this backend: then XLA runs everything
    plt = None

# Best of seven tried on an H200, as are the warps and the steps in flight of both kernels.
KEYS = 64  # that a program of the attention kernel takes at a time
PROGRAMS = 128  # of it at batch 1: about one a multiprocessor
ROWS, COLUMNS = 128, 64  # of each weight, a program of the MLP kernel per step: best of six tried
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


def fits_mlp(x_shape: tuple[int, ...], weight: Array, mesh: Mesh | None) -> bool:
    """Whether `gated_mlp` takes activations [B, S, D] and fused weights [2 F, D], by device."""
    rows, tensor = 1, 1
    if mesh is not None:
        rows, tensor = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["tensor"]
    batch = x_shape[0] // rows if x_shape[0] % rows == 0 else x_shape[0]
    return (
        batch * x_shape[1] in NARROW
        and weight.dtype in (jnp.bfloat16, jnp.float16)
        and weight.shape[0] % (2 * ROWS * tensor) == 0
        and weight.shape[1] % COLUMNS == 0
    )


def block_attention(
    qkv: Float[Array, "B S K G h"],
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
      qkv: by key head: its queries, then its key and its value; all rotated.
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
    to_log2 = h**-0.5 * 1.4426950408889634  # scores in powers of two: exp2 is what the chip has

    def kernel(
        qkv: Any,
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
        q = qkv[row, :, kv_head, query, :]

        def scores(k: Array) -> Array:
            return jnp.dot(q, k.T, preferred_element_type=jnp.float32) * to_log2

        def weighted(p: Array, v: Array) -> Array:
            return jnp.dot(p.astype(v.dtype), v, preferred_element_type=jnp.float32)

        def write(y: Array, best: Array, total: Array) -> None:
            out[piece, row, :, head, :] = y
            top[piece, row, :, head] = best
            mass[piece, row, :, head] = total

        @pl.when(piece == pieces)
        def own() -> None:
            k, v = qkv[row, :, kv_head, queries, :], qkv[row, :, kv_head, queries + 1, :]

            @pl.when(query == 0)
            def keep() -> None:
                k_out[row, pl.ds(first, length), kv_head, :] = k
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
                at = row, pl.ds(begin, KEYS), kv_head, slice(None)
                k = plt.load(k_in.at[at], mask=inside, other=0.0)
                v = plt.load(v_in.at[at], mask=inside, other=0.0)
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
        input_output_aliases={3: 3, 4: 4},
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=3),
        name="block_attention",
    )(qkv, start[None], key_lengths, k_cache, v_cache)
    # Piece by piece, so that it is all elementwise and XLA makes one kernel of it.
    every = range(pieces + 1)
    best = functools.reduce(jnp.maximum, [top[i] for i in every])
    weights = [jnp.exp2(top[i] - best) for i in every]
    total = functools.reduce(jnp.add, [weights[i] * mass[i] for i in every])
    y = functools.reduce(jnp.add, [out[i] * weights[i][..., None] for i in every])
    y = y / total[..., None]
    return y.astype(qkv.dtype), k_cache, v_cache


def gated_mlp(
    y: Float[Array, "B S D"],
    gate_up: Float[Array, "F 2 D"],
) -> Float[Array, "B S F"]:
    """silu(x Gᵀ) * x Uᵀ without writing either product to memory.

    Products run transposed, [F, M] = W xᵀ: the weights fill the tensor cores' rows and the tokens
    are the narrow side.

    Args:
      y: the few tokens of a block.
      gate_up: G and U, row by row.
    """
    x = y.reshape(-1, y.shape[-1])
    tokens, size = x.shape
    features = gate_up.shape[0]
    # Beyond one program a multiprocessor, fewer steps in flight: 108 KB of shared memory, so that
    # two fit on one and all run at once (148 of Dream-7B's on 132, not 16 of them afterwards).
    stages = 4 if features // ROWS <= PROGRAMS else 3

    def kernel(x: Any, w: Any, out: Any) -> None:
        rows = pl.ds(pl.program_id(0) * ROWS, ROWS)

        def step(i: Array, totals: tuple[Array, Array]) -> tuple[Array, Array]:
            part = pl.ds(i * COLUMNS, COLUMNS)
            xt = x[:, part].T
            gate = jnp.dot(w[rows, 0, part], xt, preferred_element_type=jnp.float32)
            up = jnp.dot(w[rows, 1, part], xt, preferred_element_type=jnp.float32)
            return totals[0] + gate, totals[1] + up

        zero = jnp.zeros((ROWS, tokens), jnp.float32)
        gate, up = lax.fori_loop(0, size // COLUMNS, step, (zero, zero))
        # Rounded where the plain layer rounds: each projection, the activation, the product.
        gate, up = (y.astype(out.dtype).astype(jnp.float32) for y in (gate, up))
        gate = (gate / (1.0 + jnp.exp(-gate))).astype(out.dtype).astype(jnp.float32)
        out[:, rows] = (gate * up).T.astype(out.dtype)

    out = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((tokens, features), x.dtype),
        grid=(features // ROWS,),
        compiler_params=plt.CompilerParams(num_warps=8, num_stages=stages),
        name="gated_mlp",
    )(x, gate_up)
    return out.reshape(*y.shape[:2], features)
