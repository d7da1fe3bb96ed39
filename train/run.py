"""What surrounds the loop of a training run: checkpoints, the log, the wish to stop."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from train.config import TrainConfig
from train.step import State


class StopRequest:
    """Becomes true when the process is told to end (SIGTERM): the loop saves and leaves."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopRequest:
        self._before = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


class Log:
    """metrics.jsonl, one object a line, and the same as text on the terminal.

    A resumed run first drops what was logged after the step it resumes from.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = []
        if path.exists():
            kept = [
                line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step
            ]
        path.write_text("".join(f"{line}\n" for line in kept))
        self._file = path.open("a")

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, **values: Any) -> None:
        """Numbers by name; arrays of one element become numbers."""
        plain = {
            name: value if isinstance(value, int) else float(value)
            for name, value in values.items()
        }
        self._file.write(json.dumps(plain) + "\n")
        self._file.flush()
        print(
            "  ".join(
                f"{name} {value}" if isinstance(value, int) else f"{name} {value:.4g}"
                for name, value in plain.items()
            ),
            flush=True,
        )


def refuse_non_finite(losses: np.ndarray, first: int) -> None:
    """Raise FloatingPointError naming the first step whose loss is no number."""
    wrong = ~np.isfinite(losses)
    if wrong.any():
        step = first + int(wrong.argmax())
        raise FloatingPointError(
            f"the loss of step {step} is {losses[step - first]}; the last checkpoint is from before"
        )


def tokenizer_files(directory: Path | None) -> dict[str, Path]:
    """The files beside the weights that a text needs, by name; nothing for no directory.

    Raises:
      FileNotFoundError: the directory has no tokenizer.
    """
    if directory is None:
        return {}
    if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise FileNotFoundError(f"{directory}: neither tokenizer.json nor vocab.json")
    known = (
        "tokenizer.json",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "generation_config.json",
    )
    return {name: directory / name for name in known if (directory / name).is_file()}


def save(checkpoints: ocp.CheckpointManager, state: State, config: TrainConfig) -> None:
    """Start writing a checkpoint; it appears under its step's number once complete."""
    checkpoints.save(
        int(state.step),
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict()), config=ocp.args.JsonSave(config.to_dict())
        ),
    )


def restore(
    checkpoints: ocp.CheckpointManager, abstract: State, config: TrainConfig
) -> State | None:
    """The newest checkpoint, or None if there is none.

    Raises:
      ValueError: it was made with another configuration (the differing fields are named).
    """
    step = checkpoints.latest_step()
    if step is None:
        return None
    stored = checkpoints.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
    before, now = _flat(stored["config"]), _flat(json.loads(json.dumps(config.to_dict())))
    changed = sorted(
        name for name in before.keys() | now.keys() if before.get(name) != now.get(name)
    )
    if changed:
        raise ValueError(
            f"{checkpoints.directory}: step {step} was trained with another configuration: "
            + ", ".join(f"{n} was {before.get(n)!r}, now {now.get(n)!r}" for n in changed)
        )
    restored = checkpoints.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract._asdict()))
    )
    return State(**restored["state"])


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out
