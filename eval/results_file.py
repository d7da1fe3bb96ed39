"""The one file format of evaluations: what a number is, with all that it depends on.

One JSON file per task and strategy, written by `eval.harness` and read by the comparison, the
sweeps and the plots. `SCHEMA` is the format; `samples` holds one entry per problem, and every mean
in the file follows from them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from r2jax.cli import write_json
from r2jax.decode_config import DecodeConfig

MARK = "r2jax evaluation"
VERSION = 1
RULES = ("confidence", "token", "temporal")


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _counts(number: dict[str, Any], *names: str) -> dict[str, Any]:
    return _object(**{name: number for name in names})


_TEXT = {"type": "string"}
_NUMBER = {"type": "number", "minimum": 0}
_COUNT = {"type": "integer", "minimum": 0}
_MAYBE_TEXT = {"type": ["string", "null"]}
_METRIC = _object(value={"type": "number"}, standard_error=_NUMBER)

SCHEMA: dict[str, Any] = _object(
    **{
        MARK: {"const": VERSION},
        "task": _object(
            name=_TEXT,
            num_fewshot=_COUNT,
            source=_TEXT,  # in words: lm-eval's task and version, where the data came from, SHA-256
            problems={"type": "integer", "minimum": 1},
            limit={"type": ["integer", "null"], "minimum": 1},
        ),
        "model": _object(
            checkpoint=_TEXT,
            digest=_TEXT,
            model_type=_TEXT,
            dtype=_TEXT,
            quantize=_MAYBE_TEXT,
        ),
        "prompt": _object(
            chat_template={"type": "boolean"},
            truncated=_COUNT,  # prompts that were cut at their beginning
            longest=_COUNT,  # tokens
        ),
        "strategy": {"type": "string", "minLength": 1},
        "decode": {"type": ["object", "null"]},  # null: answers were scored, not decoded
        "seed": _COUNT,
        "counting": _object(tokens=_TEXT, nfe=_TEXT),
        "metrics": {**_object(accuracy=_METRIC), "additionalProperties": _METRIC},
        "means": _object(
            nfe=_NUMBER,
            refreshes=_NUMBER,
            block_steps=_NUMBER,
            tokens=_NUMBER,
            actual=_counts(_NUMBER, *RULES, "total"),
            potential=_counts(_NUMBER, *RULES, "total"),
        ),
        "speed": _object(
            seconds=_NUMBER,  # of decoding: no compiling, no tokenizing, no grading
            compile_seconds=_NUMBER,
            batch_size={"type": "integer", "minimum": 1},
            tokens_per_second=_NUMBER,
        ),
        "environment": _object(
            device=_object(kind=_TEXT, platform=_TEXT, count={"type": "integer", "minimum": 1}),
            versions={"type": "object", "additionalProperties": _TEXT},
            date=_TEXT,
            command=_TEXT,
        ),
        "samples": {
            "type": "array",
            "minItems": 1,
            "items": _object(
                id=_TEXT,
                prompt_sha256=_TEXT,
                text=_TEXT,
                answer=_TEXT,  # the reference
                correct={"type": "number"},
                nfe=_COUNT,
                refreshes=_COUNT,
                tokens=_COUNT,
                actual=_counts(_COUNT, *RULES),
                potential=_counts(_COUNT, *RULES),
            ),
        },
    }
)
_VALIDATOR = Draft202012Validator(SCHEMA)


def path_of(directory: str | os.PathLike[str], task: str, strategy: str) -> Path:
    """Where the result of a task and a strategy stands."""
    return Path(directory) / f"{task}-{strategy}.json"


def metric(values: Sequence[float]) -> dict[str, float]:
    """A mean with its standard error; of scores that are 0 or 1 that is sqrt(p (1 - p) / n)."""
    scores = np.asarray(values, float)
    return {
        "value": float(scores.mean()),
        "standard_error": float(scores.std() / len(scores) ** 0.5),
    }


def means(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The means of a file, from its samples."""

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    def counts(kind: str) -> dict[str, float]:
        each = {rule: mean([sample[kind][rule] for sample in samples]) for rule in RULES}
        return {**each, "total": sum(each.values())}

    nfe, refreshes, tokens = (
        mean([sample[name] for sample in samples]) for name in ("nfe", "refreshes", "tokens")
    )
    return {
        "nfe": nfe,
        "refreshes": refreshes,
        "block_steps": nfe - refreshes,
        "tokens": tokens,
        "actual": counts("actual"),
        "potential": counts("potential"),
    }


def validate(result: Any, name: str) -> dict[str, Any]:
    """The result, if it is one: of the schema, and at one with its samples.

    Args:
      result: parsed JSON.
      name: what an error calls it, such as its file's name.

    Raises:
      ValueError: naming file, field and value.
    """
    if not isinstance(result, dict) or MARK not in result:
        raise ValueError(f"{name} is no result of eval.harness: it lacks the field {MARK!r}")
    if result[MARK] != VERSION:
        raise ValueError(f"{name} has format {result[MARK]!r}, this r2jax reads {VERSION}")
    error = best_match(_VALIDATOR.iter_errors(result))
    if error is not None:
        where = error.json_path.removeprefix("$").removeprefix(".")
        raise ValueError(f"{name}: {where + ': ' if where else ''}{error.message[:200]}")
    if result["decode"] is not None:
        try:
            DecodeConfig(**result["decode"])
        except (TypeError, ValueError) as problem:
            raise ValueError(f"{name}: decode: {problem}") from None
    samples = result["samples"]
    if len(samples) != result["task"]["problems"]:
        raise ValueError(
            f"{name}: task.problems is {result['task']['problems']}, but there are {len(samples)} "
            "samples"
        )
    ids = {sample["id"] for sample in samples}
    if len(ids) != len(samples):
        raise ValueError(f"{name}: samples: an id stands twice")
    accuracy = metric([sample["correct"] for sample in samples])["value"]
    for field, found, wanted in (
        ("metrics.accuracy.value", result["metrics"]["accuracy"]["value"], accuracy),
        ("means.nfe", result["means"]["nfe"], means(samples)["nfe"]),
    ):
        if not math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-12):
            raise ValueError(f"{name}: {field} is {found}, but its samples say {wanted}")
    return result


def write(path: str | os.PathLike[str], result: dict[str, Any]) -> None:
    """Write a result, which appears when it is complete.

    Raises:
      ValueError: it is not of the format.
      OSError: it cannot be written.
    """
    write_json(str(path), validate(json.loads(json.dumps(result)), str(path)))


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A result from its file.

    Raises:
      ValueError: it is none, or is damaged.
      OSError: it cannot be read.
    """
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None
    return validate(result, str(path))
