"""The transformer of LLaDA (and, as another configuration, of Dream): bidirectional, pre-norm,
rotary.

Legend of the shapes:
  B  rows (batch)                S  columns fed            T  columns attended to
  D  hidden size                 F  MLP's inner size       V  vocabulary
  N  query heads                 K  key/value heads        h  size of a head

For decoding, weights that read the same input lie in one matrix (`fused`, see fuse.py): a layer is
four products instead of seven, and XLA has nothing left to concatenate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from r2jax import kernels, narrow
from r2jax.attention import attend, on_shards, rotary
from r2jax.cache import Cache, LayerCache
from r2jax.config import ModelConfig
from r2jax.modules import Embedding, Linear, RMSNorm, total
from r2jax.quantize import Narrow, Quantization
from r2jax.sharding import batch_axes


def precision_of(dtype: jnp.dtype) -> str:
    """float32 means float32: a GPU's default may be TF32, a TPU's bfloat16."""
    return "highest" if dtype == jnp.float32 else "default"


class Layer(nnx.Module):
    """x + Attention(RMSNorm(x)), then x + MLP(RMSNorm(x)) with a SiLU-gated MLP.

    What a branch adds to the residual stream is added where the next norm reads it, so that both
    can be one kernel; the last branch of a layer is left to the next layer.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: DTypeLike,
        fused: bool,
        quantize: Quantization | None,
        mesh: Mesh | None,
        rngs: nnx.Rngs,
    ) -> None:
        d, f, h = config.hidden_size, config.intermediate_size, config.head_dim
        n, k = config.num_heads * h, config.num_kv_heads * h
        make = functools.partial(Linear, dtype=dtype, quantize=quantize, rngs=rngs)
        # Each residual branch starts small, so that depth does not blow up the sum (GPT-2's
        # scaling).
        branch = 0.02 / (2 * config.num_layers) ** 0.5
        bias = config.qkv_bias
        self.attn_norm = RMSNorm(d, config.rms_norm_eps, dtype=dtype)
        self.mlp_norm = RMSNorm(d, config.rms_norm_eps, dtype=dtype)
        if fused:
            self.qkv_proj = make(d, n + 2 * k, ("kv_heads", "embed"), bias=bias, std=0.02)
            self.gate_up_proj = make(d, 2 * f, ("mlp", "embed"), std=0.02)
        else:
            self.q_proj = make(d, n, ("heads", "embed"), bias=bias, std=0.02)
            self.k_proj = make(d, k, ("kv_heads", "embed"), bias=bias, std=0.02)
            self.v_proj = make(d, k, ("kv_heads", "embed"), bias=bias, std=0.02)
            self.gate_proj = make(d, f, ("mlp", "embed"), std=0.02)
            self.up_proj = make(d, f, ("mlp", "embed"), std=0.02)
        self.o_proj = make(n, d, ("embed", "heads"), std=branch)
        self.down_proj = make(f, d, ("embed", "mlp"), std=branch)
        self.fused, self.mesh = fused, mesh
        self.kv_heads, self.head_dim = config.num_kv_heads, h

    def __call__(
        self,
        x: Float[Array, "B S D"],
        branch: Float[Array, "P B S D"],
        rope: tuple[Float[Array, "B S h"], Float[Array, "B S h"]],
        key_lengths: Int[Array, " B"] | None,
        cache: LayerCache | None,
        start: Int[Array, ""] | int,
        keep: Int[Array, ""] | int,
        wanted: Callable[[Array], Array] | None = None,
    ) -> tuple[Float[Array, "B W D"], Float[Array, "P B W D"], LayerCache]:
        """`branch`, in and out: parts of what is still to be added to x. The rest is as in
        `Transformer.hidden`."""
        eight_bit = self._narrow(x)
        x, y = self._norm(self.attn_norm, x, branch, eight_bit)
        qkv = self._qkv(y)
        y, cache = attend(qkv, rope, key_lengths, cache, start, keep, self.mesh)
        if wanted is not None:
            x, y = wanted(x), wanted(y)
            eight_bit = self._narrow(x)  # of fewer tokens, which may not fit
        y = self.o_proj.parts(_narrowed(y.reshape(*y.shape[:2], -1), eight_bit))
        x, y = self._norm(self.mlp_norm, x, y, eight_bit)
        return x, self.down_proj.parts(_narrowed(self._gated(y), eight_bit)), cache

    def _narrow(self, x: Float[Array, "B S D"]) -> np.dtype | None:
        """The 8-bit numbers that activations go from kernel to kernel in; None: they do not."""
        if not self.fused or self.o_proj.scale is None or self.mesh is not None:
            return None
        projections = (self.qkv_proj, self.o_proj, self.gate_up_proj, self.down_proj)
        weights = [projection.weight[...] for projection in projections]
        fits = narrow.fits_products(x, weights) and kernels.available()
        return weights[0].dtype if fits else None

    def _norm(
        self,
        norm: RMSNorm,
        x: Float[Array, "B S D"],
        branch: Float[Array, "P B S D"],
        eight_bit: np.dtype | None,
    ) -> tuple[Float[Array, "B S D"], Float[Array, "B S D"] | Narrow]:
        """x with its branch added, and the norm of that."""
        if eight_bit is not None:
            return narrow.residual_norm(x, branch, norm.weight[...], norm.eps, eight_bit)
        x = x + total(branch, x.dtype)
        return x, norm(x)

    def _qkv(self, y: Float[Array, "B S D"] | Narrow) -> Float[Array, "B S K G h"]:
        """By key head: its queries, then its key and its value."""

        def heads(y: Array) -> Array:
            return y.reshape(*y.shape[:2], self.kv_heads, -1, self.head_dim)

        if self.fused:
            return heads(self.qkv_proj(y))
        parts = (self.q_proj, self.k_proj, self.v_proj)
        return jnp.concatenate([heads(part(y)) for part in parts], axis=3)

    def _gated(self, y: Float[Array, "B S D"] | Narrow) -> Float[Array, "B S F"]:
        """silu(gate) * up."""
        if not self.fused:
            return jax.nn.silu(self.gate_proj(y)) * self.up_proj(y)
        weight, scale = self.gate_up_proj.weight[...], self.gate_up_proj.scale
        pairs = weight.reshape(-1, 2, weight.shape[-1])
        if isinstance(y, Narrow):
            scale = scale[...].reshape(-1, 2)  # pyright: ignore[reportOptionalSubscript]
            return narrow.gated_mlp(y, pairs, scale, self.gate_up_proj.dtype)
        if narrow.fits_mlp(y, weight, self.mesh) and kernels.available():
            rows = PartitionSpec(batch_axes(self.mesh, y.shape[0]))
            run = on_shards(
                narrow.gated_mlp,
                self.mesh,
                (rows, PartitionSpec("tensor")),
                PartitionSpec(*rows, None, "tensor"),
            )
            return run(y, pairs)
        both = self.gate_up_proj(y).reshape(*y.shape[:2], -1, 2)
        return jax.nn.silu(both[..., 0]) * both[..., 1]


def _narrowed(y: Float[Array, "B S I"], eight_bit: np.dtype | None) -> Array | Narrow:
    """Activations as the next product takes them."""
    return y if eight_bit is None else narrow.quantize_tokens(y, eight_bit)


class Transformer(nnx.Module):
    """A masked-diffusion language model: token ids in, logits of every position out, no causal
    mask.

    Args:
      config: sizes.
      dtype: of the parameters, the activations and the logits.
      fused: lay weights out for decoding; training and checkpoints have them apart.
      quantize: the layers' projections in 8 bits.
      mesh: that the parameters are sharded on.
      rngs: for fresh weights; `r2jax.load` replaces them.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        fused: bool = False,
        quantize: Quantization | None = None,
        mesh: Mesh | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        d, v = config.hidden_size, config.vocab_size
        self.config = config
        self.mesh = mesh
        self.embed = Embedding(v, d, (config.mask_id, config.pad_id), dtype=dtype, rngs=rngs)
        layer = functools.partial(
            Layer, config, dtype=dtype, fused=fused, quantize=quantize, mesh=mesh, rngs=rngs
        )
        self.layers = nnx.List([layer() for _ in range(config.num_layers)])
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
        wanted: Callable[[Array], Array] | None = None,
    ) -> tuple[Float[Array, "B W D"], Cache]:
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
          wanted: picks, of an array [B, S, ...], the W columns whose output is returned (the last
            layer computes no others); None: all.
        """
        with jax.default_matmul_precision(precision_of(self.dtype)):
            branch = self.embed(tokens)[None]  # the residual stream starts empty
            x = jnp.zeros_like(branch[0])
            config = self.config
            precise = jnp.float32 if config.rope_full_precision else self.dtype
            rope = rotary(positions, config.head_dim, config.rope_theta, precise)
            out = []
            for i, layer in enumerate(self.layers):
                old = None if cache is None else cache[i]
                last = i == len(self.layers) - 1
                x, branch, new = layer(
                    x, branch, rope, key_lengths, old, start, keep, wanted if last else None
                )
                out.append(new)
            return x + total(branch, x.dtype), tuple(out)

    def logits(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        """Final norm and language-model head, in the model's dtype."""
        with jax.default_matmul_precision(precision_of(self.dtype)):
            return self.head(self.norm(hidden))
