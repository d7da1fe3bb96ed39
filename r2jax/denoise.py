"""One denoising step: what a forward's logits do to the block, and the state that the loop
carries."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from r2jax.decode_config import Alg, DecodeScalars, StaticDecode
from r2jax.family import Family
from r2jax.predict import Prediction, predict, round_to
from r2jax.redundancy import Fired, Streak, confidence_cluster, temporal, token_cluster
from r2jax.trace import CONFIDENCE_CLUSTER, TEMPORAL, TOKEN_CLUSTER, TRANSFER, Trace
from r2jax.transfer import (
    allowance,
    by_factor,
    by_schedule,
    by_threshold,
    by_timesteps,
    leap,
    moving,
)


class RuleCounts(NamedTuple):
    """Events of R²'s rules per row: windows, runs, positions."""

    confidence: Int[Array, " B"]
    token: Int[Array, " B"]
    temporal: Int[Array, " B"]

    @property
    def total(self) -> Int[Array | np.ndarray, " B"]:
        """R_total, on the device or (after `jax.device_get`) on the host."""
        return self.confidence + self.token + self.temporal


class Counts(NamedTuple):
    """Redundancy: what the rules did, and what each alone would do after every transfer."""

    actual: RuleCounts
    potential: RuleCounts


class Progress(NamedTuple):
    """The carry: everything that one denoising step changes, but for the cache."""

    answer: Int[Array, "B G"]
    nfe: Int[Array, " B"]
    refreshes: Int[Array, " B"]
    counts: Counts
    trace: Trace | None
    # Of the current block only:
    passes: Int[Array, " B"]
    streak: Streak
    """Of the temporal rule as applied."""
    shadow: Streak
    """Of the temporal rule as merely counted (potential)."""


def start(batch: int, static: StaticDecode, family: Family, mask_id: int) -> Progress:
    """Nothing decoded yet, all counts zero."""
    zero = jnp.zeros((batch,), jnp.int32)
    counts = RuleCounts(zero, zero, zero)
    length, most = static.gen_length, most_forwards(static, family)
    streak = Streak.start(batch, static.block_length)
    return Progress(
        answer=jnp.full((batch, length), mask_id, jnp.int32),
        nfe=zero,
        refreshes=zero,
        counts=Counts(counts, counts),
        trace=Trace.start(batch, most, length, static.block_length) if static.trace else None,
        passes=zero,
        streak=streak,
        shadow=streak,
    )


def most_forwards(static: StaticDecode, family: Family) -> int:
    """The most forwards that a row can take: one a token, and what a complete block may cost."""
    extra = family.opens_with_first_token and static.cache != "none"
    return static.gen_length + (static.num_blocks if extra else 0)


def pending(
    progress: Progress,
    block: Int[Array, ""] | int,
    static: StaticDecode,
    scalars: DecodeScalars,
    family: Family,
    mask_id: int,
) -> tuple[Bool[Array, "B L"], Bool[Array, " B"]]:
    """The block's positions still to decode, and the rows that need another forward for it."""
    length = static.block_length
    tokens = lax.dynamic_slice_in_dim(progress.answer, block * length, length, axis=1)
    masked = tokens == mask_id
    if family.schedule == "timesteps" and static.transfer == "schedule":
        # The schedule's end is the block's, even where a single step has left masks.
        masked &= (progress.passes < scalars.steps_per_block)[:, None]
    needed = jnp.any(masked, axis=1)
    if family.opens_with_first_token and static.cache != "none":
        needed |= progress.passes == 1
    return masked, needed


def denoise(
    progress: Progress,
    logits: Float[Array, "B L V"],
    block: Int[Array, ""] | int,
    static: StaticDecode,
    scalars: DecodeScalars,
    family: Family,
    mask_id: int,
    keys: Array | None,
    *,
    full: bool,
    suffix: Int[Array, ""] | int = 0,
) -> Progress:
    """What one forward's logits do to the block: transfer, windows, runs, streaks, in this order.

    Args:
      progress: before the forward.
      logits: that predict the block's tokens.
      block: index of the block.
      static, scalars: from `DecodeConfig.split`.
      family: the model's.
      mask_id: the mask token.
      keys: one key a row, or None where nothing is random.
      full: whether the forward was a full pass.
      suffix: how many columns behind the block a block call has fed.
    """
    length = static.block_length
    tokens = lax.dynamic_slice_in_dim(progress.answer, block * length, length, axis=1)
    masked, needed = pending(progress, block, static, scalars, family, mask_id)

    noise = None
    if keys is not None:
        noise = _position_keys(keys, progress.nfe, block * length + jnp.arange(length))
    prediction = predict(
        logits,
        mask_id,
        noise[..., 0] if noise is not None and static.sample else None,
        scalars.temperature,
        scalars.top_p if static.top_p else None,
        alg=_ranked_by(static, family, full),
        filtered=family.filtered_confidence,
        rounded=static.round_confidence,
    )
    if static.remasking == "random":
        assert noise is not None
        uniform = jax.vmap(jax.vmap(jax.random.uniform))(noise[..., 1])
        prediction = prediction._replace(confidence=uniform, order=-uniform)
    dtype = logits.dtype if static.round_confidence else jnp.float32
    transferred = _transfer(
        masked, prediction, progress.passes, static, scalars, family, dtype, full, suffix
    )

    nothing = Fired(jnp.zeros_like(masked), jnp.zeros_like(progress.nfe))
    top_confidence = prediction.top_confidence

    def windows(masked: Bool[Array, "B L"]) -> Fired:
        if static.confidence_cluster_size is None:
            return nothing
        return confidence_cluster(
            masked,
            prediction.confidence,
            static.confidence_cluster_size,
            scalars.spatial_threshold,
            scalars.confidence_cluster_unmasked,
            dtype,
        )

    def runs(masked: Bool[Array, "B L"]) -> Fired:
        if static.token_cluster is None:
            return nothing
        uniform = None
        if static.token_cluster == "random":
            assert noise is not None
            uniform = jax.vmap(jax.vmap(jax.random.uniform))(noise[..., 2])
        return token_cluster(
            masked,
            prediction.top,
            top_confidence,
            scalars.spatial_threshold,
            scalars.token_cluster_size,
            static.token_cluster,
            uniform,
        )

    def streaks(streak: Streak, masked: Bool[Array, "B L"]) -> tuple[Fired, Streak]:
        if not static.temporal:
            return nothing, streak
        return temporal(
            streak,
            masked,
            prediction.top,
            top_confidence,
            scalars.temporal_steps,
            scalars.temporal_threshold,
            static.temporal_eval,
        )

    # Potential: each rule alone on the state after transfer.
    left = masked & ~transferred
    would, shadow = streaks(progress.shadow, left)
    potential = RuleCounts(windows(left).events, runs(left).events, would.events)

    # Actual: one after the other, each seeing what the earlier ones wrote.
    window = run = final = nothing
    streak = progress.streak
    if static.apply_rules:
        window = windows(left)
        run = runs(left & ~window.positions)
        final, streak = streaks(streak, left & ~window.positions & ~run.positions)
    actual = RuleCounts(window.events, run.events, final.events)

    tokens = jnp.where(transferred | window.positions, prediction.token, tokens)
    tokens = jnp.where(run.positions | final.positions, prediction.top, tokens)
    answer = lax.dynamic_update_slice_in_dim(progress.answer, tokens, block * length, axis=1)

    trace = progress.trace
    if trace is not None:
        committed = {
            TRANSFER: transferred,
            CONFIDENCE_CLUSTER: window.positions,
            TOKEN_CLUSTER: run.positions,
            TEMPORAL: final.positions,
        }
        trace = trace.add(
            progress.nfe, needed, block, progress.answer, prediction.top, top_confidence, committed
        )

    return Progress(
        answer=answer,
        nfe=progress.nfe + needed,
        refreshes=progress.refreshes + (needed if full else 0),
        counts=jax.tree.map(jnp.add, progress.counts, Counts(actual, potential)),
        trace=trace,
        passes=progress.passes + needed,
        streak=streak,
        shadow=shadow,
    )


def _ranked_by(static: StaticDecode, family: Family, full: bool) -> Alg:
    """What the transfer of this forward ranks by."""
    if family.entropy_with_cache and static.cache != "none" and static.transfer == "schedule":
        return "confidence" if full else "entropy"
    return static.alg


def _transfer(
    masked: Bool[Array, "B L"],
    prediction: Prediction,
    step: Int[Array, " B"],
    static: StaticDecode,
    scalars: DecodeScalars,
    family: Family,
    dtype: DTypeLike,
    full: bool,
    suffix: Int[Array, ""] | int,
) -> Bool[Array, "B L"]:
    """What is committed before any redundancy rule: Fast-dLLM's choice, or the family's."""
    confidence, order = prediction.confidence, prediction.order
    if full and family.opens_with_first_token and static.cache != "none":
        return masked & (jnp.arange(masked.shape[1]) == 0)
    if static.transfer == "factor":
        return by_factor(masked, confidence, order, scalars.factor)
    if static.transfer == "threshold":
        scale = 1.0 if full else moving(masked, suffix, scalars.confidence_alpha)
        threshold = round_to(jnp.float32(scale * scalars.threshold), dtype)
        if static.leap:
            lower = round_to(jnp.float32(scale * scalars.leap_threshold), dtype)
            threshold = leap(masked, confidence, threshold, lower, scalars.leap_radius)
        most = None
        if family.capped_threshold and static.cache == "none":
            most = allowance(masked, step, scalars.tokens_per_step)
        return by_threshold(masked, confidence, order, threshold, most)
    schedule = by_timesteps if family.schedule == "timesteps" else by_schedule
    return schedule(masked, order, step, scalars.steps_per_block)


def _position_keys(keys: Array, nfe: Int[Array, " B"], positions: Int[Array, " L"]) -> Array:
    """Keys [B, L, 3] (sampling, remasking, run choice): functions of the row's key, its own NFE and
    the position alone, never of the batch, the padding or a global step."""
    fold = jax.random.fold_in
    rows = jax.vmap(fold)(keys, nfe)
    each = jax.vmap(lambda key: jax.vmap(lambda position: fold(key, position))(positions))(rows)
    return jax.vmap(jax.vmap(lambda key: jax.random.split(key, 3)))(each)
