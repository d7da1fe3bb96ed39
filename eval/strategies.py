"""Accuracy, NFE and time of decoding strategies on worked problems: `python -m eval.strategies`.

Reads problems (JSONL of {"question", "answer"}), decodes all of them with each strategy in batches,
grades the number after "####", and prints a table; `--output` keeps every number and the
circumstances as JSON.
"""

from __future__ import annotations

import json
import platform
import sys
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import r2jax
from r2jax.checkpoint import open_checkpoint, resolve
from r2jax.cli import Parser, check_output, run, write_json
from r2jax.clock import Clock
from r2jax.grading import is_correct
from r2jax.quantize import Quantization

STRATEGIES = ("vanilla", "fast_dllm", "r2")


def evaluate(
    model: r2jax.Transformer,
    tokenizer: Any,
    problems: list[dict[str, str]],
    config: r2jax.DecodeConfig,
    batch: int,
    advance: Any = lambda: None,
) -> dict[str, Any]:
    """Decode all problems and grade them.

    Args:
      model, tokenizer: from `r2jax.load` and `r2jax.load_tokenizer`.
      problems: {"question", "answer"} each.
      config: the strategy.
      batch: rows decoded together; the last batch is filled up by repeating its first row.
      advance: called after each batch.

    Returns:
      Accuracy and its standard error, means per problem, seconds of all batches with compile time
      apart, and the answers.
    """
    rows: list[dict[str, Any]] = []
    running = compiling = 0.0
    for i in range(0, len(problems), batch):
        part = problems[i : i + batch]
        prompts = [p["question"] for p in part]
        prompts += prompts[:1] * (batch - len(prompts))
        with Clock() as clock:
            out = r2jax.generate_text(model, tokenizer, prompts, config)
        running += clock.running
        compiling += clock.compiling
        for j, problem in enumerate(part):
            rows.append(
                {
                    "question": problem["question"],
                    "answer": problem["answer"],
                    "text": out.texts[j],
                    "correct": is_correct(out.texts[j], problem["answer"]),
                    "nfe": int(out.nfe[j]),
                    "actual": int(out.counts.actual.total[j]),
                    "potential": int(out.counts.potential.total[j]),
                }
            )
        advance()
    right = np.array([row["correct"] for row in rows], float)
    blocks = config.gen_length // (config.block_length or config.gen_length)

    def mean(name: str) -> float:
        return float(np.mean([row[name] for row in rows]))

    return {
        "config": {k: v for k, v in vars(config).items()},
        "problems": len(rows),
        "accuracy": float(right.mean()),
        "accuracy_standard_error": float(np.sqrt(right.mean() * (1 - right.mean()) / len(rows))),
        "nfe": mean("nfe"),
        "nfe_per_block": mean("nfe") / blocks,
        "r_total_actual": mean("actual"),
        "r_total_potential": mean("potential"),
        "seconds": running,
        "compile_seconds": compiling,
        "answers": rows,
    }


def read_problems(path: str) -> list[dict[str, str]]:
    """The problems of a JSONL file.

    Raises:
      ValueError: no problems, or a line that is no object with question and answer.
    """
    problems = []
    with open(path, encoding="utf-8") as file:
        for i, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                problems.append({field: str(row[field]) for field in ("question", "answer")})
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f'{path}, line {i}: must be {{"question": ..., "answer": ...}}'
                ) from None
    if not problems:
        raise ValueError(f"{path} holds no problems")
    return problems


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m eval.strategies", description=__doc__)
    parser.add_argument("--checkpoint", default="llada-gsm-6m", help="path, hub id or bundled name")
    parser.add_argument("--problems", required=True, help="JSONL with question and answer")
    parser.add_argument("--limit", type=int, help="only the first N")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--batch", type=int, default=128, help="rows decoded together [128]")
    parser.add_argument("--gen-length", type=int, help="default: the checkpoint's")
    parser.add_argument("--block-length", type=int, help="default: the checkpoint's")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="default: as stored")
    parser.add_argument(
        "--quantize",
        default="none",
        choices=["none", *get_args(Quantization)],
        help="the projections in 8 bits [none: as stored]",
    )
    parser.add_argument("--output", help="JSON with every number and answer")
    args = parser.parse_args(argv)

    if args.batch < 1 or (args.limit is not None and args.limit < 1):
        raise ValueError("--batch and --limit must be at least 1")
    check_output(args.output)
    problems = read_problems(args.problems)[: args.limit]
    lengths = {"gen_length": args.gen_length, "block_length": args.block_length}
    defaults = {
        **r2jax.generation_defaults(args.checkpoint),
        **{name: value for name, value in lengths.items() if value is not None},
    }
    configs = {name: getattr(r2jax.DecodeConfig, name)(**defaults) for name in args.strategies}
    dtype = jnp.dtype(args.dtype) if args.dtype else None
    quantize = None if args.quantize == "none" else args.quantize
    model = r2jax.load(args.checkpoint, dtype, quantize=quantize)
    tokenizer = r2jax.load_tokenizer(args.checkpoint)
    batch = min(args.batch, len(problems))

    results = {}
    with Progress(console=Console(stderr=True)) as progress:
        for name, config in configs.items():
            task = progress.add_task(name, total=-(-len(problems) // batch))
            results[name] = evaluate(
                model, tokenizer, problems, config, batch, lambda t=task: progress.advance(t)
            )
    table = Table(
        "strategy", "accuracy %", "± s.e.", "NFE", "NFE/block", "R actual", "R potential", "s"
    )
    for name, r in results.items():
        table.add_row(
            name,
            f"{100 * r['accuracy']:.1f}",
            f"{100 * r['accuracy_standard_error']:.1f}",
            f"{r['nfe']:.1f}",
            f"{r['nfe_per_block']:.2f}",
            f"{r['r_total_actual']:.1f}",
            f"{r['r_total_potential']:.1f}",
            f"{r['seconds']:.2f}",
        )
    Console(width=100).print(table)
    result = {
        "checkpoint": args.checkpoint,
        "problems": args.problems,
        "batch": batch,
        "dtype": str(model.dtype),
        "quantize": quantize or open_checkpoint(resolve(args.checkpoint)).quantized,
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "strategies": results,
    }
    write_json(args.output, result)


if __name__ == "__main__":
    sys.exit(run("python -m eval.strategies", main))
