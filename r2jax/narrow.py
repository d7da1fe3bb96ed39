"""Kernels for a layer's products, and for what lies between those on 8-bit weights.

For narrow passes on NVIDIA GPUs, in Pallas for Triton. A block step at batch 1 reads all weights
for 32 tokens, and whatever runs between two reads is lost time: gate and up are one kernel with
what joins them (XLA writes both products to memory: 64 µs a layer of LLaDA-8B on an H200 instead of
55). With 8-bit weights activations go from kernel to kernel in 8 bits (`Narrow`), and a residual
sum, the norm behind it and its rounding are one kernel: 100 µs a layer on int8, 130 without.

`kernels.available` and the `fits` functions say where they apply; everywhere else XLA runs the same
mathematics.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped

from r2jax.kernels import NARROW, PROGRAMS, plt
from r2jax.quantize import SMALLEST, TOP, Narrow, sums_of

# What a program takes of each weight per step, best of six tried on an H200 for 16-bit weights,
# of five for 8-bit ones. (On weights widened to 16 bits in front of the tensor cores the gated MLP
# took 48 µs at best, on 8-bit activations 29; with a scale for every 64 or 128 features of a token
# a layer took 193 and 130 µs, since the sums then leave the tensor cores at every step.)
ROWS, COLUMNS = 128, 64
NARROW_ROWS, NARROW_COLUMNS = 64, 128
NARROW_STAGES = 4  # steps in flight
MOST_CHUNKS = 40  # of a token's features, held in registers at once


def fits_products(x: Array, weights: Sequence[Array]) -> bool:
    """Whether a layer's pass of activations [B, S, D] runs in 8 bits from kernel to kernel.

    Args:
      x: activations [B, S, D].
      weights: of its products, 8-bit, [O, I] each.
    """
    return (
        x.shape[0] * x.shape[1] in NARROW
        and x.dtype in (jnp.bfloat16, jnp.float16)
        and all(
            rows % (2 * NARROW_ROWS) == 0
            and columns % NARROW_COLUMNS == 0
            and columns // _chunk(columns) <= MOST_CHUNKS
            for rows, columns in (w.shape for w in weights)
        )
    )


def fits_mlp(x: Array, weight: Array, mesh: Mesh | None) -> bool:
    """Whether `gated_mlp` takes activations [B, S, D] and fused 16-bit weights [2 F, D], by
    device."""
    rows, tensor = 1, 1
    if mesh is not None:
        rows, tensor = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["tensor"]
    batch = x.shape[0] // rows if x.shape[0] % rows == 0 else x.shape[0]
    return (
        batch * x.shape[1] in NARROW
        and weight.dtype in (jnp.bfloat16, jnp.float16)
        and weight.shape[0] % (2 * ROWS * tensor) == 0
        and weight.shape[1] % COLUMNS == 0
    )


def _chunk(features: int) -> int:
    """Features taken at a time: a power of two that divides them."""
    return features & -features


def _rounded(chunks: Sequence[Array], dtype: DTypeLike) -> tuple[list[Array], Array]:
    """Inside a kernel: a token's float32 features in 8 bits, as `quantize_rows` does, but
    that a half goes up and not to even."""
    top = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(y)) for y in chunks])
    scale = jnp.maximum(top / TOP[np.dtype(dtype)], SMALLEST)
    values = [y / scale for y in chunks]
    if dtype == jnp.int8:
        values = [jnp.floor(y + 0.5) for y in values]
    return [y.astype(dtype) for y in values], scale


def residual_norm(
    x: Float[Array, "B S D"],
    branch: Float[Array, "P B S D"],
    weight: Float[Array, " D"],
    eps: float,
    dtype: DTypeLike,
) -> tuple[Float[Array, "B S D"], Narrow]:
    """x + the sum of the branch's parts, and its RMS norm in 8 bits; rounded on the way where the
    plain layer rounds.

    Args:
      x: the residual stream.
      branch: parts of what is added to it.
      weight, eps: the norm's.
      dtype: int8 or float8_e4m3fn.
    """
    features = x.shape[-1]
    tokens, size = x.size // features, _chunk(features)
    count = features // size
    shape = (tokens, count, size)

    def kernel(x: Any, parts: Any, weight: Any, total: Any, values: Any, scale: Any) -> None:
        token = pl.program_id(0)
        chunks = []
        for i in range(count):
            y = parts[0, token, i, :].astype(jnp.float32)
            for part in range(1, parts.shape[0]):
                y += parts[part, token, i, :].astype(jnp.float32)
            y = y.astype(x.dtype).astype(jnp.float32)
            y = (x[token, i, :].astype(jnp.float32) + y).astype(x.dtype)
            total[token, i, :] = y
            chunks.append(y.astype(jnp.float32))
        square = functools.reduce(jnp.add, [jnp.sum(y * y) for y in chunks]) / features
        shrink = lax.rsqrt(square + eps)
        for i, y in enumerate(chunks):
            y = (y * shrink).astype(x.dtype).astype(jnp.float32) * weight[i, :].astype(jnp.float32)
            chunks[i] = y.astype(x.dtype).astype(jnp.float32)
        chunks, scale[token] = _rounded(chunks, dtype)
        for i, y in enumerate(chunks):
            values[token, i, :] = y

    total, values, scale = pl.pallas_call(
        kernel,
        out_shape=(
            jax.ShapeDtypeStruct(shape, x.dtype),
            jax.ShapeDtypeStruct(shape, dtype),
            jax.ShapeDtypeStruct((tokens,), jnp.float32),
        ),
        grid=(tokens,),
        compiler_params=plt.CompilerParams(num_warps=8, num_stages=1),
        name="residual_norm",
    )(x.reshape(shape), branch.reshape(-1, *shape), weight.reshape(count, size))
    narrow = Narrow(values.reshape(x.shape), scale.reshape(x.shape[:-1]))
    return total.reshape(x.shape), narrow


def quantize_tokens(x: Float[Array, "B S D"], dtype: DTypeLike) -> Narrow:
    """`quantize_rows` in one kernel."""
    features = x.shape[-1]
    tokens, size = x.size // features, _chunk(features)
    shape = (tokens, features // size, size)

    def kernel(x: Any, values: Any, scale: Any) -> None:
        token = pl.program_id(0)
        chunks = [x[token, i, :].astype(jnp.float32) for i in range(shape[1])]
        chunks, scale[token] = _rounded(chunks, dtype)
        for i, y in enumerate(chunks):
            values[token, i, :] = y

    values, scale = pl.pallas_call(
        kernel,
        out_shape=(
            jax.ShapeDtypeStruct(shape, dtype),
            jax.ShapeDtypeStruct((tokens,), jnp.float32),
        ),
        grid=(tokens,),
        compiler_params=plt.CompilerParams(num_warps=8, num_stages=1),
        name="quantize_tokens",
    )(x.reshape(shape))
    return Narrow(values.reshape(x.shape), scale.reshape(x.shape[:-1]))


def product(
    x: Narrow, weight: Shaped[Array, "O I"], scale: Float[Array, " O"], dtype: DTypeLike
) -> Float[Array, "P B S O"]:
    """x (weight * scale)ᵀ on 8-bit operands, as parts to be summed: one in `dtype` where the rows
    alone fill the chip, else several in float32, each over a stretch of the features.

    Products run transposed, [O, M] = W xᵀ: the weights fill the tensor cores' rows and the tokens
    are the narrow side.
    """
    features, lead = x.values.shape[-1], x.values.shape[:-1]
    rows, tokens = weight.shape[0], x.scale.size
    parts = _parts(rows, features)
    steps = features // NARROW_COLUMNS // parts

    def kernel(x: Any, x_scale: Any, w: Any, scale: Any, out: Any) -> None:
        at = pl.ds(pl.program_id(0) * NARROW_ROWS, NARROW_ROWS)
        part = pl.program_id(1)

        def step(i: Array, total: Array) -> Array:
            columns = pl.ds((part * steps + i) * NARROW_COLUMNS, NARROW_COLUMNS)
            return total + jnp.dot(
                w[at, columns], x[:, columns].T, preferred_element_type=total.dtype
            )

        total = lax.fori_loop(0, steps, step, jnp.zeros((NARROW_ROWS, tokens), sums_of(w.dtype)))
        total = total.astype(jnp.float32) * x_scale[:][None] * scale[at][:, None]
        out[part, :, at] = total.T.astype(out.dtype)

    y = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((parts, tokens, rows), dtype if parts == 1 else jnp.float32),
        grid=(rows // NARROW_ROWS, parts),
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=NARROW_STAGES),
        name="product",
    )(x.values.reshape(tokens, features), x.scale.reshape(tokens), weight, scale)
    return y.reshape(parts, *lead, rows)


def _parts(rows: int, features: int) -> int:
    """Stretches that the features are cut into, for more programs than multiprocessors."""
    programs, steps = rows // NARROW_ROWS, features // NARROW_COLUMNS
    return next((n for n in (1, 2, 4) if programs * n > PROGRAMS and steps % n == 0), 1)


def gated_mlp(
    y: Float[Array, "B S D"] | Narrow,
    gate_up: Shaped[Array, "F 2 D"],
    scale: Float[Array, "F 2"] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "B S F"]:
    """silu(x Gᵀ) * x Uᵀ without writing either product to memory; transposed as `product`.

    Args:
      y: the few tokens of a block, in 8 bits where the weights are.
      gate_up: G and U, row by row.
      scale: of 8-bit weights.
      dtype: of the result then.
    """
    features, size = gate_up.shape[0], gate_up.shape[-1]
    if isinstance(y, Narrow):
        x, scales = y.values, (y.scale.reshape(-1), scale)
        rows, columns, warps, stages = NARROW_ROWS, NARROW_COLUMNS, 4, NARROW_STAGES
    else:
        x, scales = y, ()
        dtype, rows, columns, warps = y.dtype, ROWS, COLUMNS, 8
        # Beyond one program a multiprocessor, fewer steps in flight: 108 KB of shared memory, so
        # that two fit on one and all run at once (148 of Dream-7B's on 132, not 16 afterwards).
        stages = 4 if features // rows <= PROGRAMS else 3
    tokens = x.size // size

    def kernel(x: Any, w: Any, *more: Any) -> None:
        *scales, out = more
        at = pl.ds(pl.program_id(0) * rows, rows)

        def step(i: Array, totals: tuple[Array, Array]) -> tuple[Array, Array]:
            part = pl.ds(i * columns, columns)
            xt = x[:, part].T
            gate = jnp.dot(w[at, 0, part], xt, preferred_element_type=totals[0].dtype)
            up = jnp.dot(w[at, 1, part], xt, preferred_element_type=totals[1].dtype)
            return totals[0] + gate, totals[1] + up

        zero = jnp.zeros((rows, tokens), sums_of(w.dtype))
        both = lax.fori_loop(0, size // columns, step, (zero, zero))
        if scales:
            token, feature = scales
            both = (
                total.astype(jnp.float32) * token[:][None] * feature[at, i][:, None]
                for i, total in enumerate(both)
            )
        # Rounded where the plain layer rounds: each projection, the activation, the product.
        gate, up = (total.astype(dtype).astype(jnp.float32) for total in both)
        gate = (gate / (1.0 + jnp.exp(-gate))).astype(dtype).astype(jnp.float32)
        out[:, at] = (gate * up).T.astype(dtype)

    out = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((tokens, features), dtype),
        grid=(features // rows,),
        compiler_params=plt.CompilerParams(num_warps=warps, num_stages=stages),
        name="gated_mlp",
    )(x.reshape(tokens, size), gate_up, *scales)
    return out.reshape(*x.shape[:-1], features)
