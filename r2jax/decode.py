"""The decode loop: a whole generation as one program of static shapes.

    for each block, left to right:             lax.while_loop, ends early once every row has ended
        refresh: forward over everything       (prefix and dual cache)
        while any row needs it (`pending`):    lax.while_loop
            forward (the block, block and suffix, or everything), then `denoise`

"Everything" lacks what Streaming's window prunes of the suffix. A row is laid out [window | context
| right pad], where the window holds what block calls feed; layout.py says why, and how blocks are
grouped into segments of the program.

**Rows are independent.** Blocks move in lock step, but a row takes part in a forward only while its
own block needs it (it holds masks): then it is counted, otherwise nothing of it changes. Ending a
row at EOS fills the rest of its answer, so it never holds masks again.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from r2jax.cache import Cache
from r2jax.decode_config import DecodeScalars, StaticDecode
from r2jax.denoise import Counts, Progress, denoise, pending, start
from r2jax.family import family_of
from r2jax.layout import Segment, column_before, context, place, predicting, segments, window
from r2jax.model import Transformer
from r2jax.redundancy import Streak


class DecodeOutput(NamedTuple):
    """What a generation returns. L is a block's length; K the most forwards that a row can take:
    gen_length, and one more a block of families that make a block call even where the block is
    complete."""

    tokens: Int[Array, "B G"]
    nfe: Int[Array, " B"]
    """Forwards that the row needed."""
    refreshes: Int[Array, " B"]
    """How many of them were full passes."""
    reported: Int[Array, " B"]
    """What the family's own program reports as its steps: nfe, but for Dream's with a cache, which
    leaves the refreshes out."""
    counts: Counts
    # The trace, as in `Trace`; None without one. -1 in unused entries.
    states: Int[Array, "B K G"] | None = None
    """The answer before each of the row's forwards."""
    blocks: Int[Array, "B K"] | None = None
    """The block that each of them predicted."""
    predictions: Int[Array, "B K L"] | None = None
    """The block's most likely tokens."""
    confidences: Float[Array, "B K L"] | None = None
    """Their probabilities."""
    committed_by: Int[Array, "B G"] | None = None
    """Which rule wrote each position (`trace.TRANSFER`, `CONFIDENCE_CLUSTER`, ...)."""


def _end_at_eos(
    progress: Progress, block: Array | int, static: StaticDecode, mask_id: int
) -> Progress:
    """Rows whose finished block holds an end token: later positions become it, and cost nothing."""
    if not static.eos_ids:
        return progress
    length = static.block_length
    tokens = lax.dynamic_slice_in_dim(progress.answer, block * length, length, axis=1)
    ends = functools.reduce(jnp.logical_or, [tokens == eos for eos in static.eos_ids])
    after = jnp.arange(static.gen_length) >= (block + 1) * length
    done = jnp.all(tokens != mask_id, axis=1, keepdims=True)  # a schedule of one step leaves masks
    fill = jnp.any(ends, axis=1, keepdims=True) & done & after
    return progress._replace(
        answer=jnp.where(fill, static.eos_ids[0], progress.answer),
        trace=None if progress.trace is None else progress.trace.end(fill),
    )


@functools.partial(jax.jit, static_argnames="static")
def decode(
    model: Transformer,
    tokens: Int[Array, "B P"],
    lengths: Int[Array, " B"],
    static: StaticDecode,
    scalars: DecodeScalars,
    keys: Array | None = None,
) -> DecodeOutput:
    """Decode a batch of prompts: pure and jitted, for those who jit, shard or vmap themselves.

    Args:
      model: its parameters are arguments of the compiled program.
      tokens: prompts, padded on the right with anything.
      lengths: prompt lengths, 1 ... P. 0: no row, only a place in the batch; it has ended before it
        starts, counts nothing and holds up nobody.
      static, scalars: from `DecodeConfig.split`.
      keys: a typed key per row [B]; needed iff `static.needs_key`.

    Returns:
      `DecodeOutput`. Row i is what a batch of that row alone would give: exactly in float32; in
      bfloat16, or with 8-bit weights, rounding depends on a product's shape, and may flip a
      near-tie.
    """
    if static.needs_key and keys is None:
        raise ValueError("temperature > 0 and random choices need `keys`, one a row")
    length = static.block_length
    mask_id = model.config.mask_id
    family = family_of(model.config)
    batch, prompt = tokens.shape
    step = functools.partial(
        denoise,
        static=static,
        scalars=scalars,
        family=family,
        mask_id=mask_id,
        keys=keys if static.needs_key else None,
    )

    def full_pass(progress: Progress, block: Array, segment: Segment) -> tuple[Progress, Cache]:
        ahead, done = segment.ahead(block), segment.done(block)
        behind = segment.context(prompt)
        near, places = window(progress.answer, ahead, segment.window)
        far = context(tokens, lengths, progress.answer, behind)
        positions, key_lengths = place(lengths, places, behind, ahead)
        columns = jnp.concatenate([near, far], axis=1)
        before = column_before(segment, block, lengths)
        wanted = predicting(done, length, family.shift, before)
        hidden, cache = model.hidden(columns, positions, key_lengths, wanted=wanted)
        return step(progress, model.logits(hidden), block, full=True), cache

    def block_pass(
        progress: Progress, cache: Cache, block: Array, segment: Segment
    ) -> tuple[Progress, Cache]:
        ahead, done = segment.ahead(block), segment.done(block)
        near, places = window(progress.answer, ahead, segment.window)
        positions, key_lengths = place(lengths, places, 0, ahead)
        if static.cache == "dual":
            first, width, keep, suffix = done, length, 0, 0
        else:  # columns before the block are done and keep their keys and values
            first, width, keep, suffix = 0, segment.window, done, segment.window - length - done
        hidden, cache = model.hidden(
            lax.dynamic_slice_in_dim(near, first, width, axis=1),
            lax.dynamic_slice_in_dim(positions, first, width, axis=1),
            key_lengths,
            cache,
            start=first,
            keep=keep,
            wanted=predicting(keep, length, family.shift),
        )
        return step(progress, model.logits(hidden), block, full=False, suffix=suffix), cache

    def unfinished(progress: Progress, block: Array) -> Bool[Array, ""]:
        return jnp.any(pending(progress, block, static, scalars, family, mask_id)[1])

    def decode_block(progress: Progress, block: Array, segment: Segment) -> Progress:
        fresh = Streak.start(batch, length)
        progress = progress._replace(
            passes=jnp.zeros_like(progress.passes), streak=fresh, shadow=fresh
        )
        if static.cache == "none":
            progress = lax.while_loop(
                lambda p: unfinished(p, block),
                lambda p: full_pass(p, block, segment)[0],
                progress,
            )
        else:
            progress, _ = lax.while_loop(
                lambda c: unfinished(c[0], block),
                lambda c: block_pass(*c, block, segment),
                full_pass(progress, block, segment),
            )
        return _end_at_eos(progress, block, static, mask_id)

    progress = start(batch, static, family, mask_id)
    no_row = lengths[:, None] == 0
    progress = progress._replace(answer=jnp.where(no_row, model.config.pad_id, progress.answer))
    for segment in segments(static):
        progress, _ = lax.while_loop(
            lambda c, end=segment.blocks.stop: (c[1] < end) & jnp.any(c[0].answer == mask_id),
            lambda c, segment=segment: (decode_block(*c, segment), c[1] + 1),
            (progress, jnp.int32(segment.blocks.start)),
        )
    leaves_out = family.reports_block_calls and static.cache != "none"
    return DecodeOutput(
        tokens=progress.answer,
        nfe=progress.nfe,
        refreshes=progress.refreshes,
        reported=progress.nfe - (progress.refreshes if leaves_out else 0),
        counts=progress.counts,
        **({} if progress.trace is None else progress.trace._asdict()),
    )
