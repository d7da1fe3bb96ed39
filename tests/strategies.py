"""Hypothesis strategies for blocks on which decode rules can be compared with tests/oracle.py.

Values are coarse on purpose. Confidences and thresholds are multiples of 1/16, exact in float32
like their sums: ties and equality with a threshold are common and mean the same in every
arithmetic. Few token ids make runs and streaks. Shapes are arguments, not drawn: a jitted
function compiles once.
Everything shrinks towards nothing masked, token 0 and confidence 1/16.
"""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from jaxtyping import Bool, Float, Int

Array = np.ndarray


@dataclass(frozen=True)
class Blocks:
    """One pass over a batch of blocks."""

    masked: Bool[Array, "N B"]
    tokens: Int[Array, "N B"]  # int32 top-1 ids, 0 .. vocab - 1
    confidence: Float[Array, "N B"]  # float32, 1/16 .. 1
    rest: Float[Array, "N B"]  # float32, 1 / confidence - 1: the same order and the same ties


@dataclass(frozen=True)
class History:
    """Consecutive passes T over a batch of blocks, for rules that remember.

    What is masked before a pass follows from the test: `masked` at first, afterwards what was
    masked before without `taken[t]` (committed by rules that came earlier in pass t) and without
    what the rule under test committed. So a decoded position is never masked again.
    """

    masked: Bool[Array, "N B"]
    taken: Bool[Array, "T N B"]
    tokens: Int[Array, "T N B"]
    confidence: Float[Array, "T N B"]


def sixteenths(low: int = 1, high: int = 16) -> st.SearchStrategy[float]:
    """A threshold on the grid of the confidences, low/16 .. high/16."""
    return st.integers(low, high).map(lambda n: n / 16)


def blocks(rows: int = 8, length: int = 8, vocab: int = 3) -> st.SearchStrategy[Blocks]:
    """A batch of blocks; the masked share differs from row to row, none and all included."""
    shape = (rows, length)
    confidence = _digits(shape, 16).map(_confidence)
    return st.builds(
        lambda masked, tokens, c: Blocks(masked, tokens, c, 1 / c - 1),
        _masks(rows, length), _digits(shape, vocab), confidence,
    )  # fmt: skip


def histories(
    passes: int = 6, rows: int = 8, length: int = 8, vocab: int = 2
) -> st.SearchStrategy[History]:
    """Passes over one batch; one position in eight is taken per pass, two tokens make streaks."""
    shape = (passes, rows, length)
    confidence = _digits(shape, 16).map(_confidence)
    taken = _digits(shape, 8).map(lambda d: d == 7)
    return st.builds(History, _masks(rows, length), taken, _digits(shape, vocab), confidence)


def _digits(shape: tuple[int, ...], base: int) -> st.SearchStrategy[Array]:
    """int32 arrays of 0 .. base - 1, drawn as one string of bytes: far faster than one by one."""
    size = int(np.prod(shape))
    return st.binary(min_size=size, max_size=size).map(
        lambda b: (np.frombuffer(b, np.uint8).reshape(shape) % base).astype(np.int32)
    )


def _confidence(digits: Array) -> Array:
    return ((digits + 1) / 16).astype(np.float32)


def _masks(rows: int, length: int) -> st.SearchStrategy[Array]:
    """Row i is masked where its digits of 0..3 fall below its level of 0..4."""
    return st.builds(
        lambda digits, level: digits < level, _digits((rows, length), 4), _digits((rows, 1), 5)
    )
