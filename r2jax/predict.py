"""Logits -> which token each position would get, and how sure the model is of it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int


class Prediction(NamedTuple):
    """What one forward says of the block, float32. Confidence is 1 / (1 + rest)."""

    token: Int[Array, "B L"]
    """The token that transfer and the confidence cluster would write (sampled, if sampling)."""
    rest: Float[Array, "B L"]
    """Its residual mass Σ_{j≠token} exp(z_j - z_token), of the untempered softmax. Rank by this:
    close to 1 a float32 probability has no digits left to tell two positions apart, its residual
    mass has."""
    top: Int[Array, "B L"]
    """The raw top-1 token, which the token cluster and the temporal rule go by."""
    top_rest: Float[Array, "B L"]


def confidence(rest: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Probability of a token from its residual mass."""
    return 1.0 / (1.0 + rest)


def residual_mass(logits: Float[Array, "B L V"], token: Int[Array, "B L"]) -> Float[Array, "B L"]:
    """Σ_{j≠token} exp(z_j - z_token). Compares with an iota instead of gathering, so that a
    vocabulary split over devices needs one reduction and no gather."""
    chosen = jnp.arange(logits.shape[-1]) == token[..., None]
    z = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1, keepdims=True)
    return jnp.sum(jnp.where(chosen, 0.0, jnp.exp(logits - z)), axis=-1)


def predict(
    logits: Float[Array, "B L V"],
    mask_id: int,
    keys: Array | None = None,
    temperature: Array | float = 0.0,
    top_p: Array | float | None = None,
) -> Prediction:
    """The token of every position and its residual mass.

    Args:
      logits: in the model's dtype (bfloat16 is rounded before the arg-max, as in the originals).
      mask_id: never predicted, but part of the softmax's denominator.
      keys: a key per position [B, L] to sample with; None: greedy.
      temperature: scale of the Gumbel noise.
      top_p: sample from the nucleus of this mass (of the tempered distribution); None: from
      everything.
    """
    z = logits.astype(jnp.float32)
    is_mask = jnp.arange(z.shape[-1]) == mask_id
    top = jnp.argmax(jnp.where(is_mask, -jnp.inf, z), axis=-1).astype(jnp.int32)
    top_rest = residual_mass(z, top)
    if keys is None:
        return Prediction(top, top_rest, top, top_rest)
    # Excluded after the division: no temperature can bring the mask back, which would never end.
    allowed = jnp.where(is_mask, -jnp.inf, z / temperature)
    if top_p is not None:
        allowed = _nucleus(allowed, top_p)
    noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, z.shape[-1:], jnp.float32)))(keys)
    token = jnp.argmax(allowed + noise, axis=-1).astype(jnp.int32)
    return Prediction(token, residual_mass(z, token), top, top_rest)


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
