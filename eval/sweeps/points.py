"""Which configurations a sweep measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from eval.drawing import LABELS
from r2jax.decode_config import DecodeConfig

VALUES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
TRANSFER, SPATIAL, TEMPORAL = "Fast-dLLM, threshold", "R², τ_s", "R², τ_t"
SINGLE = ("confidence cluster", "token cluster", "temporal")


@dataclasses.dataclass(frozen=True)
class Point:
    """One configuration of a sweep, and its place in table and picture."""

    series: str
    label: str
    strategy: str
    """The preset that it comes from."""
    config: DecodeConfig
    x: float | None = None
    """What is varied along its series."""

    @property
    def name(self) -> str:
        """What it is called by itself."""
        return self.label if self.x is None else f"{self.series} {self.label}"


class Make(Protocol):
    """The configuration of a strategy."""

    def __call__(self, strategy: str, /, **changes: Any) -> DecodeConfig: ...


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line leaves open."""

    make: Make
    """A strategy's configuration with some options changed, all others being those of the call."""
    strategies: Sequence[str]
    values: Sequence[float] | None


def strategies(options: Options) -> list[Point]:
    """Every strategy (figure 1, table 9)."""
    return [
        Point(LABELS[name], LABELS[name], name, options.make(name)) for name in options.strategies
    ]


def thresholds(options: Options) -> list[Point]:
    """R²'s two thresholds, each with the other as it is, and Fast-dLLM's (figure 7)."""
    values = sorted(options.values or VALUES)
    return [
        Point(series, f"{value:g}", name, options.make(name, **{field: value}), value)
        for series, name, field in (
            (TRANSFER, "fast_dllm", "threshold"),
            (SPATIAL, "r2", "spatial_threshold"),
            (TEMPORAL, "r2", "temporal_threshold"),
        )
        for value in values
    ]


def lengths(options: Options) -> list[Point]:
    """Each strategy at several lengths of the answer (figure 8).

    Raises:
      ValueError: a length is no whole number.
    """
    own = options.make("r2").gen_length
    values = options.values or [own / 2, own, 2 * own]
    if bad := [value for value in values if value != int(value)]:
        raise ValueError(f"--values: a length is a whole number of tokens, not {bad[0]:g}")
    return [
        Point(LABELS[name], f"{value:g}", name, options.make(name, gen_length=int(value)), value)
        for name in options.strategies
        for value in sorted(values)
    ]


def ablation(options: Options) -> list[Point]:
    """R²'s rules, none, each alone and all; and the variants of two of them (table 5).

    The token cluster's position and the confidence that the temporal rule looks at are varied with
    that rule alone, as in the paper.
    """
    off: dict[str, Any] = {
        "confidence_cluster_size": None,
        "token_cluster": None,
        "temporal_steps": None,
    }

    def only(field: str, **variant: Any) -> DecodeConfig:
        rest = {name: value for name, value in off.items() if name != field}
        return options.make("r2", **rest, **variant)

    none, every = options.make("fast_dllm"), options.make("r2")
    rules = ["Fast-dLLM (no rule)", *(f"{name} alone" for name in SINGLE), "R² (all three)"]
    singles = [only(field) for field in off]
    found = [
        Point("rules", label, "fast_dllm" if config is none else "r2", config)
        for label, config in zip(rules, [none, *singles, every], strict=True)
    ]
    for series, field, option, modes in (
        ("token cluster alone", "token_cluster", "token_cluster", ("mid", "random", "confidence")),
        ("temporal alone", "temporal_steps", "temporal_eval", ("ave", "max", "last")),
    ):
        for mode in modes:
            config = only(field, **{option: mode})
            found.append(Point(series, f"{series}: {_SAID[mode]}", "r2", config))
    return found


_SAID = {
    "mid": "middle",
    "random": "random",
    "confidence": "most confident",
    "ave": "average",
    "max": "maximum",
    "last": "last",
}


KINDS: dict[str, Callable[[Options], list[Point]]] = {
    "strategies": strategies,
    "thresholds": thresholds,
    "lengths": lengths,
    "ablation": ablation,
    "events": strategies,
}
REFERENCE = ("strategies", "ablation")
"""Kinds whose other points are compared, problem by problem, to their first."""
