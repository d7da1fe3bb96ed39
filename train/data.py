"""Training rows: a corpus of tokenised prompts and answers, and which of them a step reads.

A corpus is a directory (`python -m train.corpus` and `python -m train.select` write one):
    tokens.npy         [rows, width] unsigned: prompt, answer with its end-of-turn token, padding
    prompt_length.npy  [rows]: tokens of the prompt, the assistant header included
    length.npy         [rows]: tokens of prompt and answer
    meta.json          vocab_size, mask_id, eos_id, pad_id, ...
It stays on the device as it is stored (3 million rows of 330 uint16 are 2 GB), so that a step costs
the host nothing; the step's rows are cut into prompt and answer there.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int

from r2jax.config import ModelConfig


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens", "prompt_length", "length"],
    meta_fields=["prompt_width", "answer_width", "pad_id"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """Rows as stored, and the widths that a batch of them has."""

    tokens: Int[Array, "rows width"] | np.ndarray
    prompt_length: Int[Array, " rows"] | np.ndarray
    length: Int[Array, " rows"] | np.ndarray
    prompt_width: int
    answer_width: int
    pad_id: int

    @property
    def rows(self) -> int:
        return self.tokens.shape[0]

    def split(self, held_out: int) -> tuple[Corpus, Corpus]:
        """All rows but the last `held_out`, and those."""
        cut = self.rows - held_out
        fields = ("tokens", "prompt_length", "length")
        return (
            dataclasses.replace(self, **{f: getattr(self, f)[:cut] for f in fields}),
            dataclasses.replace(self, **{f: getattr(self, f)[cut:] for f in fields}),
        )


class Batch(NamedTuple):
    """Rows cut in two, each part padded."""

    prompt: Int[Array, "B P"]
    prompt_length: Int[Array, " B"]
    answer: Int[Array, "B G"]
    answer_length: Int[Array, " B"]


def take(corpus: Corpus, rows: Int[Array, " B"] | np.ndarray) -> Batch:
    """The rows of these indices as a batch."""
    tokens = jnp.asarray(corpus.tokens)[rows].astype(jnp.int32)
    prompt_length = jnp.asarray(corpus.prompt_length)[rows].astype(jnp.int32)
    length = jnp.asarray(corpus.length)[rows].astype(jnp.int32)

    def cut(start: Array, stop: Array, width: int) -> Array:
        column = start[:, None] + jnp.arange(width)
        inside = jnp.take_along_axis(tokens, jnp.minimum(column, tokens.shape[1] - 1), axis=1)
        return jnp.where(column < stop[:, None], inside, corpus.pad_id)

    return Batch(
        cut(jnp.zeros_like(length), prompt_length, corpus.prompt_width),
        prompt_length,
        cut(prompt_length, length, corpus.answer_width),
        length - prompt_length,
    )


def check_place(directory: Path) -> None:
    """Refuse, with a ValueError, to put a corpus where something else stands."""
    if directory.exists() and not (directory / "prompt_length.npy").is_file():
        raise ValueError(f"{directory} exists and is no corpus; it is not replaced")
    if not directory.absolute().name:
        raise ValueError(f"{directory} is no name for a directory")


def save_corpus(
    directory: Path,
    tokens: np.ndarray,
    prompt_length: np.ndarray,
    length: np.ndarray,
    meta: dict[str, Any],
    selected: Sequence[dict[str, Any]] = (),
) -> None:
    """Write a corpus; the directory appears, instead of an older corpus, when it is complete.

    `selected`, if any, are what the rows were made of; they are kept as selected.jsonl.

    Raises:
      ValueError: the directory exists and is no corpus.
    """
    check_place(directory)
    aside = directory.with_name(f"{directory.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    np.save(aside / "tokens.npy", tokens)
    np.save(aside / "prompt_length.npy", prompt_length)
    np.save(aside / "length.npy", length)
    (aside / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    if selected:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in selected]
        (aside / "selected.jsonl").write_text("".join(lines), encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    aside.rename(directory)


def read_corpus(directory: Path, model: ModelConfig, answer_width: int) -> Corpus:
    """Read and check a corpus.

    Args:
      directory: as `save_corpus` writes it.
      model: what it must have been tokenised for.
      answer_width: positions of the answer area (gen_length).

    Raises:
      ValueError: it is empty, of another tokenizer, or its rows do not fit; by name and number.
      FileNotFoundError: a file is missing.
    """
    meta = json.loads((directory / "meta.json").read_text())
    for name in ("vocab_size", "mask_id", "eos_id", "pad_id"):
        if meta.get(name) != getattr(model, name):
            raise ValueError(
                f"{directory}/meta.json: {name} is {meta.get(name)!r}, the model's is "
                f"{getattr(model, name)}"
            )
    tokens = np.load(directory / "tokens.npy", mmap_mode="r")
    prompt_length = np.load(directory / "prompt_length.npy")
    length = np.load(directory / "length.npy")
    if tokens.ndim != 2 or not len(tokens):
        raise ValueError(f"{directory}/tokens.npy: no rows (shape {tokens.shape})")
    if not prompt_length.shape == length.shape == tokens.shape[:1]:
        raise ValueError(
            f"{directory}: {len(tokens)} rows, but {prompt_length.shape} prompt lengths and "
            f"{length.shape} lengths"
        )
    for what, wrong in (
        ("an empty prompt", prompt_length < 1),
        ("an empty answer", length <= prompt_length),
        (f"more tokens than the {tokens.shape[1]} columns", length > tokens.shape[1]),
        (
            f"an answer longer than gen_length = {answer_width}",
            length.astype(np.int64) - prompt_length > answer_width,
        ),
    ):
        if wrong.any():
            raise ValueError(
                f"{directory}: {int(wrong.sum())} rows have {what}, first row {int(wrong.argmax())}"
            )
    # Whole rows are a multiple of 64 columns: tile sizes of the attention kernels.
    whole = -(-(int(prompt_length.max()) + answer_width) // 64) * 64
    if whole > model.max_sequence_length:
        raise ValueError(
            f"{directory}: rows of {whole} columns (longest prompt {int(prompt_length.max())}, "
            f"answer {answer_width}) exceed max_sequence_length = {model.max_sequence_length}"
        )
    return Corpus(
        tokens=np.asarray(tokens),
        prompt_length=prompt_length,
        length=length,
        prompt_width=whole - answer_width,
        answer_width=answer_width,
        pad_id=model.pad_id,
    )


def row_indices(seed: int, first: int, steps: int, batch: int, rows: int) -> np.ndarray:
    """Which rows steps first ... first + steps - 1 read, int32 [steps, batch].

    Every epoch visits every row once in its own order; a batch may span two epochs. A pure function
    of its arguments, so that a resumed run reads what the uninterrupted one would have.
    """
    position = np.arange(first * batch, (first + steps) * batch, dtype=np.int64)
    epoch, offset = np.divmod(position, rows)
    out = np.empty(len(position), np.int32)
    for number in np.unique(epoch):
        chosen = epoch == number
        out[chosen] = _epoch_order(seed, int(number), rows)[offset[chosen]]
    return out.reshape(steps, batch)


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(rows).astype(np.int32)
