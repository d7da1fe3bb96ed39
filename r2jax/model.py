"""The transformer of LLaDA (and, as another configuration, of Dream): bidirectional, pre-norm,
rotary.

Legend of the shapes:
  B  rows (batch)                S  columns fed            T  columns attended to
  D  hidden size                 F  MLP's inner size       V  vocabulary
  N  query heads                 K  key/value heads        h  size of a head

Weights are kept in the orientation of the checkpoint, [out, in]: loading and saving never
transpose, and it is the orientation that the tensor cores' 8-bit products read.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from r2jax.attention import Kernel, attention
from r2jax.cache import Cache, LayerCache
from r2jax.config import ModelConfig


def precision_of(dtype: jnp.dtype) -> str:
    """float32 means float32: a GPU's default may be TF32, a TPU's bfloat16."""
    return "highest" if dtype == jnp.float32 else "default"


class Linear(nnx.Module):
    """y = x Wᵀ (+ b)."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        axes: tuple[str, str],
        *,
        bias: bool = False,
        std: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        weight = std * jax.random.normal(rngs.params(), (d_out, d_in), jnp.float32)
        self.weight = nnx.Param(weight.astype(dtype), logical_axes=axes)
        self.bias = nnx.Param(jnp.zeros((d_out,), dtype), logical_axes=axes[:1]) if bias else None

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        y = jnp.einsum("...i,oi->...o", x, self.weight[...])
        return y if self.bias is None else y + self.bias[...]


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


def rotary(
    positions: Int[Array, "B S"], head_dim: int, theta: float
) -> tuple[Float[Array, "B S 1 h"], Float[Array, "B S 1 h"]]:
    """cos and sin of the half-split rotary embedding, float32, one pair for all layers and
    heads."""
    frequency = theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    angle = jnp.concatenate([angle, angle], axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(
    x: Float[Array, "B S N h"],
    cos: Float[Array, "B S 1 h"],
    sin: Float[Array, "B S 1 h"],
) -> Float[Array, "B S N h"]:
    """Rotate in float32 and cast back (LLaDA's rope_full_precision)."""
    x32 = x.astype(jnp.float32)
    a, b = jnp.split(x32, 2, axis=-1)
    return (x32 * cos + jnp.concatenate([-b, a], axis=-1) * sin).astype(x.dtype)


class Layer(nnx.Module):
    """x + Attention(RMSNorm(x)), then x + MLP(RMSNorm(x)) with a SiLU-gated MLP."""

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        d, f, h = config.hidden_size, config.intermediate_size, config.head_dim
        n, k = config.num_heads * h, config.num_kv_heads * h
        make = functools.partial(Linear, dtype=dtype, rngs=rngs)
        # Each residual branch starts small, so that depth does not blow up the sum (GPT-2's
        # scaling).
        branch = 0.02 / (2 * config.num_layers) ** 0.5
        bias = config.qkv_bias
        self.attn_norm = RMSNorm(d, config.rms_norm_eps, dtype=dtype)
        self.q_proj = make(d, n, ("heads", "embed"), bias=bias, std=0.02)
        self.k_proj = make(d, k, ("kv_heads", "embed"), bias=bias, std=0.02)
        self.v_proj = make(d, k, ("kv_heads", "embed"), bias=bias, std=0.02)
        self.o_proj = make(n, d, ("embed", "heads"), std=branch)
        self.mlp_norm = RMSNorm(d, config.rms_norm_eps, dtype=dtype)
        self.gate_proj = make(d, f, ("mlp", "embed"), std=0.02)
        self.up_proj = make(d, f, ("mlp", "embed"), std=0.02)
        self.down_proj = make(f, d, ("embed", "mlp"), std=branch)
        self.head_dim = h
        self.attention_kernel: Kernel = "xla"

    def __call__(
        self,
        x: Float[Array, "B S D"],
        cos: Float[Array, "B S 1 h"],
        sin: Float[Array, "B S 1 h"],
        key_lengths: Int[Array, " B"] | None,
        cache: LayerCache | None,
        start: Int[Array, ""] | int,
        keep: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "B S D"], LayerCache]:
        def heads(y: Array) -> Array:
            return y.reshape(*y.shape[:-1], -1, self.head_dim)

        y = self.attn_norm(x)
        q = rotate(heads(self.q_proj(y)), cos, sin)
        k = rotate(heads(self.k_proj(y)), cos, sin)
        v = heads(self.v_proj(y))
        fresh = LayerCache(k, v)
        cache = fresh if cache is None else _overwrite(cache, fresh, start, keep)
        y = attention(q, cache.k, cache.v, key_lengths, self.attention_kernel)
        x = x + self.o_proj(y.reshape(*y.shape[:-2], -1))
        y = self.mlp_norm(x)
        return x + self.down_proj(jax.nn.silu(self.gate_proj(y)) * self.up_proj(y)), cache


def _overwrite(
    cache: LayerCache, fresh: LayerCache, start: Array | int, keep: Array | int
) -> LayerCache:
    """Write `fresh` at column `start`, leaving its first `keep` columns as they were."""

    def write(old: Array, new: Array) -> Array:
        if not (isinstance(keep, int) and keep == 0):
            kept = lax.dynamic_slice_in_dim(old, start, new.shape[1], axis=1)
            column = jnp.arange(new.shape[1])[None, :, None, None]
            new = jnp.where(column < keep, kept, new)
        return lax.dynamic_update_slice_in_dim(old, new, start, axis=1)

    return LayerCache(write(cache.k, fresh.k), write(cache.v, fresh.v))


class Transformer(nnx.Module):
    """A masked-diffusion language model: token ids in, logits of every position out, no causal
    mask.

    Args:
      config: sizes.
      dtype: of the parameters, the activations and the logits.
      rngs: for fresh weights; `r2jax.load` replaces them.
    """

    def __init__(
        self, config: ModelConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        d, v = config.hidden_size, config.vocab_size
        self.config = config
        self.embed = Embedding(v, d, (config.mask_id, config.pad_id), dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            [Layer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)]
        )
        self.norm = RMSNorm(d, config.rms_norm_eps, dtype=dtype)
        self.head = Linear(d, v, ("vocab", "embed"), std=0.02, dtype=dtype, rngs=rngs)

    @property
    def dtype(self) -> jnp.dtype:
        return self.embed.weight[...].dtype

    def __call__(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"] | None = None
    ) -> Float[Array, "B T V"]:
        """Logits of every position of `tokens`.

        Args:
          tokens: ids.
          lengths: columns of each row that count; later ones are not attended to. None: all.
        """
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden, _ = self.hidden(tokens, positions, lengths)
        return self.logits(hidden)

    def hidden(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        key_lengths: Int[Array, " B"] | None,
        cache: Cache | None = None,
        start: Int[Array, ""] | int = 0,
        keep: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "B S D"], Cache]:
        """The last layer's output, and the keys and values of all layers.

        Args:
          tokens: ids of the columns fed.
          positions: their rotary positions.
          key_lengths: columns of each row that are attended to (a prefix); None: all.
          cache: keys and values of all T columns; the fed columns replace theirs from column
            `start` on. None: the fed columns are all there are.
          start: first column fed.
          keep: this many of the first columns fed leave the cache as it was: they are attended to
            with their old keys and values, and their outputs are of no use.
        """
        with jax.default_matmul_precision(precision_of(self.dtype)):
            x = self.embed(tokens)
            cos, sin = rotary(positions, self.config.head_dim, self.config.rope_theta)
            out = []
            for i, layer in enumerate(self.layers):
                old = None if cache is None else cache[i]
                x, new = layer(x, cos, sin, key_lengths, old, start, keep)
                out.append(new)
            return x, tuple(out)

    def logits(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        """Final norm and language-model head, in the model's dtype."""
        with jax.default_matmul_precision(precision_of(self.dtype)):
            return self.head(self.norm(hidden))
