"""8-bit weights: a float32 scale per output row, and activations quantised per token on the way.

The product itself runs on 8-bit operands, so a step at batch 1 reads half the bytes and a full pass
computes at the tensor cores' double rate. (Widening the weights in front of a bfloat16 product
brought 1.17x at 32 tokens on an H200, and was slower than bfloat16 at 256.) Only the
layers' projections are quantised; embedding, norms and head keep the model's dtype.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped

Quantization = Literal["fp8", "int8"]

# e4m3: a sign, 4 bits of exponent, 3 of mantissa, largest value 448.
DTYPES: dict[Quantization, np.dtype] = {
    "fp8": np.dtype(jnp.float8_e4m3fn),
    "int8": np.dtype(np.int8),
}
TOP = {DTYPES["fp8"]: 448.0, DTYPES["int8"]: 127.0}
WIDE = 512  # tokens of a pass that is bound by arithmetic
SMALLEST = 1e-30  # scale of a row of zeros


class Narrow(NamedTuple):
    """Activations in 8 bits: x = values * scale."""

    values: Shaped[Array, "*b n"]
    scale: Float[Array, "*b"]


def sums_of(dtype: DTypeLike) -> np.dtype:
    """What a product of such numbers is summed in."""
    return np.dtype(jnp.int32 if dtype == jnp.int8 else jnp.float32)


def quantize_rows(x: Float[Array, "*b n"], dtype: DTypeLike) -> Narrow:
    """`Narrow` with one float32 scale a row: its largest absolute value becomes the
    largest number of `dtype` (float8_e4m3fn or int8).

    Used for weights (a row is an output feature) and for activations (a row is a token).
    """
    dtype = np.dtype(dtype)
    x32 = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x32), axis=-1) / TOP[dtype], SMALLEST)
    narrow = x32 / scale[..., None]
    if dtype == np.int8:
        narrow = jnp.round(narrow)
    return Narrow(narrow.astype(dtype), scale)


def quantized_product(
    x: Float[Array, "*b i"], weight: Shaped[Array, "o i"], scale: Float[Array, " o"]
) -> Float[Array, "*b o"]:
    """x (weight * scale)ᵀ on 8-bit operands, in x's dtype.

    Sums are int32 for int8, float32 for fp8.
    """
    narrow, x_scale = quantize_rows(x, weight.dtype)
    # A wide fp8 product is written in bfloat16: half the bytes for what follows. XLA would widen
    # it again (it may keep excess precision), hence the barrier. A narrow one is not worth that.
    wide = narrow.size // narrow.shape[-1] >= WIDE and x.dtype == jnp.bfloat16
    wide = wide and weight.dtype != jnp.int8
    sums = jnp.int32 if weight.dtype == jnp.int8 else jnp.bfloat16 if wide else jnp.float32
    y = lax.dot_general(
        narrow,
        weight,
        (((x.ndim - 1,), (1,)), ((), ())),
        precision=lax.Precision.DEFAULT,
        preferred_element_type=sums,
    )
    y = lax.optimization_barrier(y) if wide else y
    return (y.astype(jnp.float32) * x_scale[..., None] * scale).astype(x.dtype)
