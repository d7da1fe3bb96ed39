"""Two result files, or more, problem by problem: `python -m eval.compare A.json B.json`.

Prints how far each of the others is from the first in accuracy, NFE and redundancy, over the same
problems, with intervals of 95 %; McNemar's exact test; and every circumstance in which they differ.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval import paired, results_file
from r2jax.cli import Parser, check_output, run, write_json

Result = dict[str, Any]
MEASURES: dict[str, Callable[[dict[str, Any]], float]] = {
    "NFE": lambda sample: sample["nfe"],
    "refreshes": lambda sample: sample["refreshes"],
    "answer tokens": lambda sample: sample["tokens"],
    "R_total actual": lambda sample: sum(sample["actual"].values()),
    "R_total potential": lambda sample: sum(sample["potential"].values()),
}
"""Of a sample of a result file, beside its score."""
CIRCUMSTANCES = ("task", "model", "prompt", "strategy", "decode", "seed", "counting")


def pairs(
    first: Result,
    second: Result,
    names: tuple[str, str],
    *,
    common: bool = False,
    other_prompts: bool = False,
) -> tuple[list[tuple[dict[str, Any], dict[str, Any]]], list[str]]:
    """The samples of the same problems, in the first's order, and what is to be said about the
    others.

    Args:
      first, second: result files.
      names: of the files, for errors.
      common: leave out problems that only one has, instead of refusing them.
      other_prompts: pair problems by their id alone, though they were asked in other words.

    Raises:
      ValueError: another task, other problems or other prompts.
    """
    between = f"{names[0]} and {names[1]}"
    tasks = [result["task"]["name"] for result in (first, second)]
    if tasks[0] != tasks[1]:
        raise ValueError(f"{between} are of different tasks: {tasks[0]} and {tasks[1]}")
    said = []
    theirs = {sample["id"]: sample for sample in second["samples"]}
    found = [(s, theirs[s["id"]]) for s in first["samples"] if s["id"] in theirs]
    alone = [len(result["samples"]) - len(found) for result in (first, second)]
    if any(alone):
        what = (
            f"{len(found)} problems in common; {alone[0]} are in the first alone, "
            f"{alone[1]} in the second"
        )
        if not common:
            raise ValueError(f"{between} have {what} (--common compares those in common)")
        said.append(f"Compared are the {what}.")
    changed = sum(a["prompt_sha256"] != b["prompt_sha256"] for a, b in found)
    if changed and other_prompts:
        said.append(f"{changed} of {len(found)} problems were asked with other prompts.")
    elif changed:
        what = f"{changed} of {len(found)} problems with other prompts"
        if not common:
            raise ValueError(
                f"{between} ask {what} (--other-prompts compares them all the same, --common only "
                "those with equal ones)"
            )
        found = [(a, b) for a, b in found if a["prompt_sha256"] == b["prompt_sha256"]]
        said.append(f"Left out are {what}.")
    if len(found) < 2:
        raise ValueError(f"{between}: a comparison needs two problems in common, not {len(found)}")
    return found, said


def differences(first: Any, second: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """What differs between two JSON values: dotted name and both values, None where one has
    none."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in [*first, *(key for key in second if key not in first)]:
            below = f"{name}.{key}" if name else key
            yield from differences(first.get(key), second.get(key), below)
    elif first != second:
        yield name, first, second


def circumstances(result: Result) -> dict[str, Any]:
    """All that a result's numbers depend on."""
    environment = {k: result["environment"][k] for k in ("device", "versions")}
    batch = {"batch_size": result["speed"]["batch_size"]}
    return {**{k: result[k] for k in CIRCUMSTANCES}, "environment": environment, "speed": batch}


def compare(first: Result, second: Result, names: tuple[str, str], **options: bool) -> Result:
    """The comparison of two result files as JSON; arguments and errors are those of `pairs`."""
    found, said = pairs(first, second, names, **options)
    scores = [[pair[i]["correct"] for pair in found] for i in (0, 1)]
    metrics = {"accuracy": _metric(scores, paired.of_scores)}
    for name, measure in MEASURES.items():
        values = [[measure(pair[i]) for pair in found] for i in (0, 1)]
        metrics[name] = _metric(values, paired.of_means)
    result: Result = {
        "files": list(names),
        "problems": len(found),
        "said": said,
        "confidence": paired.LEVEL,
        "metrics": metrics,
        "mcnemar": None,
        "circumstances": {
            name: [a, b] for name, a, b in differences(circumstances(first), circumstances(second))
        },
    }
    if paired.binary(*scores):
        lost, gained, p = paired.discordant(*scores)
        result["mcnemar"] = {"first_alone": lost, "second_alone": gained, "p": p}
    return result


def _metric(
    values: list[list[float]], difference: Callable[..., paired.Difference]
) -> dict[str, float]:
    first, second = (sum(v) / len(v) for v in values)
    return {"first": first, "second": second, **difference(*values)._asdict()}


def show(comparison: Result, console: Console) -> None:
    """Print a comparison."""
    first, second = comparison["files"]
    for letter, path in zip("AB", (first, second), strict=True):
        console.print(f"{letter} {path}", highlight=False, markup=False, soft_wrap=True)
    table = Table("", "A", "B", "B - A", "95 % interval")
    for name, m in comparison["metrics"].items():
        scale, digits = (100, 1) if name == "accuracy" else (1, 2)
        a, b, change, low, high = (
            scale * m[k] for k in ("first", "second", "value", "low", "high")
        )
        table.add_row(
            name + (" %" if name == "accuracy" else ""),
            f"{a:.{digits}f}",
            f"{b:.{digits}f}",
            f"{change:+.{digits}f}",
            f"{low:+.{digits}f} to {high:+.{digits}f}",
        )
    console.print(table)
    lines = [f"{comparison['problems']} problems, paired.", *comparison["said"]]
    if (test := comparison["mcnemar"]) is not None:
        lines.append(
            f"Right in A alone: {test['first_alone']}, in B alone: {test['second_alone']}; "
            f"McNemar's exact test: p = {test['p']:.2g}."
        )
    if not comparison["circumstances"]:
        lines.append("Their circumstances are the same.")
    for line in lines:
        console.print(line, highlight=False, markup=False)
    if comparison["circumstances"]:
        table = Table("differs", "A", "B")
        for name, (a, b) in comparison["circumstances"].items():
            table.add_row(*map(Text, (name, json.dumps(a), json.dumps(b))))
        console.print(table)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m eval.compare", description=__doc__)
    parser.add_argument("first", metavar="A.json", help="what the others are compared to")
    parser.add_argument("others", metavar="B.json", nargs="+", help="each is compared to A")
    parser.add_argument(
        "--common", action="store_true", help="leave out problems that are not in both"
    )
    parser.add_argument(
        "--other-prompts",
        action="store_true",
        help="compare problems by id though their prompts differ (chat template, few-shot, ...)",
    )
    parser.add_argument("--output", help="the same as JSON")
    args = parser.parse_args(argv)
    check_output(args.output)
    first = results_file.read(args.first)
    comparisons = [
        compare(
            first,
            results_file.read(other),
            (args.first, other),
            common=args.common,
            other_prompts=args.other_prompts,
        )
        for other in args.others
    ]
    console = Console(width=100)
    for comparison in comparisons:
        show(comparison, console)
    write_json(args.output, {"comparisons": comparisons})


if __name__ == "__main__":
    sys.exit(run("python -m eval.compare", main))
