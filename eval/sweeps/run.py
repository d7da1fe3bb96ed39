"""The measuring of a sweep's points: decode, grade, keep.

Each configuration becomes a result file of its own, `DIR/points/STRATEGY-DIGEST.json`, which
`eval.compare` reads; the digest is of everything that the result depends on. So a configuration
that several points, or several sweeps into the same directory, have in common is decoded once, and
results of other circumstances never mix. While it is decoded its answers stand in a journal beside
it, from which a killed sweep goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import r2jax
from eval import device
from eval.sweeps.points import Point
from r2jax import digest
from r2jax.batches import Batch, generate_many
from r2jax.checkpoint import open_checkpoint
from r2jax.cli import write_json
from r2jax.clock import Meter, duration
from r2jax.generate import check_config, check_prompts
from r2jax.grading import is_correct
from r2jax.journal import Journal
from r2jax.quantize import Quantization
from r2jax.text import check_tokenizer, decode_answers, encode, with_ends

COUNTS = ("confidence", "token", "temporal")
COUNTING = {
    "tokens": "answer tokens before the first end token",
    "nfe": "forwards that the row itself needed; refreshes are those over the whole sequence",
}
Result = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What all points of a sweep share."""

    checkpoint: str
    """As named by the user."""
    directory: Path
    dtype: str | None
    quantize: Quantization | None
    problems: list[dict[str, str]]
    """{"question", "answer"} each."""
    source: str
    """Which problems these are, in words."""
    task: str
    limit: int | None
    batch_size: int
    chat: bool
    command: str


class Bench:
    """A checkpoint and problems, checked; `measure` decodes them with one configuration."""

    def __init__(self, setting: Setting, points: Sequence[Point]) -> None:
        """Find what is wrong, then load the model.

        Raises:
          ValueError, OSError: a prompt or configuration that the model cannot take.
        """
        self.setting = setting
        self.tokenizer = r2jax.load_tokenizer(setting.directory)
        stored = open_checkpoint(setting.directory)
        self.config, self._stored_quantize = stored.config, stored.quantized
        check_tokenizer(self.tokenizer, self.config)
        questions = [problem["question"] for problem in setting.problems]
        ids = encode(self.tokenizer, questions, chat=setting.chat)
        for point in points:
            check_config(point.config, self.config)
        longest = max(point.config.gen_length for point in points)
        self.prompts = check_prompts(ids, self.config, longest)
        self.model = r2jax.load(setting.directory, setting.dtype, quantize=setting.quantize)
        self.circumstances = self._circumstances()

    def _circumstances(self) -> Result:
        """What every result of this bench says, but for the configuration."""
        setting, described = self.setting, device.describe()
        return {
            "task": {
                "name": setting.task,
                "num_fewshot": 0,
                "source": setting.source,
                "problems": len(setting.problems),
                "limit": setting.limit,
            },
            "model": {
                "checkpoint": setting.checkpoint,
                "digest": digest.of_checkpoint(setting.directory),
                "model_type": self.config.model_type,
                "dtype": str(self.model.dtype),
                "quantize": setting.quantize or self._stored_quantize,
            },
            "prompt": {
                "chat_template": setting.chat,
                "truncated": 0,
                "longest": max(map(len, self.prompts)),
            },
            "seed": 0,
            "counting": COUNTING,
            "environment": {
                "device": {**described["device"], "count": 1},
                "versions": described["versions"],
            },
        }

    def path(self, point: Point, directory: Path) -> Path:
        """Where the result of a point's configuration stands."""
        name = digest.of_json(self._settings(point))[:10]
        return directory / "points" / f"{point.strategy}-{name}.json"

    def _settings(self, point: Point) -> dict[str, Any]:
        """All that a result depends on, for the journal and the file's name."""
        problems = digest.of_json(self.setting.problems)
        return {
            **self.circumstances,
            "decode": self._decode(point),
            "batch_size": self.setting.batch_size,
            "problems": problems,
        }

    def _decode(self, point: Point) -> dict[str, Any]:
        stopping, _ = with_ends(point.config, self.tokenizer, self.config, chat=self.setting.chat)
        return dataclasses.asdict(stopping)

    def measure(self, point: Point, path: Path, what: str) -> Result:
        """The result of one configuration, decoded as far as no earlier run has.

        Args:
          point: its configuration.
          path: of the result file.
          what: goes on, for the progress.
        """
        answers = path.with_suffix(".jsonl")
        if not answers.exists():
            with Journal(answers, self._settings(point), len(self.prompts)) as journal:
                self._decode_into(journal, point, what)
                journal.finish()
        samples = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
        result = self._result(point, samples)
        write_json(str(path), result)
        answers.unlink()  # killed before this line, the next run looks no further than the result
        return result

    def _decode_into(self, journal: Journal, point: Point, what: str) -> None:
        setting, done = self.setting, frozenset(journal.done)
        if len(done) == journal.count:
            return
        config, ends = with_ends(point.config, self.tokenizer, self.config, chat=setting.chat)
        batches = generate_many(
            self.model,
            self.prompts,
            config,
            batch_size=setting.batch_size,
            key=jax.random.key(0),
            skip=done,
        )
        with _said_what_is_kept(journal), Meter(what, journal.count, len(done)) as meter:
            for batch in batches:
                samples = self._samples(batch, ends)
                journal.append(samples)
                meter.add(
                    prompts=len(samples),
                    tokens=sum(sample["tokens"] for sample in samples.values()),
                    nfe=int(batch.output.nfe.sum()),
                    seconds=batch.seconds,
                    compiling=batch.compile_seconds,
                )

    def _samples(self, batch: Batch, ends: frozenset[int]) -> dict[int, dict[str, Any]]:
        """What is kept of each answer, by the problem's index."""
        out, rows = batch.output, len(batch.indices)
        texts, tokens = decode_answers(self.tokenizer, np.asarray(out.tokens), ends)
        found = {}
        for i, index in enumerate(batch.indices):
            problem = self.setting.problems[index]
            counts = {
                kind: {name: int(getattr(getattr(out.counts, kind), name)[i]) for name in COUNTS}
                for kind in ("actual", "potential")
            }
            found[index] = {
                "id": str(index),
                "prompt_sha256": hashlib.sha256(problem["question"].encode()).hexdigest(),
                "text": texts[i],
                "answer": problem["answer"],
                "correct": float(is_correct(texts[i], problem["answer"])),
                "nfe": int(out.nfe[i]),
                "refreshes": int(out.refreshes[i]),
                "tokens": len(tokens[i]),
                **counts,
                # A row's share of its batch, so that their sum is right after any interruption.
                "seconds": batch.seconds / rows,
                "compile_seconds": batch.compile_seconds / rows,
            }
        return found

    def _result(self, point: Point, samples: list[dict[str, Any]]) -> Result:
        """The result file's content."""
        seconds = sum(sample.pop("seconds") for sample in samples)
        compiling = sum(sample.pop("compile_seconds") for sample in samples)
        accuracy = _mean(sample["correct"] for sample in samples)
        means: dict[str, Any] = {
            name: _mean(sample[name] for sample in samples)
            for name in ("nfe", "refreshes", "tokens")
        }
        means["block_steps"] = means["nfe"] - means["refreshes"]
        for kind in ("actual", "potential"):
            counts = {name: _mean(sample[kind][name] for sample in samples) for name in COUNTS}
            means[kind] = {**counts, "total": sum(counts.values())}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        environment = {**self.circumstances["environment"], "date": now}
        error = float(np.sqrt(accuracy * (1 - accuracy) / len(samples)))
        return {
            "r2jax evaluation": 1,
            **self.circumstances,
            "strategy": point.strategy,
            "decode": self._decode(point),
            "metrics": {"accuracy": {"value": accuracy, "standard_error": error}},
            "means": means,
            "speed": {
                "seconds": seconds,
                "compile_seconds": compiling,
                "batch_size": self.setting.batch_size,
                "tokens_per_second": len(samples) * means["tokens"] / seconds,
            },
            "environment": {**environment, "command": self.setting.command},
            "samples": samples,
        }


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


@contextlib.contextmanager
def _said_what_is_kept(journal: Journal) -> Iterator[None]:
    """When a sweep breaks off, say that it can go on."""
    try:
        yield
    except BaseException:
        print(
            f"{len(journal.done)} of {journal.count} answers of this configuration are kept, and "
            "all of those before it; the same command goes on from there",
            file=sys.stderr,
        )
        raise


def run_points(points: Sequence[Point], bench: Bench, directory: Path) -> list[Path]:
    """Measure every point that has no result yet; returns the result file of each.

    Args:
      points: a sweep's.
      bench: on which.
      directory: of the sweep; the results go below it.
    """
    paths = [bench.path(point, directory) for point in points]
    (directory / "points").mkdir(parents=True, exist_ok=True)
    missing = {path: point for path, point in zip(paths, points, strict=True) if not path.exists()}
    done = len(set(paths)) - len(missing)
    total, start = done + len(missing), time.perf_counter()
    if done:
        print(f"{done} of {total} configurations are measured already", file=sys.stderr)
    for i, (path, point) in enumerate(missing.items(), start=1):
        bench.measure(point, path, f"configuration {done + i} of {total}, {point.name}")
        if left := len(missing) - i:
            seconds = duration((time.perf_counter() - start) / i * left)
            print(f"{done + i} of {total} configurations, about {seconds} left", file=sys.stderr)
    return paths
