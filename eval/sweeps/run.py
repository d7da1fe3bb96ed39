"""The measuring of a sweep's points: the harness makes a result file of each.

`DIR/points/STRATEGY-DIGEST.json` is named by the digest of everything that the result depends on.
So a configuration that several points, or several sweeps into the same directory, have in common is
decoded once, and results of other circumstances never mix. While it is decoded its answers stand in
a journal beside it, from which a killed sweep goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval import harness, report
from eval.plan import Plan, finished, plans
from eval.sweeps.points import Point
from r2jax.clock import duration
from r2jax.decode_config import DecodeConfig
from r2jax.digest import of_json


class Bench:
    """A checkpoint and a task, with the points to measure on them."""

    def __init__(self, args: argparse.Namespace, job: harness.Job, points: Sequence[Point]) -> None:
        """Find what is wrong before anything is decoded.

        Args:
          args: of the harness, with one task.
          job: what they ask for.
          points: of the sweep.

        Raises:
          ValueError, OSError: a task that generates nothing, too few problems, a prompt or a
            configuration that the model cannot take.
        """
        self.args, self.job, self.points = args, job, points
        (task,) = job.tasks.values()
        if task.scored:
            raise ValueError(f"{task.name}: given answers are scored, so there is nothing to sweep")
        configs = {point.config: point for point in points}
        self.plans: dict[DecodeConfig, Plan] = {}
        # What room there is for prompts depends on the length of the answer alone.
        for length in sorted({config.gen_length for config in configs}, reverse=True):
            alike = {str(i): c for i, c in enumerate(configs) if c.gen_length == length}
            made = plans(task, alike, args, job.source, chat=job.chat)
            for config, plan in zip(alike.values(), made, strict=True):
                self.plans[config] = self._named(plan, configs[config].strategy)
        if len(self._first.prompts) < 2:
            raise ValueError(f"{task.name}: a sweep needs two problems, for its standard errors")

    @property
    def _first(self) -> Plan:
        return self.plans[self.points[0].config]

    @property
    def circumstances(self) -> dict[str, Any]:
        """What all points share."""
        here = report.environment(self.args.mesh, "")
        return {
            **{k: v for k, v in self._first.circumstances.items() if k not in OF_A_POINT},
            "environment": {k: here[k] for k in ("device", "versions")},
        }

    def _named(self, plan: Plan, strategy: str) -> Plan:
        """A plan under its strategy's name, its result where it belongs."""
        plan = dataclasses.replace(
            plan, strategy=strategy, circumstances={**plan.circumstances, "strategy": strategy}
        )
        digest = of_json(harness.settings_of(plan, self.args))[:10]
        path = Path(self.args.output_dir, "points", f"{strategy}-{digest}.json")
        return dataclasses.replace(plan, path=path)


OF_A_POINT = ("strategy", "decode")
"""The circumstances in which points differ."""


def run_points(bench: Bench, command: str) -> list[Path]:
    """Measure every point that has no result yet; returns the result file of each.

    Args:
      bench: the points, and on what.
      command: for the results.
    """
    missing: dict[DecodeConfig, str] = {}
    for point in bench.points:
        if finished(bench.plans[point.config]) is None:
            missing.setdefault(point.config, point.name)
    total, done = len(bench.plans), len(bench.plans) - len(missing)
    if done:
        print(f"{done} of {total} configurations are measured already", file=sys.stderr)
    bench.plans[bench.points[0].config].path.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    for i, (config, name) in enumerate(missing.items(), start=1):
        what = f"configuration {done + i} of {total}, {name}"
        harness.evaluate(bench.plans[config], bench.args, bench.job.source, command, what)
        if left := len(missing) - i:
            seconds = duration((time.perf_counter() - start) / i * left)
            print(f"{done + i} of {total} configurations, about {seconds} left", file=sys.stderr)
    return [bench.plans[point.config].path for point in bench.points]
