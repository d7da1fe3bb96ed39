"""Logits -> which token each position would get, and how sure the model is of it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from r2jax.decode_config import Alg


class Prediction(NamedTuple):
    """What one forward says of the block, float32."""

    token: Int[Array, "B L"]
    """The token that transfer and the confidence cluster would write (sampled, if sampling)."""
    confidence: Float[Array, "B L"]
    """What they judge it by: its probability, or the score of another `alg`."""
    order: Float[Array, "B L"]
    """Rank by this, ascending. Of a probability it is the residual mass: close to 1 a float32
    probability has no digits left to tell two positions apart, its residual mass has."""
    top: Int[Array, "B L"]
    """The raw top-1 token, which the token cluster and the temporal rule go by."""
    top_confidence: Float[Array, "B L"]
    """Its probability."""


def residual_mass(logits: Float[Array, "B L V"], token: Int[Array, "B L"]) -> Float[Array, "B L"]:
    """Σ_{j≠token} exp(z_j - z_token): a token's probability is 1 / (1 + this).

    Compares with an iota instead of gathering, so that a vocabulary split over devices needs one
    reduction and no gather.
    """
    chosen = jnp.arange(logits.shape[-1]) == token[..., None]
    z = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1, keepdims=True)
    return jnp.sum(jnp.where(chosen, 0.0, jnp.exp(logits - z)), axis=-1)


def round_to(x: Float[Array, "*b"], dtype: DTypeLike) -> Float[Array, "*b"]:
    """float32 values as `dtype` holds them. XLA removes a cast there and back, but not this."""
    kind = jnp.finfo(dtype)
    return x if kind.bits >= 32 else lax.reduce_precision(x, kind.nexp, kind.nmant)


def predict(
    logits: Float[Array, "B L V"],
    mask_id: int,
    keys: Array | None = None,
    temperature: Array | float = 0.0,
    top_p: Array | float | None = None,
    *,
    alg: Alg = "confidence",
    filtered: bool = False,
    rounded: bool = False,
) -> Prediction:
    """The token of every position and how sure the model is of it.

    Args:
      logits: in the model's dtype (bfloat16 is rounded before the arg-max, as in the originals).
      mask_id: never predicted, but part of the softmax's denominator.
      keys: a key per position [B, L] to sample with; None: greedy.
      temperature: scale of the Gumbel noise.
      top_p: sample from the nucleus of this mass (of the tempered distribution); None: from
        everything.
      alg: what confidence is: the token's probability, minus the entropy, or the distance of the
        two most likely tokens' probabilities (Dream's algorithms).
      filtered: confidence of the distribution sampled from, after temperature and top_p.
      rounded: probabilities and scores in the logits' dtype, as Dream's program computes them.
    """
    z = logits.astype(jnp.float32)
    is_mask = jnp.arange(z.shape[-1]) == mask_id
    token = top = jnp.argmax(jnp.where(is_mask, -jnp.inf, z), axis=-1).astype(jnp.int32)
    judged = z
    if keys is not None or (filtered and top_p is not None):
        tempered = z if keys is None else z / temperature
        # Excluded after the division: no temperature can bring the mask back, which would never
        # end.
        allowed = jnp.where(is_mask, -jnp.inf, tempered)
        if top_p is not None:
            allowed = _nucleus(allowed, top_p)
        if keys is not None:
            noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, z.shape[-1:])))(keys)
            token = jnp.argmax(allowed + noise, axis=-1).astype(jnp.int32)
        if filtered:
            judged = jnp.where(is_mask, tempered, allowed)
    top_rest = residual_mass(z, top)
    top_confidence = 1.0 / (1.0 + top_rest)
    if alg == "confidence" and not rounded:
        rest = top_rest if token is top and judged is z else residual_mass(judged, token)
        return Prediction(token, 1.0 / (1.0 + rest), rest, top, top_confidence)
    dtype = logits.dtype if rounded else jnp.float32
    p = round_to(jax.nn.softmax(judged, axis=-1), dtype)
    if keys is None:  # equal once rounded: the lowest id
        token = jnp.argmax(jnp.where(is_mask, -1.0, p), axis=-1).astype(jnp.int32)
    score = _score(p, token, alg, dtype)
    return Prediction(token, score, -score, top, top_confidence)


def _score(
    p: Float[Array, "B L V"], token: Int[Array, "B L"], alg: Alg, dtype: DTypeLike
) -> Float[Array, "B L"]:
    """How sure a distribution is, larger is surer: Dream's `sample_tokens`."""
    if alg == "entropy":
        log_p = round_to(jnp.log(round_to(p + 1e-10, dtype)), dtype)
        return round_to(jnp.sum(round_to(p * log_p, dtype), axis=-1), dtype)
    if alg == "topk_margin":
        first = jnp.max(p, axis=-1)
        here = jnp.arange(p.shape[-1]) == jnp.argmax(p, axis=-1)[..., None]
        return round_to(first - jnp.max(jnp.where(here, 0.0, p), axis=-1), dtype)
    chosen = jnp.arange(p.shape[-1]) == token[..., None]
    return jnp.sum(jnp.where(chosen, p, 0.0), axis=-1)


def _nucleus(logits: Float[Array, "B L V"], top_p: Array | float) -> Float[Array, "B L V"]:
    """-inf outside the smallest set of most likely tokens whose probabilities sum to at least
    top_p.

    A token belongs to it if what is more likely sums to less. Where that begins is found by halving
    the range of the logits' bits, in 32 sums over the vocabulary: a sort would gather a vocabulary
    that is split over devices, at every step.
    """
    p = jax.nn.softmax(logits, axis=-1)
    bits = lax.bitcast_convert_type(logits, jnp.int32)
    rank = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the floats

    def halve(_: Array | int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low >> 1) + (high >> 1) + (low & high & 1)  # no overflow
        above = jnp.sum(jnp.where(rank > middle, p, 0.0), axis=-1, keepdims=True)
        inside = above < top_p
        return jnp.where(inside, low, middle + 1), jnp.where(inside, middle, high)

    high = jnp.max(rank, axis=-1, keepdims=True)
    low = jnp.full_like(high, jnp.iinfo(jnp.int32).min)
    first, _ = lax.fori_loop(0, 32, halve, (low, high))
    return jnp.where(rank >= first, logits, -jnp.inf)
