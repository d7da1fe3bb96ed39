"""The configurations of one call of the bench, and the file that results are kept in."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from jax.sharding import Mesh

import r2jax
from eval.local_data import read_problems
from eval.random_model import SIZES
from eval.references import ADAPTERS, check_reference
from r2jax.checkpoint import open_checkpoint, resolve
from r2jax.cli import write_json
from r2jax.generate import check_config, check_prompts
from r2jax.quantize import Quantization
from r2jax.sharding import check_mesh
from r2jax.text import encode, generation_defaults, load_tokenizer

QUANTIZE = ("none", *get_args(Quantization))
RULES = ("r2", "fast_dllm", "vanilla", "streaming", "local_leap")


@dataclasses.dataclass(frozen=True)
class Case:
    """One configuration, checked as far as it can be without the weights."""

    settings: dict[str, Any]
    """All that the numbers depend on beside device and versions; equal settings are the same
    measurement."""
    config: r2jax.DecodeConfig
    prompts: list[list[int]]
    batch: int
    quantize: Quantization | None
    mesh: str | None

    @property
    def label(self) -> str:
        """Short and fit for a file name."""
        s = self.settings
        parts = [s["rules"], s["cache"], f"b{self.batch}", f"g{s['gen_length']}"]
        parts += [f"p{s['prompt_length']}"] if s["prompt_length"] else []
        parts += [self.quantize or "", (self.mesh or "").replace("=", "").replace(",", "-")]
        return "-".join(part for part in parts if part)


def mesh_sizes(text: str) -> dict[str, int]:
    """{"tensor": 2} of "tensor=2" (several with commas)."""
    sizes = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in ("data", "tensor") or not size.isdigit() or int(size) < 1:
            raise ValueError(f"--mesh {text!r} must be none or such as tensor=2 or data=2,tensor=2")
        sizes[axis] = int(size)
    return sizes


def make_mesh(text: str | None) -> Mesh | None:
    """The mesh that `--mesh` names, on the first devices."""
    if text is None:
        return None
    sizes = mesh_sizes(text)
    count = int(np.prod(list(sizes.values())))
    if count > len(jax.devices()):
        raise ValueError(f"--mesh {text} needs {count} devices, there are {len(jax.devices())}")
    return r2jax.make_mesh(**sizes, devices=jax.devices()[:count])


def random_prompts(
    batch: int, longest: int, shortest: int, mask_id: int, seed: int
) -> list[list[int]]:
    """Random tokens; the first row is the longest, the others are of any length from `shortest`.

    A row is the same in a batch of any size.
    """
    rows = []
    for row in range(batch):
        rng = np.random.default_rng([seed, row])
        length = longest if row == 0 else rng.integers(shortest, longest + 1)
        rows.append(rng.integers(0, mask_id, length).tolist())
    return rows


def cases(args: argparse.Namespace) -> list[Case]:
    """All configurations of the call, in the order in which they are run.

    Raises:
      ValueError: one of them cannot be run, before any weight is drawn or read.
    """
    defaults: dict[str, Any] = {"gen_length": 256, "block_length": 32}
    texts: list[list[int]] = []
    if args.checkpoint:
        model_config = open_checkpoint(resolve(args.checkpoint)).config
        defaults |= generation_defaults(args.checkpoint)
    else:
        model_config = SIZES[args.size]
    if args.problems:
        if not args.checkpoint:
            raise ValueError("--problems needs --checkpoint: random weights have no tokenizer")
        questions = [p["question"] for p in read_problems(args.problems)]
        texts = encode(load_tokenizer(args.checkpoint), questions)

    found: list[Case] = []
    refused: dict[str, ValueError] = {}
    for mesh, quantize, rules, cache, window, gen_length, length, batch in itertools.product(
        args.mesh,
        args.quantize,
        args.rules,
        args.cache,
        args.window_size,
        args.gen_length or [defaults["gen_length"]],
        args.prompt_length,
        args.batch,
    ):
        options = {**defaults, "gen_length": gen_length}
        if args.block_length is not None:
            options["block_length"] = args.block_length
        if cache is not None:
            options["cache"] = cache
        if window is not None:
            options["window_size"] = window
        config = getattr(r2jax.DecodeConfig, rules)(**options)
        check_config(config, model_config)
        if texts:
            if len(texts) < batch:
                raise ValueError(f"--batch {batch}: {args.problems} has {len(texts)} problems")
            prompts = texts
        else:
            shortest = length if args.unequal is None else min(args.unequal, length)
            prompts = random_prompts(batch, length, shortest, model_config.mask_id, args.seed)
        check_prompts(prompts, model_config, gen_length)
        mesh = None if mesh == "none" else mesh
        if (devices := make_mesh(mesh)) is not None:
            check_mesh(devices, model_config)
        quantize = None if quantize == "none" else quantize
        settings = {
            "model": Path(args.checkpoint).name if args.checkpoint else args.size,
            "weights": "checkpoint" if args.checkpoint else "random",
            "dtype": args.dtype,
            "quantize": quantize,
            "mesh": mesh,
            "rules": rules,
            "cache": config.cache,
            "window_size": config.window_size,
            "gen_length": gen_length,
            "block_length": config.block_length,
            "batch": batch,
            "prompt_length": None if texts else length,
            "shortest_prompt": None if texts or batch == 1 else args.unequal,
            "problems": Path(args.problems).name if texts else None,
            "seed": args.seed,
            "head_gain": None if args.checkpoint else args.head_gain,
            "target_nfe": args.target_nfe if batch == 1 else None,
            "lock_step": args.lock_step and batch > 1,
            "references": [],
        }
        if batch == 1 and quantize is None and mesh is None:
            for name, path in args.reference.items():
                try:
                    check_reference(name, path, model_config, config)
                    settings["references"].append(name)
                except ValueError as error:
                    refused[name] = error
        case = Case(settings, config, prompts, batch, quantize, mesh)
        if all(case.settings != other.settings for other in found):
            found.append(case)
    for name in args.reference:
        if not any(name in case.settings["references"] for case in found):
            raise refused.get(name) or ValueError(
                f"--reference {name}: runs at batch 1, not quantised and on one device only"
            )
    return found


def command_line(words: Sequence[str]) -> str:
    """The command, as results keep it: without the directories of this machine."""

    def public(word: str) -> str:
        name, _, path = word.rpartition("=")
        if name in ADAPTERS:
            return f"{name}={Path(path).name}"
        return Path(word).name if Path(word).is_absolute() else word

    return "python -m eval.bench " + shlex.join(map(public, words))


class Results:
    """Results by settings, device and versions, in a file that is whole after every one of them."""

    def __init__(self, path: str | None, circumstances: dict[str, Any]) -> None:
        self.path, self.circumstances = path, circumstances
        self.rows: list[dict[str, Any]] = []
        if path is not None and Path(path).exists():
            try:
                self.rows = json.loads(Path(path).read_text(encoding="utf-8"))["results"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"--output {path}: what is there is no file of eval.bench"
                ) from None

    def _same(self, row: dict[str, Any], settings: dict[str, Any]) -> bool:
        return row["settings"] == settings and all(
            row[name] == value for name, value in self.circumstances.items()
        )

    def find(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """The result of these settings on this device with these versions, if there is one."""
        return next((row for row in self.rows if self._same(row, settings)), None)

    def done(self, settings: dict[str, Any]) -> bool:
        """Whether there is one; one that failed, but for lack of memory, is tried again, and so is
        one that was cut before the other programs had been timed."""
        row = self.find(settings)
        if row is None or row["status"] != "ok":
            return row is not None and row["status"] == "out of memory"
        return set(settings["references"]) <= set(row.get("references", {}))

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Keep a result (with device and versions), instead of one of the same settings."""
        row = {**row, **self.circumstances}
        self.rows = [old for old in self.rows if not self._same(old, row["settings"])]
        self.rows.append(row)
        write_json(self.path, {"results": self.rows})
        return row
