"""Collect candidates: `python -m train.collect --prompts train.jsonl --output candidates.jsonl`.

Every prompt is answered several times at a temperature, with R² at the collection thresholds
(arXiv 2604.18995, section 3), and every candidate is kept with its redundancy: R_s (spatial
events), R_t (temporal finalisations) and R_total = R_s + R_t, its forwards and, where the right
answer is known, the verdict. `python -m train.select` then makes training data of them.

Candidates are on the disk as soon as their batch is decoded: the same command goes on where a
killed one stopped. A candidate's noise depends on the seed, the prompt's index and its own number
alone, so in float32 it is the same in batches of any size. Decoding options are those of `r2jax
generate`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import r2jax
from r2jax import digest, options
from r2jax.batches import Batch
from r2jax.checkpoint import open_checkpoint, resolve
from r2jax.cli import Parser, check_output, run
from r2jax.clock import Meter, progress
from r2jax.config import ModelConfig
from r2jax.generate import check_config, check_prompts
from r2jax.grading import is_correct, is_correct_flexibly, last_boxed, same_latex
from r2jax.text import check_tokenizer, decode_answers, encode, with_ends
from r2jax.trace import AFTER_EOS
from train.prompts import Prompt, read_prompts

# The paper's: temperature 0.7, both thresholds 0.8, for Dream 0.85 and nucleus 0.9.
COLLECTION: dict[str, dict[str, Any]] = {
    "llada": {"temperature": 0.7, "spatial_threshold": 0.8, "temporal_threshold": 0.8},
    "Dream": {
        "temperature": 0.7,
        "top_p": 0.9,
        "spatial_threshold": 0.85,
        "temporal_threshold": 0.85,
    },
}
_THRESHOLDS = ("spatial_threshold", "temporal_threshold")


def _same_box(text: str, reference: str) -> bool:
    """Whether the last box is written like the reference's, or like the bare reference."""
    wanted, found = last_boxed(reference) or reference, last_boxed(text)
    return found is not None and same_latex(found, wanted)


# "#### N"; the last number of all, as lm-eval's flexible match; the last box of LaTeX.
GRADERS: dict[str, Callable[[str, str], bool]] = {
    "number": is_correct,
    "flexible": is_correct_flexibly,
    "boxed": _same_box,
}


def main(argv: list[str] | None = None) -> None:
    """The command line, top to bottom in the order things happen."""
    args = parse(sys.argv[1:] if argv is None else argv)
    prompts = read_prompts(
        args.prompts, args.prompt_column, args.answer_column, split=args.split, limit=args.limit
    )
    grade = _grader(args.grader, prompts, args.prompts)
    directory = resolve(args.checkpoint)
    sizes = open_checkpoint(directory).config
    collection = COLLECTION[sizes.model_type]
    if args.task is not None:  # has thresholds of its own
        collection = {k: v for k, v in collection.items() if k not in _THRESHOLDS}
    defaults = {**r2jax.generation_defaults(args.checkpoint), **collection}
    config = options.decode_config(args, defaults, sizes.model_type)
    check_config(config, sizes)
    with progress(f"loading {args.checkpoint}"):
        tokenizer = r2jax.load_tokenizer(directory)
        rows = _tokenized(prompts, tokenizer, sizes, config.gen_length, args.prompts)
        stopping, ends = with_ends(config, tokenizer, sizes, chat=True)
        count = len(prompts) * args.candidates
        settings = {
            "r2jax": r2jax.__version__,
            "checkpoint": digest.of_checkpoint(directory),
            "dtype": args.dtype,
            "quantize": args.quantize,
            "decode": dataclasses.asdict(stopping),
            "seed": args.seed,
            "candidates": args.candidates,
            "grader": args.grader,
            "trajectory": args.trajectory,
            "prompts": digest.of_json(prompts),
        }
        journal = r2jax.Journal(args.output, settings, count)
        model = None
        if len(journal.done) < count:
            model = r2jax.load(directory, args.dtype, quantize=args.quantize)

    def record(batch: Batch, i: int, text: str, tokens: list[int]) -> dict[str, Any]:
        """What is kept of row i of a batch."""
        number = batch.indices[i]
        prompt = prompts[number // args.candidates]
        events = {
            kind: {name: int(getattr(counts, name)[i]) for name in counts._fields}
            for kind, counts in batch.output.counts._asdict().items()
        }
        actual = events["actual"]
        spatial, temporal = actual["confidence"] + actual["token"], actual["temporal"]
        kept = {
            "prompt_index": number // args.candidates,
            "candidate": number % args.candidates,
            "prompt": prompt.text,
            "reference": prompt.reference,
            "text": text,
            "tokens": tokens,
            "ended": len(tokens) < config.gen_length,
            "correct": None if grade is None else grade(text, prompt.reference or ""),
            "nfe": int(batch.output.nfe[i]),
            "refreshes": int(batch.output.refreshes[i]),
            "r_spatial": spatial,
            "r_temporal": temporal,
            "r_total": spatial + temporal,
            "counts": events,
        }
        if args.trajectory:
            kept["decoded_at"] = decoded_at(batch, i, sizes.mask_id)[: len(tokens)]
        return kept

    with journal:
        if model is not None:
            done = frozenset(journal.done)
            repeated = [row for row in rows for _ in range(args.candidates)]
            batches = r2jax.generate_many(
                model,
                repeated,
                stopping,
                batch_size=args.batch_size,
                key=_keys(args.seed, len(prompts), args.candidates),
                skip=done,
                trace=args.trajectory,
            )
            what = f"decoding {args.candidates} x {len(prompts)} prompts"
            with Meter(what, count, len(done)) as meter:
                for batch in batches:
                    texts, tokens = decode_answers(tokenizer, np.asarray(batch.output.tokens), ends)
                    kept = [
                        record(batch, i, *answer)
                        for i, answer in enumerate(zip(texts, tokens, strict=True))
                    ]
                    journal.append(dict(zip(batch.indices, kept, strict=True)))
                    sums = {"R_total": sum(row["r_total"] for row in kept)}
                    if grade is not None:
                        sums["right"] = sum(row["correct"] for row in kept)
                    meter.add(
                        prompts=len(kept),
                        tokens=sum(map(len, tokens)),
                        nfe=int(batch.output.nfe.sum()),
                        seconds=batch.seconds,
                        compiling=batch.compile_seconds,
                        sums=sums,
                    )
        journal.finish()
    print(f"wrote {args.output}: {count} candidates of {len(prompts)} prompts", file=sys.stderr)


def _keys(seed: int, prompts: int, candidates: int) -> jax.Array:
    """A key a row: of the prompt's index and the candidate's number, whatever their numbers."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    of_prompts = fold(jax.random.key(seed), jnp.arange(prompts))
    return jax.vmap(fold, in_axes=(0, None))(of_prompts, jnp.arange(candidates)).reshape(-1)


def decoded_at(batch: Batch, row: int, mask_id: int) -> list[int]:
    """Of each position of an answer, the forward (from 0) that decoded it; after an early end, the
    last one."""
    states, by = np.asarray(batch.output.states)[row], np.asarray(batch.output.committed_by)[row]
    nfe = int(batch.output.nfe[row])
    still = (states[:nfe] == mask_id).sum(axis=0) - 1
    return np.where(by == AFTER_EOS, nfe - 1, still).tolist()


def _grader(name: str, prompts: list[Prompt], source: str) -> Callable[[str, str], bool] | None:
    """How answers are judged; every reference is tried, before any work."""
    if name == "none":
        return None
    grade = GRADERS[name]
    for i, prompt in enumerate(prompts):
        if prompt.reference is None:
            raise ValueError(f"--grader {name} needs --answer-column (or --grader none)")
        try:
            grade("", prompt.reference)
        except ValueError as error:
            raise ValueError(f"{source}, row {i}: --grader {name}: {error}") from None
    return grade


def _tokenized(
    prompts: list[Prompt], tokenizer: Any, sizes: ModelConfig, gen_length: int, source: str
) -> list[np.ndarray]:
    check_tokenizer(tokenizer, sizes)
    names = [f"{source}, row {i}" for i in range(len(prompts))]
    ids = encode(tokenizer, [prompt.text for prompt in prompts], names=names)
    return check_prompts(ids, sizes, gen_length, names)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; what cannot be is refused."""
    parser = Parser(
        prog="python -m train.collect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", default="llada-gsm-6m", help="path, hub id or bundled name")
    parser.add_argument("--prompts", required=True, help="JSONL, parquet or CSV file, or a hub id")
    parser.add_argument("--split", default="train", help="of a data set from the hub [train]")
    parser.add_argument("--prompt-column", default="question", help="[question]")
    parser.add_argument("--answer-column", help="right answers, for the verdict")
    parser.add_argument("--grader", choices=[*GRADERS, "none"], help="[number, or none]")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N prompts")
    parser.add_argument("--candidates", type=int, default=4, metavar="K", help="a prompt [4]")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="rows [64]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="[as stored]")
    parser.add_argument("--quantize", choices=["fp8", "int8"], help="projections in 8 bits")
    parser.add_argument(
        "--trajectory", action="store_true", help="keep at which forward each token was decoded"
    )
    parser.add_argument("--output", required=True, help="JSONL, a candidate a line")
    options.add_decode_options(parser)
    args = parser.parse_args(options.dashes(argv))
    for name in ("candidates", "batch_size", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    options.check_seed(args.seed)
    if args.grader is None:
        args.grader = "none" if args.answer_column is None else "number"
    check_output(args.output)
    return args


if __name__ == "__main__":
    sys.exit(run("python -m train.collect", main))
