"""R²-dLLM's rules (arXiv 2604.18995 §3): what can be committed because it is redundant to wait.

Pure functions on [batch, block] arrays, each from the positions still masked to (positions to
commit, events per row). Events are what the redundancy score counts: windows, runs, positions
(contract.md).
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from r2jax.decode_config import TemporalEval, TokenCluster
from r2jax.predict import round_to


class Fired(NamedTuple):
    """What a rule would commit, and how many times it fired in each row."""

    positions: Bool[Array, "B L"]
    events: Int[Array, " B"]


def confidence_cluster(
    masked: Bool[Array, "B L"],
    confidence: Float[Array, "B L"],
    size: int,
    threshold: Float[Array, ""] | float,
    unmasked: Int[Array, ""] | int,
    dtype: DTypeLike = jnp.float32,
) -> Fired:
    """Eq. 2: where the mean confidence of a window reaches the threshold, all of it is decoded at
    once.

    Windows are all judged on the same state; the mean is over their masked positions.

    Args:
      masked: positions still to decode.
      confidence: of the token that would be written.
      size: window length, at most L.
      threshold: τ_s.
      unmasked: already decoded positions that a window may hold.
      dtype: that the mean is rounded to.
    """

    def windows(x: Array) -> Array:
        return lax.reduce_window(x, jnp.zeros((), x.dtype), lax.add, (1, size), (1, 1), "VALID")

    count = windows(masked.astype(jnp.int32))
    mean = windows(jnp.where(masked, confidence, 0.0)) / jnp.maximum(count, 1)
    mean = round_to(mean, dtype)
    fires = (count > 0) & (size - count <= unmasked) & (mean >= threshold)
    # Position j lies in the windows that start at j - size + 1 ... j.
    inside = jnp.pad(fires.astype(jnp.int32), ((0, 0), (size - 1, size - 1)))
    return Fired(masked & (windows(inside) > 0), _count(fires))


def token_cluster(
    masked: Bool[Array, "B L"],
    token: Int[Array, "B L"],
    confidence: Float[Array, "B L"],
    threshold: Float[Array, ""] | float,
    size: Int[Array, ""] | int,
    mode: TokenCluster,
    uniform: Float[Array, "B L"] | None = None,
) -> Fired:
    """Eq. 3: of a run of adjacent masked positions with one prediction, one position is decoded.

    Args:
      masked: positions still to decode.
      token: raw top-1 of each position.
      confidence: its probability. The run's best must exceed τ_s strictly.
      threshold: τ_s.
      size: shortest run that counts.
      mode: which position: the first of highest confidence, the middle, or a random one.
      uniform: numbers in [0, 1) for mode "random"; the one at a run's start decides.
    """
    index = jnp.arange(masked.shape[-1])
    follows = masked[:, 1:] & masked[:, :-1] & (token[:, 1:] == token[:, :-1])
    start = masked & ~jnp.pad(follows, ((0, 0), (1, 0)))
    run = jnp.cumsum(start, axis=-1)
    # [B, j, k]: k is in the same run as j. A block is short: L² booleans beat a segmented scan.
    same = (run[:, :, None] == run[:, None, :]) & masked[:, :, None] & masked[:, None, :]
    earlier = same & (index[None, :] < index[:, None])
    length = jnp.sum(same, axis=-1)
    offset = jnp.sum(earlier, axis=-1)
    best = jnp.max(jnp.where(same, confidence[:, None, :], 0.0), axis=-1)
    if mode == "confidence":
        is_best = confidence == best
        pick = is_best & ~jnp.any(earlier & is_best[:, None, :], axis=-1)
    elif mode == "mid":
        pick = offset == length // 2
    else:
        assert uniform is not None
        drawn = jnp.sum(jnp.where(same & start[:, None, :], uniform[:, None, :], 0.0), axis=-1)
        pick = offset == jnp.minimum((drawn * length).astype(jnp.int32), length - 1)
    pick = pick & masked & (length >= size) & (best > threshold)
    return Fired(pick, _count(pick))


class Streak(NamedTuple):
    """How long each position has predicted the same token, since its block began."""

    steps: Int[Array, "B L"]
    token: Int[Array, "B L"]
    total: Float[Array, "B L"]
    """Sum of the confidences over the streak."""
    peak: Float[Array, "B L"]

    @classmethod
    def start(cls, batch: int, length: int) -> Streak:
        floats = jnp.zeros((batch, length), jnp.float32)
        ints = jnp.zeros((batch, length), jnp.int32)
        return cls(ints, ints - 1, floats, floats)


def temporal(
    streak: Streak,
    masked: Bool[Array, "B L"],
    token: Int[Array, "B L"],
    confidence: Float[Array, "B L"],
    steps: Int[Array, ""] | int,
    threshold: Float[Array, ""] | float,
    evaluate: TemporalEval,
) -> tuple[Fired, Streak]:
    """Eq. 4: a prediction unchanged for `steps` forwards and confident enough is final.

    A streak that is long enough but not confident enough is kept and tried again at every step.

    Args:
      streak: of the forwards of this block before this one.
      masked: positions still masked after everything else of this step; others start over.
      token: raw top-1 of each position.
      confidence: its probability.
      steps: m.
      threshold: τ_t.
      evaluate: the confidence compared: of this step, the streak's mean, or its maximum.
    """
    same = streak.token == token
    length = jnp.where(same, streak.steps, 0) + 1
    total = jnp.where(same, streak.total, 0.0) + confidence
    peak = jnp.maximum(jnp.where(same, streak.peak, 0.0), confidence)
    value = {"last": confidence, "ave": total / length, "max": peak}[evaluate]
    final = masked & (length >= steps) & (value >= threshold)
    alive = masked & ~final
    fresh = Streak.start(*masked.shape)
    updated = Streak(length, token, total, peak)
    kept = Streak(*(jnp.where(alive, new, old) for new, old in zip(updated, fresh, strict=True)))
    return Fired(final, _count(final)), kept


def _count(events: Bool[Array, "B n"]) -> Int[Array, " B"]:
    return jnp.sum(events, axis=-1, dtype=jnp.int32)
