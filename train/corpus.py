"""`python -m train.corpus OUT --rows N --seed S --tokenizer DIR`: tokenised training rows.

OUT is what train/data.py reads: tokens.npy (uint16 [rows, width]), prompt_length.npy, length.npy
and meta.json. The rows depend on (seed, rows, tokenizer, gsm8k) alone, not on the number of
processes: they are made in shards, each with its own random stream. `--held-out N` instead writes N
problems that no training set can contain, as JSON lines {"question", "answer", "solution"}, into
the file OUT.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from r2jax.cli import Parser, run
from train.data import check_place, save_corpus
from train.gsm8k import read_gsm8k
from train.problems import problem
from train.tokenizer import END, MASK, TURN_END, chat_prompt
from train.wording import solution

SHARD = 4096
PROMPT, ANSWER = 160, 128
"""Most tokens of a prompt (template included) and of an answer (end of turn included)."""
WORDINGS = 2
"""Wordings of one problem: half the generation time, and the same arithmetic said twice."""
GSM8K_SHARE = 0.05


class Shard(NamedTuple):
    """Rows [n, PROMPT + ANSWER] and their lengths; `dropped` counts what did not fit."""

    tokens: np.ndarray
    prompt_length: np.ndarray
    length: np.ndarray
    long_prompts: int
    long_answers: int


@functools.cache
def _tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


@functools.cache
def _human(path: Path | None) -> list[tuple[str, str]]:
    return read_gsm8k(path) if path else []


def make_shard(index: int, rows: int, seed: int, tokenizer: Path, gsm8k: Path | None) -> Shard:
    """One shard: a pure function of its arguments."""
    rng = Random(f"corpus {seed} {index}")
    encoder, human = _tokenizer(tokenizer), _human(gsm8k)
    end = encoder.token_to_id(END)
    tokens = np.full((rows, PROMPT + ANSWER), end, np.uint16)
    prompt_length, length = np.zeros(rows, np.uint16), np.zeros(rows, np.uint16)
    done = long_prompts = long_answers = 0
    while done < rows:
        texts: list[str] = []
        for _ in range(512):
            if human and rng.random() < GSM8K_SHARE * WORDINGS:
                question, answer = human[int(rng.random() * len(human))]
                answers = [answer]
            else:
                found = problem(rng)
                question = found.question
                answers = [solution(found, rng) for _ in range(WORDINGS)]
            texts.append(chat_prompt(question))
            texts += [f"{answer}{TURN_END}" for answer in answers]
        prompt: list[int] = []
        for encoded in encoder.encode_batch_fast(texts, add_special_tokens=False):
            ids = encoded.ids
            if ids[0] == 0:  # <|startoftext|>: a prompt, the answers follow
                prompt = ids
                long_prompts += len(ids) > PROMPT
            elif len(prompt) > PROMPT or done == rows:
                continue
            elif len(ids) > ANSWER:
                long_answers += 1
            else:
                whole = len(prompt) + len(ids)
                tokens[done, : len(prompt)] = prompt
                tokens[done, len(prompt) : whole] = ids
                prompt_length[done], length[done] = len(prompt), whole
                done += 1
    return Shard(tokens, prompt_length, length, long_prompts, long_answers)


def _make(arguments: tuple[int, int, int, Path, Path | None]) -> Shard:
    return make_shard(*arguments)


def write_corpus(
    out: Path, rows: int, seed: int, tokenizer: Path, gsm8k: Path | None, processes: int
) -> None:
    """Make the rows in parallel and write them; OUT appears only when complete."""
    encoder = _tokenizer(tokenizer)
    ids = {name: encoder.token_to_id(token) for name, token in (("mask_id", MASK), ("eos_id", END))}
    tokens = np.empty((rows, PROMPT + ANSWER), np.uint16)
    prompt_length, length = np.zeros(rows, np.uint16), np.zeros(rows, np.uint16)
    jobs = [
        (index, min(SHARD, rows - index * SHARD), seed, tokenizer, gsm8k)
        for index in range(-(-rows // SHARD))
    ]
    done = long_prompts = long_answers = 0
    start = time.perf_counter()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process: they fill the cores
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for shard in pool.imap(_make, jobs):
            part = slice(done, done + len(shard.tokens))
            tokens[part], prompt_length[part] = shard.tokens, shard.prompt_length
            length[part] = shard.length
            done = part.stop
            long_prompts += shard.long_prompts
            long_answers += shard.long_answers
    meta = {
        "vocab_size": encoder.get_vocab_size(),
        **ids,
        "pad_id": ids["eos_id"],
        "rows": rows,
        "seed": seed,
        "gsm8k_share": GSM8K_SHARE if gsm8k else 0,
    }
    save_corpus(out, tokens, prompt_length, length, meta)
    seconds = time.perf_counter() - start
    points = (1, 10, 25, 50, 75, 90, 99)
    print(f"{out}: {rows} rows in {seconds:.1f} s ({rows / seconds:.0f} a second)")
    for name, values in (("prompt", prompt_length), ("answer", length - prompt_length)):
        found = np.percentile(values, points).astype(int).tolist()
        print(f"  {name} tokens at {points} %: {found}")
    print(f"  dropped: {long_prompts} prompts, {long_answers} answers that were too long")


def held_out(count: int, seed: int, tokenizer: Path | None = None) -> list[dict[str, str]]:
    """Distinct held-out problems, none of whose questions can occur in a training set.

    With a tokenizer, only problems whose prompt and solution fit into a row.
    """
    rng = Random(f"held out {seed}")
    found: dict[str, dict[str, str]] = {}
    while len(found) < count:
        drawn = problem(rng, held_out=True)
        text = solution(drawn, rng)
        if tokenizer is not None:
            encode = _tokenizer(tokenizer).encode
            if len(encode(chat_prompt(drawn.question)).ids) > PROMPT:
                continue
            if len(encode(text + TURN_END).ids) > ANSWER:
                continue
        row = {"question": drawn.question, "answer": drawn.answer, "solution": text}
        found.setdefault(drawn.question, row)
    return list(found.values())


def main() -> None:
    """The command line."""
    parser = Parser(prog="python -m train.corpus", description=__doc__)
    parser.add_argument("out", type=Path, help="directory (or the file of --held-out)")
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, required=True, help="its directory")
    parser.add_argument("--gsm8k", type=Path, help="gsm8k train, jsonl or jsonl.gz (optional)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--held-out", type=int, metavar="N", help="write held-out problems")
    arguments = parser.parse_args()
    for name in ("rows", "processes"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if not (arguments.tokenizer / "tokenizer.json").is_file():
        parser.error(f"--tokenizer: no tokenizer.json in {arguments.tokenizer}")
    if arguments.gsm8k is not None and not arguments.gsm8k.is_file():
        parser.error(f"--gsm8k: {arguments.gsm8k} is not a file")
    if arguments.held_out is not None:
        rows = held_out(arguments.held_out, arguments.seed, arguments.tokenizer)
        aside = arguments.out.with_name(f"{arguments.out.name}.part")
        aside.write_text("".join(json.dumps(row) + "\n" for row in rows))
        aside.rename(arguments.out)
        return
    check_place(arguments.out)
    arguments.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    write_corpus(
        arguments.out,
        arguments.rows,
        arguments.seed,
        arguments.tokenizer,
        arguments.gsm8k,
        arguments.processes,
    )


if __name__ == "__main__":
    sys.exit(run("python -m train.corpus", main))
