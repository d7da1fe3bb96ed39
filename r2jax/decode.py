"""The decode loop: a whole generation as one program of static shapes.

    for each block, left to right:             lax.while_loop, ends early once every row has ended
        refresh: forward over everything       (prefix and dual cache)
        while any row's block holds masks:     lax.while_loop
            forward (the block, block and suffix, or everything), then `denoise`

A row is laid out [generation | prompt | right pad]; layout.py says why.

**Rows are independent.** Blocks move in lock step, but a row takes part in a forward only while its
own block holds masks: then it is counted, otherwise nothing of it changes. Ending a row at EOS
fills the rest of its answer, so it never holds masks again.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Int

from r2jax.cache import Cache
from r2jax.decode_config import DecodeScalars, StaticDecode
from r2jax.denoise import AFTER_EOS, Counts, Progress, denoise, start
from r2jax.layout import layout
from r2jax.model import Transformer
from r2jax.redundancy import Streak

# With the prefix cache every block feeds a shorter suffix. Blocks are grouped into at most this
# many program segments, each with one static width; within a segment the columns of its blocks
# already done are fed and ignored. More segments compile longer, fewer waste more columns.
PREFIX_SEGMENTS = 4


class DecodeOutput(NamedTuple):
    """What a generation returns. K = gen_length is the most forwards a row can take."""

    tokens: Int[Array, "B G"]
    nfe: Int[Array, " B"]
    """Forwards that the row needed."""
    refreshes: Int[Array, " B"]
    """How many of them were full passes."""
    counts: Counts
    states: Int[Array, "B K G"] | None
    """Trace: the answer before each of the row's forwards; -1 in unused entries."""
    committed_by: Int[Array, "B G"] | None
    """Trace: which rule wrote each position (TRANSFER, CONFIDENCE_CLUSTER, ...)."""


def _end_at_eos(progress: Progress, block: Array | int, static: StaticDecode) -> Progress:
    """Rows whose finished block holds an end token: later positions become it, and cost nothing."""
    if not static.eos_ids:
        return progress
    length = static.block_length
    tokens = lax.dynamic_slice_in_dim(progress.answer, block * length, length, axis=1)
    ends = functools.reduce(jnp.logical_or, [tokens == eos for eos in static.eos_ids])
    after = jnp.arange(static.gen_length) >= (block + 1) * length
    fill = jnp.any(ends, axis=1, keepdims=True) & after
    committed_by = progress.committed_by
    if committed_by is not None:
        committed_by = jnp.where(fill & (committed_by < 0), AFTER_EOS, committed_by)
    return progress._replace(
        answer=jnp.where(fill, static.eos_ids[0], progress.answer),
        committed_by=committed_by,
    )


def segments(static: StaticDecode) -> list[range]:
    """Groups of blocks that share a stretch of the program: one, or several for a prefix cache."""
    blocks, count = static.num_blocks, PREFIX_SEGMENTS if static.cache == "prefix" else 1
    size = -(-blocks // count)
    return [range(i, min(i + size, blocks)) for i in range(0, blocks, size)]


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
      lengths: prompt lengths, 1 ... P.
      static, scalars: from `DecodeConfig.split`.
      keys: a typed key per row [B]; needed iff `static.needs_key`.

    Returns:
      `DecodeOutput`. Row i is what a batch of that row alone would give: exactly in float32; in
      bfloat16 a product's rounding depends on its shape, and may flip a near-tie.
    """
    if static.needs_key and keys is None:
        raise ValueError("temperature > 0 and random choices need `keys`, one a row")
    gen, length = static.gen_length, static.block_length
    mask_id = model.config.mask_id
    batch, prompt = tokens.shape
    positions, key_lengths = layout(lengths, gen, prompt)
    step = functools.partial(
        denoise,
        static=static,
        scalars=scalars,
        mask_id=mask_id,
        keys=keys if static.needs_key else None,
    )

    def full_pass(progress: Progress, block: Array) -> tuple[Progress, Cache]:
        columns = jnp.concatenate([progress.answer, tokens], axis=1)
        hidden, cache = model.hidden(columns, positions, key_lengths)
        logits = model.logits(lax.dynamic_slice_in_dim(hidden, block * length, length, axis=1))
        return step(progress, logits, block, full=True), cache

    def block_pass(
        progress: Progress, cache: Cache, block: Array, first: Array | int, width: int
    ) -> tuple[Progress, Cache]:
        # Columns fed before the block (prefix cache only) are done and keep their keys and values.
        done = 0 if static.cache == "dual" else block * length - first
        hidden, cache = model.hidden(
            lax.dynamic_slice_in_dim(progress.answer, first, width, axis=1),
            lax.dynamic_slice_in_dim(positions, first, width, axis=1),
            key_lengths,
            cache,
            start=first,
            keep=done,
        )
        logits = model.logits(lax.dynamic_slice_in_dim(hidden, done, length, axis=1))
        return step(progress, logits, block, full=False), cache

    def unfinished(progress: Progress, block: Array) -> Bool[Array, ""]:
        current = lax.dynamic_slice_in_dim(progress.answer, block * length, length, axis=1)
        return jnp.any(current == mask_id)

    def decode_block(progress: Progress, block: Array, segment: range) -> Progress:
        fresh = Streak.start(batch, length)
        progress = progress._replace(
            passes=jnp.zeros_like(progress.passes), streak=fresh, shadow=fresh
        )
        if static.cache == "none":
            progress = lax.while_loop(
                lambda p: unfinished(p, block),
                lambda p: full_pass(p, block)[0],
                progress,
            )
        else:
            if static.cache == "dual":
                first, width = block * length, length
            else:
                first, width = segment.start * length, gen - segment.start * length
            progress, _ = lax.while_loop(
                lambda c: unfinished(c[0], block),
                lambda c: block_pass(*c, block, first, width),
                full_pass(progress, block),
            )
        return _end_at_eos(progress, block, static)

    progress = start(batch, static, mask_id)
    for segment in segments(static):
        progress, _ = lax.while_loop(
            lambda c, end=segment.stop: (c[1] < end) & jnp.any(c[0].answer == mask_id),
            lambda c, segment=segment: (decode_block(*c, segment), c[1] + 1),
            (progress, jnp.int32(segment.start)),
        )
    return DecodeOutput(
        tokens=progress.answer,
        nfe=progress.nfe,
        refreshes=progress.refreshes,
        counts=progress.counts,
        states=progress.states,
        committed_by=progress.committed_by,
    )
