"""What a traced generation remembers of every forward: the answer before it, its block, what it
predicted there, and which rule committed each position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

# Values of `committed_by`.
TRANSFER, CONFIDENCE_CLUSTER, TOKEN_CLUSTER, TEMPORAL, AFTER_EOS = range(5)


class Trace(NamedTuple):
    """Of each row: entry k is of its k-th own forward, whatever its batch does; -1 in unused
    entries."""

    states: Int[Array, "B K G"]
    """The answer before the forward."""
    blocks: Int[Array, "B K"]
    """The block that it predicted."""
    predictions: Int[Array, "B K L"]
    """The most likely token of each position of the block, written ones too."""
    confidences: Float[Array, "B K L"]
    """Its probability, whatever is sampled or ranked by. The last digits depend on the shapes of
    the products: on the batch and the mesh."""
    committed_by: Int[Array, "B G"]
    """Which rule wrote each position; -1: none."""

    @classmethod
    def start(cls, batch: int, forwards: int, gen_length: int, block_length: int) -> Trace:
        """Nothing yet, and room for so many forwards a row."""
        block = jnp.full((batch, forwards, block_length), -1, jnp.int32)
        return cls(
            states=jnp.full((batch, forwards, gen_length), -1, jnp.int32),
            blocks=block[..., 0],
            predictions=block,
            confidences=block.astype(jnp.float32),
            committed_by=jnp.full((batch, gen_length), -1, jnp.int32),
        )

    def add(
        self,
        index: Int[Array, " B"],
        needed: Bool[Array, " B"],
        block: Int[Array, ""] | int,
        answer: Int[Array, "B G"],
        top: Int[Array, "B L"],
        top_confidence: Float[Array, "B L"],
        committed: Mapping[int, Bool[Array, "B L"]],
    ) -> Trace:
        """With one forward more.

        Args:
          index: how many forwards each row has had.
          needed: rows that this one was for; nothing is kept of the others.
          block: that it predicted.
          answer: before it.
          top: the block's most likely tokens.
          top_confidence: their probabilities.
          committed: the block's positions that each rule has written.
        """
        index = jnp.where(needed, index, self.states.shape[1])  # out of bounds: dropped
        blocks = jnp.full(index.shape, block, jnp.int32)
        # Row by row (vmap): what is kept of a row stays on the devices that have the row.
        kept = jax.vmap(
            lambda kept, i, new: tuple(
                x.at[i].set(one, mode="drop") for x, one in zip(kept, new, strict=True)
            )
        )(
            (self.states, self.blocks, self.predictions, self.confidences),
            index,
            (answer, blocks, top, top_confidence),
        )
        start, length = block * top.shape[1], top.shape[1]
        by = lax.dynamic_slice_in_dim(self.committed_by, start, length, axis=1)
        for rule, positions in committed.items():
            by = jnp.where(positions, rule, by)
        by = lax.dynamic_update_slice_in_dim(self.committed_by, by, start, axis=1)
        return Trace(*kept, committed_by=by)

    def end(self, filled: Bool[Array, "B G"]) -> Trace:
        """With the positions that an end-of-sequence token ahead of them has filled."""
        by = jnp.where(filled & (self.committed_by < 0), AFTER_EOS, self.committed_by)
        return self._replace(committed_by=by)
