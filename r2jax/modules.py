"""What the transformer is made of: linear maps, norms, the embedding; parameters with logical axes.

Weights are kept in the orientation of the checkpoint, [out, in]: loading and saving never
transpose, and it is the orientation that the tensor cores' 8-bit products read.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from r2jax import narrow
from r2jax.quantize import DTYPES, Narrow, Quantization, quantized_product


class Linear(nnx.Module):
    """y = x Wᵀ (+ b), on 8-bit operands where the weight is quantised."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        axes: tuple[str, str],
        *,
        bias: bool = False,
        std: float,
        dtype: DTypeLike,
        quantize: Quantization | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        weight = std * jax.random.normal(rngs.params(), (d_out, d_in), jnp.float32)
        stored = DTYPES[quantize] if quantize else dtype
        self.dtype = np.dtype(dtype)
        self.weight = nnx.Param(weight.astype(stored), logical_axes=axes)
        ones = jnp.ones((d_out,), jnp.float32)
        self.scale = nnx.Param(ones, logical_axes=axes[:1]) if quantize else None
        self.bias = nnx.Param(jnp.zeros((d_out,), dtype), logical_axes=axes[:1]) if bias else None

    def __call__(self, x: Float[Array, "*b i"] | Narrow) -> Float[Array, "*b o"]:
        y = total(self.parts(x), self.dtype)
        return y if self.bias is None else y + self.bias[...]

    def parts(self, x: Float[Array, "*b i"] | Narrow) -> Float[Array, "P *b o"]:
        """x Wᵀ as parts to be summed: more than one where that is left to the next kernel."""
        if self.scale is None:
            return jnp.einsum("...i,oi->...o", x, self.weight[...])[None]
        weight, scale = self.weight[...], self.scale[...]
        if isinstance(x, Narrow):
            return narrow.product(x, weight, scale, self.dtype)
        return quantized_product(x, weight, scale)[None]


def total(parts: Float[Array, "P *b o"], dtype: DTypeLike) -> Float[Array, "*b o"]:
    """Their sum; a single part keeps its dtype (weights may be cast after the model is made)."""
    return parts[0] if len(parts) == 1 else jnp.sum(parts, axis=0).astype(dtype)


class RMSNorm(nnx.Module):
    """Normalise in float32, cast back, then scale in the model's dtype (LLaDA's order of casts)."""

    def __init__(self, size: int, eps: float, *, dtype: DTypeLike) -> None:
        self.weight = nnx.Param(jnp.ones((size,), dtype), logical_axes=("embed",))
        self.eps = eps

    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        x32 = x.astype(jnp.float32)
        scale = lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * scale).astype(x.dtype) * self.weight[...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def embed(
    table: Float[Array, "V D"], tokens: Int[Array, "B S"], frequent: tuple[int, ...]
) -> Float[Array, "B S D"]:
    """Rows of `table`. The gradient of the rows in `frequent` is a plain sum, not a scatter.

    About half of a masked-diffusion batch is the mask token (or padding). The gradient of a gather
    adds all those rows into one, and the additions queue up: 100 ms a step instead of 17 (design.md
    §4).
    """
    return table[tokens]


def _embed_fwd(
    table: Array, tokens: Array, frequent: tuple[int, ...]
) -> tuple[Array, tuple[Array, Array]]:
    return table[tokens], (tokens, table)


def _embed_bwd(
    frequent: tuple[int, ...], residual: tuple[Array, Array], grad: Array
) -> tuple[Array, None]:
    tokens, table = residual
    grad = grad.astype(jnp.float32)
    rest = tokens
    for token in frequent:
        rest = jnp.where(tokens == token, len(table), rest)  # out of bounds: dropped by the scatter
    out = jnp.zeros(table.shape, jnp.float32).at[rest].add(grad, mode="drop")
    for token in frequent:
        row = jnp.einsum("bs,bsd->d", (tokens == token).astype(jnp.float32), grad)
        out = out.at[token].set(row)
    return out.astype(table.dtype), None


embed.defvjp(_embed_fwd, _embed_bwd)


class Embedding(nnx.Module):
    """Token ids -> vectors."""

    def __init__(
        self,
        vocab: int,
        size: int,
        frequent: Sequence[int],
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        weight = 0.02 * jax.random.normal(rngs.params(), (vocab, size), jnp.float32)
        self.weight = nnx.Param(weight.astype(dtype), logical_axes=("vocab", "embed"))
        self.frequent = tuple(sorted(set(frequent)))

    def __call__(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        return embed(self.weight[...], tokens, self.frequent)
