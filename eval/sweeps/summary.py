"""A sweep's numbers: one row a point, as JSON, as CSV and as a table."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval import compare, paired, results_file
from eval.drawing import LABELS
from eval.results_file import RULES
from eval.sweeps.points import REFERENCE, Point
from r2jax.decode_config import DecodeConfig

Row = dict[str, Any]
SHARED = ("task", "model", "prompt", "seed", "counting")


def summarise(kind: str, points: Sequence[Point], paths: Sequence[Path], command: str) -> Row:
    """The file of a sweep.

    Args:
      kind: of sweep.
      points: in the order of table and pictures.
      paths: of their result files.
      command: that the sweep was made by.

    Returns:
      What all points share, and a row for each: accuracy, NFE and counts (with standard errors over
      the problems), refreshes, seconds, the whole decode configuration.
    """
    results = [results_file.read(path) for path in paths]
    rows = []
    for point, path, result in zip(points, paths, results, strict=True):
        samples = result["samples"]
        accuracy, means = result["metrics"]["accuracy"], result["means"]
        row = {
            "name": point.name,
            "series": point.series,
            "label": point.label,
            "x": point.x,
            "strategy": point.strategy,
            "problems": len(samples),
            "accuracy": accuracy["value"],
            "accuracy_standard_error": accuracy["standard_error"],
            "nfe": means["nfe"],
            "nfe_standard_error": standard_error(s["nfe"] for s in samples),
            **{k: means[k] for k in ("refreshes", "block_steps", "tokens", "actual", "potential")},
            **{
                f"{kind}_standard_error": {
                    **{name: standard_error(s[kind][name] for s in samples) for name in RULES},
                    "total": standard_error(sum(s[kind].values()) for s in samples),
                }
                for kind in ("actual", "potential")
            },
            "seconds": result["speed"]["seconds"],
            "compile_seconds": result["speed"]["compile_seconds"],
            "batch_size": result["speed"]["batch_size"],
            "file": path.name,
            "decode": result["decode"],
        }
        if kind in REFERENCE:
            names = (str(paths[0]), str(path))
            comparison = compare.compare(results[0], result, names)
            row["against_first"] = {
                "accuracy": comparison["metrics"]["accuracy"],
                "nfe": comparison["metrics"]["NFE"],
                "mcnemar": comparison["mcnemar"],
            }
        rows.append(row)
    common = shared(paths[0])
    return {
        "r2jax sweep": 1,
        "kind": kind,
        **common,
        "environment": {
            **common["environment"],
            "date": max(result["environment"]["date"] for result in results),
            "command": command,
        },
        "confidence": paired.LEVEL,
        "points": rows,
    }


def shared(path: Path) -> Row:
    """The circumstances of a result file that all points of a sweep have in common."""
    result = results_file.read(path)
    environment = {k: result["environment"][k] for k in ("device", "versions")}
    return {**{k: result[k] for k in SHARED}, "environment": environment}


def read(path: Path) -> dict[str, Any]:
    """The numbers of a sweep.

    Raises:
      ValueError: the file is none.
      OSError: it cannot be read.
    """
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        if summary["r2jax sweep"] != 1:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no file of eval.sweeps") from None
    return summary


def points_of(paths: Sequence[Path]) -> list[Point]:
    """A point for each result file, such as `eval.harness` writes, of the same task and model.

    Raises:
      ValueError: they differ in more than the strategy, or two are of the same.
    """
    results = [results_file.read(path) for path in paths]
    for path, result in zip(paths, results, strict=True):
        if result["decode"] is None:
            raise ValueError(f"{path}: its answers were scored, not decoded")
        if (name := result["strategy"]) not in LABELS:
            raise ValueError(f"{path}: strategy must be one of {', '.join(LABELS)}, got {name!r}")
        for shared in SHARED:
            changes = list(compare.differences(results[0][shared], result[shared], shared))
            if changes:
                field, a, b = changes[0]
                raise ValueError(f"{paths[0]} and {path} differ in {field}: {a!r} and {b!r}")
    names = [result["strategy"] for result in results]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"--results: two files are of the strategy {twice}")
    return [
        Point(LABELS[name], LABELS[name], name, DecodeConfig(**result["decode"]))
        for name, result in zip(names, results, strict=True)
    ]


def standard_error(values: Iterable[float]) -> float:
    """Of the mean of values."""
    listed = list(values)
    return float(np.std(listed, ddof=1) / np.sqrt(len(listed)))


def flat(row: Row, name: str = "") -> Row:
    """One level, with dotted names."""
    found: Row = {}
    for key, value in row.items():
        below = f"{name}.{key}" if name else key
        found |= flat(value, below) if isinstance(value, dict) else {below: value}
    return found


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """A line a point, a column a number; what is None is empty. The file appears when it is
    complete."""
    lines = [flat(row) for row in rows]
    aside = path.with_suffix(".csv.part")
    with aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for line in lines for key in line)))
        writer.writeheader()
        writer.writerows(lines)
    os.replace(aside, path)


def show(summary: Row, console: Console) -> None:
    """Print the rows."""
    compared = any("against_first" in row for row in summary["points"])
    columns = ["", "right %", "± s.e.", "NFE", "± s.e.", "refreshes", "actual", "potential", "s"]
    table = Table(*columns, *(["right % - first's (95 %)", "p"] if compared else []))
    for row in summary["points"]:
        cells = [
            row["name"],
            f"{100 * row['accuracy']:.1f}",
            f"{100 * row['accuracy_standard_error']:.1f}",
            f"{row['nfe']:.1f}",
            f"{row['nfe_standard_error']:.1f}",
            f"{row['refreshes']:.1f}",
            f"{row['actual']['total']:.1f}",
            f"{row['potential']['total']:.1f}",
            f"{row['seconds']:.1f}",
        ]
        if row is not summary["points"][0] and (against := row.get("against_first")):
            value, low, high = (100 * against["accuracy"][k] for k in ("value", "low", "high"))
            cells += [f"{value:+.1f} ({low:+.1f} to {high:+.1f})", f"{against['mcnemar']['p']:.2g}"]
        table.add_row(*map(Text, cells))
    console.print(table)
