"""Where an answer ends, and how many tokens it has.

lm-eval's tasks take the habits of the evaluators that the papers' numbers come from (GATECH-EIC/
R2-dLLM, commit 6d06bb2: llada/eval_llada.py and dream/eval.py), which differ by family. They never
look at LLaDA's end of a turn: special tokens are left out of the text, what follows them stays.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from r2jax.text import decode_answers

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerFast

COUNTED = {
    "llada": "the answer cut at the task's stop strings, special tokens included, tokenized again, "
    "without end-of-text tokens (as llada/eval_llada.py of R2-dLLM)",
    "Dream": "all gen_length tokens but end-of-text ones, before any cut (as dream/eval.py of "
    "R2-dLLM)",
    "whole": "all gen_length tokens but end-of-text ones (as llada/eval_llada.py of R2-dLLM on "
    "HumanEval chats, which are not cut at stop strings)",
    "plain": "the answer before its first end token",
    "scored": "tokens of the given answers",
}

FORWARDS = {
    "llada": "forwards that the row needed: refreshes (full passes) and block steps",
    "Dream": "forwards that the row needed: refreshes (full passes), which Dream's own program "
    "does not count, and block steps",
}


class Answer(NamedTuple):
    """What an evaluator sees of a generation."""

    text: str
    tokens: int


def as_original(
    tokenizer: PreTrainedTokenizerFast,
    ids: Sequence[int],
    until: Sequence[str],
    *,
    model_type: str,
    eos_id: int,
    whole: bool = False,
) -> Answer:
    """The answer as the family's original evaluator takes it.

    Args:
      tokenizer: the checkpoint's.
      ids: all tokens of the generation.
      until: the task's stop strings.
      model_type: the family.
      eos_id: its end of text.
      whole: not cut at the stop strings (HumanEval as a chat: the program stands in a fenced block,
        in which they are legal).
    """
    untyped: Any = tokenizer  # transformers' own types allow every form of result
    counted = sum(token != eos_id for token in ids)
    if model_type == "Dream":
        end = str(tokenizer.convert_ids_to_tokens(eos_id))
        text = untyped.decode(ids).split(end)[0]
        return Answer(text if whole else cut(text, until), counted)
    if whole:
        return Answer(untyped.decode(ids, skip_special_tokens=True), counted)
    again = untyped(cut(untyped.decode(ids, skip_special_tokens=False), until))["input_ids"]
    text = untyped.decode(again, skip_special_tokens=True)
    return Answer(text, sum(token != eos_id for token in again))


def as_text(
    tokenizer: PreTrainedTokenizerFast, ids: np.ndarray, until: Sequence[str], ends: Container[int]
) -> Answer:
    """The answer as `r2jax.generate_text` gives it: cut before the first end token."""
    (text,), (tokens,) = decode_answers(tokenizer, ids[None], ends)
    return Answer(cut(text, until), len(tokens))


def cut(text: str, until: Sequence[str]) -> str:
    """What precedes the first of the stop strings, one after the other, as lm-eval cuts."""
    for stop in until:
        if stop:
            text = text.split(stop)[0]
    return text
