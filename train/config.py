"""The configuration of a training run: one JSON file, read into frozen, validated dataclasses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from r2jax.config import ModelConfig

OptimizerName = Literal["adamw", "muon"]
Dtype = Literal["float32", "bfloat16"]


def _check(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which masks are drawn (train/losses.py)."""

    block_length: int = 32
    block_fraction: float = 0.75
    """Share of the rows with R²'s block-wise loss (Eq. 5); the others get LLaDA's (Eq. 1)."""
    block_mask: float | None = None
    """Masking probability inside the block; None: uniform in (0, 1), drawn per row."""
    complementary: bool = False
    """Every example twice, the second time with the block's other positions masked."""
    stratified: bool = False
    """Noise levels spread evenly over the batch; unbiased, less variance."""
    max_inverse_probability: float | None = None
    """Limit of the weight 1 / p; None: unbiased."""
    padding_blocks: int | None = None
    """Blocks of nothing but padding that may be drawn block-wise; None: all of them. Padding inside
    the answer area is always supervised: a model must learn to end."""
    eps: float = 1e-3
    """Smallest masking probability."""

    def __post_init__(self) -> None:
        _check(self.block_length >= 1, "loss.block_length", self.block_length, "at least 1")
        for name in ("block_fraction", "eps"):
            value = getattr(self, name)
            _check(0 <= value <= 1, f"loss.{name}", value, "in [0, 1]")
        for name in ("block_mask", "max_inverse_probability"):
            value = getattr(self, name)
            _check(value is None or value > 0, f"loss.{name}", value, "positive or null")
        _check(
            self.block_mask is None or self.block_mask < 1,
            "loss.block_mask",
            self.block_mask,
            "below 1",
        )
        _check(
            self.padding_blocks is None or self.padding_blocks >= 0,
            "loss.padding_blocks",
            self.padding_blocks,
            "at least 0, or null",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, or Muon for the layers' matrices with AdamW for everything else. Cosine to zero."""

    name: OptimizerName = "adamw"
    learning_rate: float = 3e-3
    """At the peak. Muon's updates are scaled to the size of AdamW's, so it serves both."""
    warmup_steps: int = 200
    weight_decay: float = 0.1
    """Decoupled, on the layers' matrices only: not on norms, biases, embedding and head."""
    b1: float = 0.9
    b2: float = 0.95
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        _check(
            self.name in get_args(OptimizerName),
            "optimizer.name",
            self.name,
            f"one of {', '.join(get_args(OptimizerName))}",
        )
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            _check(value > 0, f"optimizer.{name}", value, "positive")
        _check(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "at least 0")
        _check(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides the numbers of a run; a resumed run must have the same."""

    model: ModelConfig
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: int = 0
    gen_length: int
    """Positions of the answer area, padded with EOS."""
    batch_size: int
    """Rows a step over all devices (views count)."""
    steps: int
    """Optimisation steps of the whole run: the schedule's end."""
    compute_dtype: Dtype = "bfloat16"
    """Of the forward and backward pass. Master weights and optimiser are float32."""
    steps_per_call: int = 50
    """Steps that the host starts at once; also the interval of the log."""
    eval_every: int = 1000
    save_every: int = 2000
    held_out: int = 1024
    """Rows at the end of the corpus that are not trained on, but evaluated."""

    def __post_init__(self) -> None:
        for name in (
            "gen_length",
            "batch_size",
            "steps",
            "steps_per_call",
            "eval_every",
            "save_every",
            "held_out",
        ):
            value = getattr(self, name)
            _check(value >= 1, name, value, "at least 1")
        _check(
            self.gen_length % self.loss.block_length == 0,
            "gen_length",
            self.gen_length,
            f"a multiple of loss.block_length = {self.loss.block_length}",
        )
        chunk = min(self.held_out, self.batch_size)
        _check(
            self.held_out % chunk == 0,
            "held_out",
            self.held_out,
            f"a multiple of batch_size = {self.batch_size}, or below it",
        )
        _check(
            self.compute_dtype in get_args(Dtype),
            "compute_dtype",
            self.compute_dtype,
            f"one of {', '.join(get_args(Dtype))}",
        )
        _check(
            not self.loss.complementary or self.batch_size % 2 == 0,
            "batch_size",
            self.batch_size,
            "even with loss.complementary (two views an example)",
        )
        for name in ("steps", "eval_every", "save_every"):
            value = getattr(self, name)
            _check(
                value % self.steps_per_call == 0,
                name,
                value,
                f"a multiple of steps_per_call = {self.steps_per_call}",
            )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def read_config(path: Path, changes: Sequence[str] = ()) -> TrainConfig:
    """Read a configuration file.

    Args:
      path: JSON with the fields of `TrainConfig`.
      changes: "name=value" or "section.name=value", the value as JSON (a bare word is a string).

    Raises:
      ValueError: an unknown or missing field, or a value out of range; by name and value.
    """
    values = json.loads(path.read_text())
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"--set {change!r}: write name=value")
        *sections, last = name.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = _value(text)
    values["model"] = _make(ModelConfig, values.get("model", {}), "model", path)
    values["loss"] = _make(LossConfig, values.get("loss", {}), "loss", path)
    values["optimizer"] = _make(OptimizerConfig, values.get("optimizer", {}), "optimizer", path)
    return _make(TrainConfig, values, "", path)


def _make(cls: type, values: dict[str, Any], section: str, path: Path) -> Any:
    fields = dataclasses.fields(cls)
    where = f"{path}{f', {section}' if section else ''}"
    unknown = sorted(set(values) - {f.name for f in fields})
    if unknown:
        raise ValueError(f"{where}: unknown {', '.join(unknown)}")
    missing = [
        f.name
        for f in fields
        if f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
        and f.name not in values
    ]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    try:
        return cls(**values)
    except TypeError as error:  # a value of the wrong type, such as a word for a number
        raise ValueError(f"{where}: {error}") from None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
