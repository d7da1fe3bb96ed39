"""Training data of candidates: `python -m train.select candidates.jsonl --by min --output DIR`.

One candidate a prompt: the one of lowest R_total (the paper's), of highest or a random one (its
controls), of those with the right answer alone if so asked; or the reference answers themselves.
DIR is what `python -m train.sft --corpus` reads, with the chosen candidates as selected.jsonl
beside it.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from rich.console import Console
from rich.table import Table

import r2jax
from r2jax.checkpoint import open_checkpoint, resolve
from r2jax.cli import Parser, run
from r2jax.text import CHATS, check_tokenizer, encode
from train.data import check_place, save_corpus

By = Literal["min", "max", "random", "reference"]
_FIELDS = (
    "prompt_index", "candidate", "prompt", "text", "tokens", "ended", "correct", "r_total", "nfe",
)  # fmt: skip


def read_candidates(path: Path) -> list[dict[str, Any]]:
    """What `train.collect` wrote.

    Raises:
      ValueError: a line that is no candidate, or none at all.
      OSError: the file cannot be read.
    """
    rows = []
    with path.open(encoding="utf-8") as lines:
        for i, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            fields = row if isinstance(row, dict) else {}
            if absent := [name for name in _FIELDS if name not in fields]:
                raise ValueError(
                    f"{path}, line {i}: no candidate of train.collect: it lacks {', '.join(absent)}"
                )
            rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no candidates")
    return rows


def select(
    rows: Iterable[dict[str, Any]], by: By, *, correct_only: bool, seed: int
) -> Iterator[dict[str, Any]]:
    """One candidate a prompt, in the order of prompts; prompts without a fit one are left out.

    Args:
      rows: candidates; those of a prompt need not follow each other.
      by: "min" and "max" of R_total (equals: fewer, or more, forwards, then the first), "random"
        (each prompt with its own stream), or "reference": the first, whose reference is used.
      correct_only: only candidates that were graded as right are fit.
      seed: of "random".
    """
    ordered = sorted(rows, key=lambda row: (row["prompt_index"], row["candidate"]))
    for index, group in itertools.groupby(ordered, key=lambda row: row["prompt_index"]):
        fit = [row for row in group if row["correct"] or not correct_only]
        if not fit:
            continue
        if by == "random":
            yield fit[np.random.default_rng((seed, index)).integers(len(fit))]
        elif by == "reference":
            yield fit[0]
        else:
            sign = 1 if by == "min" else -1
            yield min(fit, key=lambda row: (sign * row["r_total"], sign * row["nfe"]))


def tokenized(
    chosen: list[dict[str, Any]], by: By, tokenizer: Any, end: int, gen_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """Rows [n, width] padded with zeros, the lengths of prompts and of rows, and what the rows were
    made of: answers of more than `gen_length` tokens are left out.

    An answer is followed by `end`, unless it was cut off before it ended.

    Raises:
      ValueError: the tokens are not the tokenizer's.
    """
    prompts = encode(tokenizer, [row["prompt"] for row in chosen])
    if by == "reference":
        texts = [row["reference"] for row in chosen]
        answers = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        answers = [[*answer, end] for answer in answers]
    else:
        for row in chosen:
            if tokenizer.decode(row["tokens"], skip_special_tokens=True) != row["text"]:
                raise ValueError(
                    f"prompt {row['prompt_index']}, candidate {row['candidate']}: its tokens are "
                    "not of this tokenizer; --checkpoint must be what was collected from"
                )
        answers = [[*row["tokens"], end] if row["ended"] else row["tokens"] for row in chosen]
    fit = [0 < len(answer) <= gen_length for answer in answers]
    pairs = [p for p, good in zip(zip(prompts, answers, strict=True), fit, strict=True) if good]
    width = max((len(prompt) + len(answer) for prompt, answer in pairs), default=0)
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    tokens = np.zeros((len(pairs), width), dtype)
    for row, (prompt, answer) in zip(tokens, pairs, strict=True):
        row[: len(prompt)] = prompt
        row[len(prompt) : len(prompt) + len(answer)] = answer
    prompt_length = np.array([len(prompt) for prompt, _ in pairs], np.int32)
    length = np.array([len(prompt) + len(answer) for prompt, answer in pairs], np.int32)
    return tokens, prompt_length, length, [r for r, good in zip(chosen, fit, strict=True) if good]


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m train.select", description=__doc__)
    parser.add_argument("candidates", type=Path, help="written by train.collect")
    parser.add_argument("--by", choices=get_args(By), default="min", help="[min]")
    parser.add_argument("--correct-only", action="store_true", help="of the right ones alone")
    parser.add_argument("--checkpoint", default="llada-gsm-6m", help="whose tokenizer is used")
    parser.add_argument("--gen-length", type=int, help="of an answer [the checkpoint's]")
    parser.add_argument("--seed", type=int, default=0, help="of --by random")
    parser.add_argument("--output", type=Path, required=True, help="directory")
    args = parser.parse_args(argv)

    check_place(args.output)
    if args.gen_length is not None and args.gen_length < 1:
        raise ValueError(f"--gen-length must be at least 1, got {args.gen_length}")
    directory = resolve(args.checkpoint, weights=False)
    sizes = open_checkpoint(resolve(args.checkpoint)).config
    tokenizer = r2jax.load_tokenizer(directory)
    check_tokenizer(tokenizer, sizes)
    gen_length = args.gen_length or r2jax.generation_defaults(args.checkpoint).get("gen_length")
    gen_length = gen_length or r2jax.DecodeConfig().gen_length
    rows = read_candidates(args.candidates)
    if args.correct_only and all(row.get("correct") is None for row in rows):
        raise ValueError(f"--correct-only: {args.candidates} was collected with --grader none")
    if args.by == "reference" and any(row.get("reference") is None for row in rows):
        raise ValueError(f"--by reference: {args.candidates} was collected without --answer-column")

    chosen = list(select(rows, args.by, correct_only=args.correct_only, seed=args.seed))
    vocabulary = tokenizer.get_vocab()
    turns = (vocabulary[chat.end_of_turn] for chat in CHATS if chat.end_of_turn in vocabulary)
    end = next(turns, sizes.eos_id)
    tokens, prompt_length, length, kept = tokenized(chosen, args.by, tokenizer, end, gen_length)
    if not len(tokens):
        raise ValueError(f"{args.candidates}: no prompt has a candidate that is fit")
    meta = {
        **{name: getattr(sizes, name) for name in ("vocab_size", "mask_id", "eos_id", "pad_id")},
        "rows": len(tokens),
        "by": args.by,
        "correct_only": args.correct_only,
        "seed": args.seed,
        "candidates": args.candidates.name,
    }
    save_corpus(args.output, tokens, prompt_length, length, meta, kept)
    _report(rows, kept, len(chosen), args.output)


def _report(rows: list[dict[str, Any]], kept: list[dict[str, Any]], chosen: int, out: Path) -> None:
    prompts = len({row["prompt_index"] for row in rows})
    table = Table("", "candidates", "R_total", "NFE", "right %")
    for name, part in (("all", rows), ("chosen", kept)):
        verdicts = [row["correct"] for row in part if row.get("correct") is not None]
        table.add_row(
            name,
            f"{len(part):,}",
            f"{np.mean([row['r_total'] for row in part]):.2f}",
            f"{np.mean([row['nfe'] for row in part]):.2f}",
            f"{100 * np.mean(verdicts):.1f}" if verdicts else "-",
        )
    console = Console(width=100, highlight=False)
    console.print(table)
    console.print(
        f"wrote {out}: {len(kept)} rows of {prompts} prompts ({prompts - chosen} had no candidate "
        f"that is fit, {chosen - len(kept)} answers were too long)",
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(run("python -m train.select", main))
