r"""The paper's figures and tables on any checkpoint: `python -m eval.sweeps KIND`.

KIND is one of
  strategies  accuracy against NFE over the strategies (figure 1)
  thresholds  R²'s two thresholds and Fast-dLLM's (figure 7)
  lengths     the length of the answer (figure 8)
  ablation    R²'s rules one by one, and variants of two of them (table 5)
  events      how often R²'s rules fired or would have, by strategy (table 9)

  python -m eval.sweeps thresholds --problems eval/problems/gsm_symbolic_500.jsonl --output-dir out
  python -m eval.sweeps ablation --checkpoint GSAI-ML/LLaDA-8B-Instruct --task gsm8k \
      --data gsm8k=gsm8k_test.jsonl.gz gsm8k:train=gsm8k_train.jsonl.gz --output-dir out

Writes KIND.json, KIND.csv and the pictures into the directory, and a result file for every
configuration into its points/ (for `python -m eval.compare`). A killed sweep goes on with the same
command; sweeps into one directory share the configurations that they have in common.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from eval import harness, presets
from eval.sweeps.pictures import draw
from eval.sweeps.points import KINDS, VALUES, Options, Point, strategies
from eval.sweeps.run import Bench, run_points
from eval.sweeps.summary import points_of, read, shared, show, summarise, write_csv
from r2jax import options
from r2jax.cli import Parser, run, write_json
from r2jax.decode_config import DecodeConfig
from r2jax.journal import differences


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog="python -m eval.sweeps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("kind", choices=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    add("--output-dir", required=True, metavar="DIR", help="of all that is written")
    add("--task", "--problems", metavar="TASK", help="a name, or JSONL of questions and answers")
    add(
        "--strategies",
        nargs="+",
        metavar="NAME",
        help="of strategies, lengths and events [all; events: all but vanilla, which dwarfs them]",
    )
    add(
        "--values",
        nargs="+",
        type=float,
        metavar="X",
        help=f"thresholds: bounds [{' '.join(f'{v:g}' for v in VALUES)}]; "
        "lengths: tokens [half, once and twice the usual]",
    )
    add(
        "--results",
        nargs="+",
        metavar="FILE",
        help="strategies, events: of these files of eval.harness; nothing is decoded",
    )
    add("--plot-only", action="store_true", help="draw KIND.json of the directory again")
    harness.add_options(parser)
    return parser


def measure(args: argparse.Namespace, command: str) -> tuple[list[Point], list[Path]]:
    """Run the sweep; its points and their result files.

    Args:
      args: of this program.
      command: for the results.

    Raises:
      ValueError, OSError: what the user can put right.
    """
    if args.task is None:
        raise ValueError("--task (or --problems) is needed, but with --results or --plot-only")
    names = args.strategies or presets.STRATEGIES[args.kind == "events" :]
    asked = argparse.Namespace(**{**vars(args), "tasks": [args.task], "strategies": names})
    job = harness.prepared(asked)
    preset = presets.PRESETS.get(args.task)

    def make(strategy: str, /, **changes: Any) -> DecodeConfig:
        return presets.decode_config(
            strategy,
            task=preset.decode if preset else None,
            model_type=job.source.config.model_type,
            thresholds=asked.thresholds,
            defaults=job.source.defaults | (presets.LENGTHS if preset else {}),
            overrides={**options.chosen_fields(asked), **changes},
        )

    points = KINDS[args.kind](Options(make, names, args.values))
    bench = Bench(asked, job, points)
    path = Path(args.output_dir, f"{args.kind}.json")
    if path.exists():
        check_same(path, bench.circumstances)
    return points, run_points(bench, command)


def check_same(path: Path, circumstances: dict[str, Any]) -> None:
    """Refuse to replace a sweep by one of another model, other problems, ...

    Raises:
      ValueError: it is, or the file is no sweep's.
    """
    before = read(path)
    environment = {k: before["environment"][k] for k in circumstances["environment"]}
    before = {k: before[k] for k in circumstances} | {"environment": environment}
    if changes := list(differences(before, circumstances)):
        raise ValueError(
            f"{path} holds a sweep of other circumstances: {'; '.join(changes)}. Name another "
            "--output-dir, or remove the file"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program.

    Raises:
      ValueError, OSError: what the user can put right; found before anything is decoded.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    args = make_parser().parse_args(options.dashes(words))
    directory = Path(args.output_dir)
    if not directory.absolute().parent.is_dir():
        raise ValueError(f"--output-dir {args.output_dir!r}: there can be no such directory")
    path = directory / f"{args.kind}.json"
    if args.plot_only:
        summary = read(path)
    else:
        command = harness.command_line("eval.sweeps", words)
        if args.results:
            if KINDS[args.kind] is not strategies:
                raise ValueError(f"--results draws strategies or events, not {args.kind}")
            paths = [Path(result) for result in args.results]
            points = points_of(paths)
            if path.exists():
                check_same(path, shared(paths[0]))
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
