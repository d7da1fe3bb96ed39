"""Comparing traces; and one made up for the viewer: every rule, and tokens that try to break out of
a page."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import r2jax
from r2jax import viewer
from r2jax.decode import DecodeOutput
from r2jax.denoise import Counts, RuleCounts
from r2jax.text import TextOutput
from r2jax.trace import AFTER_EOS, CONFIDENCE_CLUSTER, TEMPORAL, TOKEN_CLUSTER, TRANSFER

MASK, EOS = 0, 1
TEXTS = [
    *("<mask>", "<|end|>", "</script><script>document.title='owned'</script>", " apples"),
    *("<!--<img src=x onerror=\"document.title='owned'\">", "\"'`\\", "\n", "  ", "", "\x00\x1b"),
    *("שלום", "\u202eevil", "\u2028", "{{data}} &lt;", "é", "\U0001f469\u200d\U0001f52c", "\ufffd"),
    *("end", "<b>bold</b>"),
]
PROMPT = "</script><h1>Hi</h1> {{script}} \u202e $& 'q' \"q\"\nשלום"


class Tokenizer:
    """As much of one as the viewer asks for."""

    all_special_ids = (EOS,)

    def decode(self, ids: list[int]) -> str:
        return TEXTS[ids[0]]


def assert_same(a: Any, b: Any) -> None:
    """Of trees of arrays: exactly, but confidences as near as sums in another order are."""

    def compare(x: Any, y: Any) -> None:
        x, y = np.asarray(x), np.asarray(y)
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 if x.dtype == np.float32 else 0)

    jax.tree.map(compare, a, b)


def text_output(raw: DecodeOutput, answer: int) -> TextOutput:
    """Of one row, whose answer has so many tokens."""
    tokens = np.asarray(raw.tokens)[0, :answer].tolist()
    return TextOutput(
        texts=["".join(TEXTS[token % len(TEXTS)] for token in tokens)],
        tokens=[tokens],
        nfe=np.asarray(raw.nfe),
        refreshes=np.asarray(raw.refreshes),
        counts=raw.counts,
        prompt_lengths=[3],
        output=raw,
    )


def output(
    tokens: list[int], steps: list[list[tuple[int, int]]], length: int, answer: int
) -> TextOutput:
    """An answer of which the k-th forward commits the (position, rule)s of `steps[k]`, with
    predictions that are right from the start and confidences that rise."""
    gen, nfe, most = len(tokens), len(steps), len(tokens)
    states = np.full((1, most, gen), -1, np.int32)
    blocks = np.full((1, most), -1, np.int32)
    predictions = np.full((1, most, length), -1, np.int32)
    confidences = np.full((1, most, length), -1, np.float32)
    by = np.full((1, gen), -1, np.int32)
    now = np.full(gen, MASK, np.int32)
    for k, committed in enumerate(steps):
        block = min(position for position, rule in committed if rule != AFTER_EOS) // length
        states[0, k], blocks[0, k] = now, block
        predictions[0, k] = tokens[block * length :][:length]
        confidences[0, k] = (np.arange(length) + 1) / (length + 1) * (k + 1) / nfe
        for position, rule in committed:
            now[position], by[0, position] = tokens[position], rule
    none: Any = np.zeros(1, np.int32)
    zero = RuleCounts(none, none, none)
    fields: dict[str, Any] = {
        "tokens": now[None],
        "nfe": np.array([nfe], np.int32),
        "refreshes": np.array([gen // length], np.int32),
        "reported": np.array([nfe], np.int32),
        "counts": Counts(zero, zero),
        "states": states,
        "blocks": blocks,
        "predictions": predictions,
        "confidences": confidences,
        "committed_by": by,
    }
    return text_output(DecodeOutput(**fields), answer)


TOKENS = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 1, 1, 1, 1, 1, 1, 1]
SLOW = output(TOKENS, [[(i, TRANSFER)] for i in range(24)], length=8, answer=17)
assert SLOW.output.predictions is not None
np.asarray(SLOW.output.predictions)[0, :8, 3] = 18  # the fourth token is not what was most likely
FAST = output(
    TOKENS,
    [
        [(1, TRANSFER), (0, TRANSFER)],
        [(2, TRANSFER), (3, CONFIDENCE_CLUSTER), (4, CONFIDENCE_CLUSTER)],
        [(5, TOKEN_CLUSTER), (6, TEMPORAL), (7, TEMPORAL)],
        [(i, TRANSFER) for i in range(8, 16)] + [(i, AFTER_EOS) for i in range(16, 24)],
    ],
    length=8,
    answer=17,
)
OUTPUTS = {"slow": SLOW, "fast </h2>": FAST}
CONFIG = r2jax.DecodeConfig(gen_length=24, block_length=8)
TOKENIZER: Any = Tokenizer()


def make_page(
    outputs: dict[str, TextOutput] = OUTPUTS, row: int = 0, tokenizer: Any = TOKENIZER
) -> str:
    """Of row `row` of these outputs."""
    configs = dict.fromkeys(outputs, CONFIG)
    return viewer.page(outputs, row, tokenizer, prompt=PROMPT, configs=configs, about="<made up>")
