"""How a row is laid out: [window | context | right pad], with explicit rotary positions.

The window holds columns of the generation: the current block and what is fed of the suffix behind
it. The context is the prompt and the generation ahead of the window, in natural order.

Attention is bidirectional, so the order of columns is free, and this one has three virtues. What a
block call feeds stands at the same columns in every row whatever the prompt's length (a cache write
is one dynamic_update_slice at a scalar offset, the head runs on a slice). The columns that count
are a prefix (a key length says all there is to mask). And the widths are static: only token ids
move when the window slides on, never keys and values.

Without pruning and without a prefix cache the window is the whole generation, in decoding as in
training: [generation | prompt | right pad].

**Segments.** The further the generation, the longer the context; and a prefix cache without pruning
feeds a shorter suffix. So blocks are grouped into at most SEGMENTS stretches of the program, each
with its own static widths: those that its hungriest block needs. `wasted_columns` says what the
others feed in vain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Int

from r2jax.decode_config import StaticDecode

# Every segment compiles its own refresh and block call. More compile longer, fewer waste more.
SEGMENTS = 4
# Columns attended to are a multiple of this: rows of 16-bit scores then start at aligned addresses,
# which the tensor cores' loads need (32 bytes).
ALIGNMENT = 16


class Segment(NamedTuple):
    """Blocks that share a stretch of the program and its widths.

    The window starts at its block, and stops sliding once its end has reached the answer's: the
    last blocks stand further back in it, after columns that are done.
    """

    blocks: range
    block_length: int
    gen_length: int
    window: int
    """Columns of the window."""

    @property
    def most_ahead(self) -> int:
        """Most columns of the generation that stand ahead of the window."""
        return min(self.blocks[-1] * self.block_length, self.gen_length - self.window)

    def ahead(self, block: Array | int) -> Array | int:
        """Columns of the generation ahead of the window of `block`: a number where all agree."""
        if min(self.blocks[0] * self.block_length, self.most_ahead) == self.most_ahead:
            return self.most_ahead
        return jnp.minimum(block * self.block_length, self.most_ahead)

    def done(self, block: Array | int) -> Array | int:
        """Columns of the window before `block`: 0 while the window slides with it."""
        if self.blocks[-1] * self.block_length == self.most_ahead:
            return 0
        return block * self.block_length - self.ahead(block)

    def context(self, prompt: int) -> int:
        """Columns behind the window, for prompts padded to `prompt` tokens."""
        used = self.window + prompt + self.most_ahead
        return -(-used // ALIGNMENT) * ALIGNMENT - self.window


def segments(static: StaticDecode) -> list[Segment]:
    """The stretches of the program: one where nothing shrinks or grows from block to block."""
    gen, length = static.gen_length, static.block_length
    # Block, pruned suffix and the answer's last position.
    pruned = gen if static.window_size is None else length + static.window_size + 1
    varies = static.cache == "prefix" or pruned < gen
    size = -(-static.num_blocks // (SEGMENTS if varies else 1))
    return [
        Segment(blocks, length, gen, min(gen - i * length, pruned))
        for i in range(0, static.num_blocks, size)
        if (blocks := range(i, min(i + size, static.num_blocks)))
    ]


def wasted_columns(static: StaticDecode) -> list[tuple[int, int]]:
    """Of every block: how many columns more than needed a refresh feeds, and a block call.

    Prompts count as if they filled their padding.
    """
    return [
        (
            segment.context(0) - int(segment.ahead(block)),
            int(segment.done(block)) if static.cache == "prefix" else 0,
        )
        for segment in segments(static)
        for block in segment.blocks
    ]


def window(
    answer: Int[Array, "B G"], ahead: Array | int, width: int
) -> tuple[Int[Array, "B W"], Int[Array, " W"]]:
    """Tokens of a window, and their places in the generation: one stretch of it, but for the last
    column, which is the answer's last position (pruned or not: there the stretch ends)."""
    stretch = lax.dynamic_slice_in_dim(answer, ahead, width - 1, axis=1)
    places = jnp.append(ahead + jnp.arange(width - 1), answer.shape[1] - 1)
    return jnp.concatenate([stretch, answer[:, -1:]], axis=1), places


def context(
    prompt: Int[Array, "B P"],
    prompt_lengths: Int[Array, " B"],
    answer: Int[Array, "B G"],
    width: int,
) -> Int[Array, "B C"]:
    """Tokens of prompt and answer in natural order, from position 0 on, `width` of them.

    Rows move by their own prompt's length: a gather, but of ids alone.
    """
    if width == prompt.shape[1]:
        return prompt
    place = jnp.arange(width) - prompt_lengths[:, None]
    column = jnp.where(place < 0, jnp.arange(width), prompt.shape[1] + place)
    return jnp.take_along_axis(jnp.concatenate([prompt, answer], axis=1), column, 1, mode="clip")


def place(
    prompt_lengths: Int[Array, " B"],
    places: Int[Array, " W"],
    context: int,
    ahead: Array | int = 0,
) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
    """Rotary positions of the T = W + context columns, and how many columns count.

    Args:
      prompt_lengths: tokens of each row's prompt.
      places: of the window's columns in the generation; its positions follow the prompt's.
      context: columns of prompt and generation in natural order, padding included.
      ahead: how many tokens of the generation the context holds.
    """
    generation = prompt_lengths[:, None] + places
    natural = jnp.broadcast_to(jnp.arange(context), (len(prompt_lengths), context))
    positions = jnp.concatenate([generation, natural], axis=1)
    return positions, len(places) + ahead + prompt_lengths


def predicting(
    first: Array | int, length: int, shift: bool, before: Int[Array, " B"] | None = None
) -> Callable[[Array], Array]:
    """Picks, of arrays [B, columns, ...], those columns whose outputs predict a block's tokens.

    Args:
      first: the block's first column.
      length: tokens of the block.
      shift: a token is predicted at the one before it (`Family.shift`).
      before: with `shift`, the column before the block, in every row its own; None: not among the
        columns. The block's first token is known then, and its own column only fills the place.
    """

    def pick(x: Array) -> Array:
        if not shift:
            return lax.dynamic_slice_in_dim(x, first, length, axis=1)
        if before is None:
            head = lax.dynamic_slice_in_dim(x, first, 1, axis=1)
        else:  # row by row (vmap): stays on the devices that have the row
            head = jax.vmap(lambda row, i: lax.dynamic_slice_in_dim(row, i, 1))(x, before)
        tail = lax.dynamic_slice_in_dim(x, first, length - 1, axis=1)
        return jnp.concatenate([head, tail], axis=1)

    return pick


def column_before(
    segment: Segment, block: Array | int, prompt_lengths: Int[Array, " B"]
) -> Int[Array, " B"]:
    """The column before `block` in a full pass, in each row: of the window, or where the block
    is its first, of the context."""
    done = segment.done(block)
    behind = segment.window + prompt_lengths + segment.ahead(block) - 1
    return jnp.where(done > 0, done - 1, behind)


def layout(
    prompt_lengths: Int[Array, " B"], gen_length: int, prompt_width: int
) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
    """`place` where the window is the whole generation: [generation | prompt | right pad].

    Args:
      prompt_lengths: tokens of each row's prompt, at most `prompt_width`.
      gen_length: columns of the generation.
      prompt_width: columns of the prompt and its padding.
    """
    return place(prompt_lengths, jnp.arange(gen_length), prompt_width)
