"""From lm-eval's results to a result file, and to a table on the terminal."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from eval import results_file
from eval.device import describe
from eval.lm_tasks import EvalTask

_GRADERS = ("lm_eval", "math-verify")


def sha256(text: str) -> str:
    """Of a prompt."""
    return hashlib.sha256(text.encode()).hexdigest()


def environment(mesh: str | None, command: str) -> dict[str, Any]:
    """Where and how the run takes place."""
    here = describe()
    return {
        "device": {**here["device"], "count": len(jax.devices()) if mesh else 1},
        "versions": {**here["versions"], **{name: version(name) for name in _GRADERS}},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
    }


def result(
    circumstances: dict[str, Any],
    task: EvalTask,
    found: dict[str, Any],
    answers: Sequence[dict[str, Any]],
    batch_size: int,
    environment: dict[str, Any],
) -> dict[str, Any]:
    """The result file's content.

    Args:
      circumstances: the fields that were known before.
      task: that was evaluated.
      found: what `lm_eval.simple_evaluate` returned.
      answers: of the adapter, one a request.
      batch_size: answers decoded together.
      environment: of this run.
    """
    (graded,) = found["samples"].values()
    scores: dict[str, list[float]] = {}
    for sample in graded:
        for name in sample["metrics"]:
            if isinstance(sample[name], (bool, int, float)):
                scores.setdefault(f"{name},{sample['filter']}", []).append(float(sample[name]))
    first = graded[0]["filter"]
    samples = [
        _sample(sample, correct, rows)
        for sample, correct, rows in zip(
            [sample for sample in graded if sample["filter"] == first],
            scores[task.accuracy],
            _by_document(task, answers),
            strict=True,
        )
    ]
    seconds = sum(answer["seconds"] for answer in answers)
    tokens = sum(sample["tokens"] for sample in samples)
    return {
        results_file.MARK: results_file.VERSION,
        **circumstances,
        "metrics": {
            "accuracy": results_file.metric(scores[task.accuracy]),
            **{name: results_file.metric(values) for name, values in scores.items()},
        },
        "means": results_file.means(samples),
        "speed": {
            "seconds": seconds,
            "compile_seconds": sum(answer["compile_seconds"] for answer in answers),
            "batch_size": batch_size,
            "tokens_per_second": tokens / seconds if seconds else 0.0,
        },
        "environment": environment,
        "samples": samples,
    }


def _by_document(task: EvalTask, answers: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The answers of each document, which has several where there are several to choose from."""
    requests = [i for i in task.task.instances for _ in range(i.repeats or 1)]
    rows: dict[int | None, list[dict[str, Any]]] = {}
    for request, answer in zip(requests, answers, strict=True):
        rows.setdefault(request.doc_id, []).append(answer)
    return list(rows.values())


def _sample(
    graded: dict[str, Any], correct: float, rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The entry of one problem; what its requests cost is added up."""

    def total(kind: str) -> dict[str, int]:
        return {rule: sum(row[kind][rule] for row in rows) for rule in results_file.RULES}

    return {
        "id": str(graded["doc_id"]),
        "prompt_sha256": sha256(str(graded["arguments"][0][0])),
        "text": "\n".join(row["text"] for row in rows),
        "answer": str(graded["target"]),
        "correct": correct,
        **{name: sum(row[name] for row in rows) for name in ("nfe", "refreshes", "tokens")},
        "actual": total("actual"),
        "potential": total("potential"),
    }


def show(results: Sequence[dict[str, Any]]) -> None:
    """The strategies of a task side by side, on stdout."""
    first = results[0]
    style = "chat template" if first["prompt"]["chat_template"] else "plain text"
    table = Table(
        "strategy",
        "accuracy %",
        "± s.e.",
        "NFE",
        "refreshes",
        "tokens",
        "R actual",
        "R potential",
        "s",
        title=f"{first['task']['name']}: {first['task']['problems']} problems, "
        f"{first['task']['num_fewshot']} examples, {style}, {first['model']['dtype']}",
        title_justify="left",
    )
    for one in results:
        accuracy, means = one["metrics"]["accuracy"], one["means"]
        table.add_row(
            one["strategy"],
            f"{100 * accuracy['value']:.1f}",
            f"{100 * accuracy['standard_error']:.1f}",
            f"{means['nfe']:.1f}",
            f"{means['refreshes']:.1f}",
            f"{means['tokens']:.1f}",
            f"{means['actual']['total']:.1f}",
            f"{means['potential']['total']:.1f}",
            f"{one['speed']['seconds']:.2f}",
        )
    Console(width=100).print(table)
