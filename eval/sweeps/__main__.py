"""The paper's figures and tables on any checkpoint: `python -m eval.sweeps KIND`.

KIND is one of
  strategies  accuracy against NFE over the strategies (figure 1)
  thresholds  R²'s two thresholds and Fast-dLLM's (figure 7)
  lengths     the length of the answer (figure 8)
  ablation    R²'s rules one by one, and variants of two of them (table 5)
  events      how often R²'s rules fired or would have, by strategy (table 9)

Writes KIND.json, KIND.csv and pictures into the directory `--output`, and a result file for every
configuration into its `points/` (for `python -m eval.compare`). A killed sweep goes on with the
same command; sweeps into one directory share the configurations that they have in common.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

import r2jax
from eval.compare import differences
from eval.strategies import read_problems
from eval.sweeps.pictures import draw
from eval.sweeps.points import KINDS, STRATEGIES, VALUES, Options, Point, strategies
from eval.sweeps.run import Bench, Setting, run_points
from eval.sweeps.summary import points_of, read, show, summarise, write_csv
from r2jax.checkpoint import open_checkpoint, resolve
from r2jax.cli import Parser, run, write_json
from r2jax.decode_config import Task
from r2jax.grading import is_correct
from r2jax.quantize import Quantization


def make_parser() -> Parser:
    """The options."""
    parser = Parser(
        prog="python -m eval.sweeps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--checkpoint", default="llada-gsm-6m", help="path, hub id or bundled name")
    parser.add_argument("--problems", help="JSONL with question and answer")
    parser.add_argument("--limit", type=int, help="only the first N")
    parser.add_argument("--output", required=True, help="directory of all that is written")
    parser.add_argument(
        "--strategies",
        nargs="+",
        choices=STRATEGIES,
        help="of strategies, lengths and events [all; events: all but vanilla, which dwarfs them]",
    )
    parser.add_argument(
        "--values",
        nargs="+",
        type=float,
        help=f"thresholds: bounds [{' '.join(f'{v:g}' for v in VALUES)}]; "
        "lengths: tokens [half, once and twice the checkpoint's]",
    )
    parser.add_argument("--batch-size", type=int, default=128, help="rows decoded together [128]")
    parser.add_argument("--gen-length", type=int, help="default: the checkpoint's")
    parser.add_argument("--block-length", type=int, help="default: the checkpoint's")
    parser.add_argument(
        "--task", choices=get_args(Task), help="the paper's thresholds τ_t, τ_s for it"
    )
    parser.add_argument("--raw", action="store_true", help="no chat template")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="default: as stored")
    parser.add_argument(
        "--quantize",
        default="none",
        choices=["none", *get_args(Quantization)],
        help="the projections in 8 bits [none: as stored]",
    )
    parser.add_argument(
        "--results",
        nargs="+",
        metavar="FILE",
        help="strategies, events: nothing is decoded; of result files such as eval.harness writes",
    )
    parser.add_argument("--plot-only", action="store_true", help="draw KIND.json of --output again")
    return parser


def checked_problems(path: str, limit: int | None) -> list[dict[str, str]]:
    """The problems, each with an answer that can be graded.

    Raises:
      ValueError: one without a number.
    """
    problems = read_problems(path)[:limit]
    for i, problem in enumerate(problems, start=1):
        try:
            is_correct("", problem["answer"])
        except ValueError as error:
            raise ValueError(f"{path}, line {i}: {error}") from None
    if len(problems) < 2:
        raise ValueError(f"{path}: a sweep needs at least two problems, for its standard errors")
    return problems


def make_points(args: argparse.Namespace) -> list[Point]:
    """The sweep's configurations."""
    base: dict[str, Any] = dict(r2jax.generation_defaults(args.checkpoint))
    given = {"gen_length": args.gen_length, "block_length": args.block_length}
    base |= {name: value for name, value in given.items() if value is not None}
    if args.task is not None:
        family = open_checkpoint(resolve(args.checkpoint)).config.model_type
        paper = r2jax.DecodeConfig.r2(task=args.task, model_type=family)
        base |= {n: getattr(paper, n) for n in ("spatial_threshold", "temporal_threshold")}
    names = STRATEGIES[args.kind == "events" :]
    return KINDS[args.kind](Options(base, args.strategies or names, args.values))


def measure(args: argparse.Namespace, command: str) -> tuple[list[Point], list[Path]]:
    """Run the sweep; its points and their result files."""
    if args.batch_size < 1 or (args.limit is not None and args.limit < 1):
        raise ValueError("--batch-size and --limit must be at least 1")
    if args.problems is None:
        raise ValueError("--problems is needed (but with --results or --plot-only)")
    problems = checked_problems(args.problems, args.limit)
    sha256 = hashlib.sha256(Path(args.problems).read_bytes()).hexdigest()
    points = make_points(args)
    named = Path(args.checkpoint)
    setting = Setting(
        checkpoint=named.name if named.exists() else args.checkpoint,
        directory=resolve(args.checkpoint),
        dtype=args.dtype,
        quantize=None if args.quantize == "none" else args.quantize,
        problems=problems,
        source=f"{Path(args.problems).name}, sha256 {sha256}",
        task=Path(args.problems).stem,
        limit=args.limit,
        batch_size=min(args.batch_size, len(problems)),
        chat=not args.raw,
        command=command,
    )
    bench = Bench(setting, points)
    path = Path(args.output, f"{args.kind}.json")
    if path.exists():
        check_same(path, bench.circumstances)
    return points, run_points(points, bench, Path(args.output))


def check_same(path: Path, circumstances: dict[str, Any]) -> None:
    """Refuse to replace a sweep by one of another model, other problems, ...

    Raises:
      ValueError: it is, or the file is no sweep's.
    """
    before, now = read(path), circumstances
    environment = {k: before["environment"].get(k) for k in now["environment"]}
    changes = [
        f"{name} was {json.dumps(a)}, is now {json.dumps(b)}"
        for key in now
        for name, a, b in differences(
            environment if key == "environment" else before.get(key), now[key], key
        )
    ]
    if changes:
        raise ValueError(
            f"{path} holds a sweep of other circumstances: {'; '.join(changes)}. Name another "
            "directory, or remove the file"
        )


def command_line(words: list[str]) -> str:
    """The command, as results keep it: without the directories of this machine."""
    public = (Path(word).name if Path(word).is_absolute() else word for word in words)
    return "python -m eval.sweeps " + shlex.join(public)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    args = make_parser().parse_args(argv)
    directory = Path(args.output)
    if not directory.absolute().parent.is_dir():
        raise ValueError(f"--output {args.output!r}: there is no directory to make it in")
    path = directory / f"{args.kind}.json"
    if args.plot_only:
        summary = read(path)
    else:
        command = command_line(sys.argv[1:] if argv is None else argv)
        if args.results:
            if KINDS[args.kind] is not strategies:
                raise ValueError(f"--results draws strategies or events, not {args.kind}")
            paths = [Path(result) for result in args.results]
            points = points_of(paths)
        else:
            points, paths = measure(args, command)
        directory.mkdir(exist_ok=True)
        summary = summarise(args.kind, points, paths, command)
        write_json(str(path), summary)
        write_csv(path.with_suffix(".csv"), summary["points"])
    show(summary, Console(width=120))
    for picture in draw(summary, directory):
        print(picture, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run("python -m eval.sweeps", main))
