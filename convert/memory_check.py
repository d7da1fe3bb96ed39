"""Measure the peak host memory of loading and converting a synthetic checkpoint.

    python -m convert.memory_check --gigabytes 3 --directory SOMEWHERE_WITH_SPACE

Writes a LLaDA checkpoint of random bfloat16 weights (LLaDA-8B's layer and embedding sizes, fewer
layers) in several safetensors files, runs from-hf, to-hf and `load` (on the CPU backend, from both
layouts), each in a process of its own, and compares the peak of its resident memory with what it
had after its imports. Checks too that every byte came back. Fails if a conversion takes more than
the largest tensor plus 256 MiB, or `load` more than that above its arrays.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from convert.__main__ import main as convert
from r2jax.checkpoint import load, open_checkpoint, parameter_shapes
from r2jax.config import LLADA_8B, ModelConfig
from r2jax.hf import hf_names
from r2jax.safetensors_files import open_tensors, write_tensors
from r2jax.tensors import BFLOAT16, Tensor

_SLACK = 256 * 2**20
_MEGA = 2**20


def _make(directory: Path, num_bytes: int) -> None:
    """The synthetic checkpoint, in files of 1 GB, one tensor in memory at a time."""

    def tensors(config: ModelConfig) -> dict[str, Tensor]:
        shapes = parameter_shapes(config)
        names = hf_names(config.model_type, shapes)
        return {
            names[name]: Tensor(
                shape=shape, dtype=BFLOAT16, read=functools.partial(_random, shape, seed)
            )
            for seed, (name, shape) in enumerate(shapes.items())
        }

    models = (dataclasses.replace(LLADA_8B, num_layers=n) for n in itertools.count(1))
    config = next(c for c in models if sum(t.nbytes for t in tensors(c).values()) >= num_bytes)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config.to_hf(dtype="bfloat16")))
    (directory / "tokenizer.json").write_text('{"kept": "byte for byte"}\n')
    write_tensors(directory, tensors(config), "1GB", lambda num_bytes: None)


def _random(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Finite bfloat16 values of all sizes."""
    bits = np.random.default_rng(seed).integers(0, 0x7F80, shape, np.uint16)
    return bits.view(BFLOAT16)


def _status() -> dict[str, int]:
    """Bytes of this process's memory, from /proc/self/status (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = (line.split() for line in lines if line.startswith(("VmHWM", "VmRSS")))
    return {name.rstrip(":"): int(value) * 1024 for name, value, *_ in fields}


def _child(command: str, source: str, target: str) -> None:
    """Run one command and print what it took, as JSON."""
    jax.numpy.zeros(1).block_until_ready()  # the backend is part of the start
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status()
    arrays = 0
    if command == "load":
        arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(load(source)))
    elif convert([command, source, target]) != 0:
        raise SystemExit(1)
    peak = _status()["VmHWM"]
    print(json.dumps({"taken": peak - before["VmRSS"], "peak": peak, "arrays": arrays}))


def _run(command: str, source: Path, target: Path) -> dict[str, int]:
    call = [sys.executable, "-m", __spec__.name, "--child", command, str(source), str(target)]
    out = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def _values(directory: Path) -> Iterator[tuple[str, bytes]]:
    for name, tensor in sorted(open_tensors(directory).items()):
        yield name, tensor.read().tobytes()


def main() -> int:
    """Make the checkpoint, run and measure; the exit status is 1 if a bound does not hold."""
    parser = argparse.ArgumentParser(prog="python -m convert.memory_check", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="of weights, at least")
    parser.add_argument("--directory", help="for the temporary files (three times the weights)")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    if args.child:
        _child(*args.child)
        return 0
    with tempfile.TemporaryDirectory(dir=args.directory) as name:
        hf, converted, back = (Path(name) / part for part in ("hf", "converted", "back"))
        _make(hf, int(args.gigabytes * 1e9))
        tensors = open_checkpoint(hf).tensors
        largest = max(tensor.nbytes for tensor in tensors.values())
        total = sum(tensor.nbytes for tensor in tensors.values())
        files = len(list(hf.glob("*.safetensors")))
        print(
            f"checkpoint: {total / _MEGA:,.0f} MiB in {files} files, "
            f"largest tensor {largest / _MEGA:,.0f} MiB"
        )
        failed = False
        for label, command, source, target in (
            ("from-hf", "from-hf", hf, converted),
            ("to-hf", "to-hf", converted, back),
            ("load (safetensors)", "load", hf, hf),
            ("load (converted)", "load", converted, converted),
        ):
            result = _run(command, source, target)
            above = result["taken"] - result["arrays"]
            failed |= above > largest + _SLACK
            print(
                f"{label:20s} peak {result['peak'] / _MEGA:6,.0f} MiB, above its start "
                f"{result['taken'] / _MEGA:6,.0f} MiB, above its arrays {above / _MEGA:6,.0f} MiB",
                flush=True,
            )
        for (one, left), (two, right) in zip(_values(hf), _values(back), strict=True):
            if one != two or left != right:
                raise SystemExit(f"{one} came back as {two} or with other bytes")
        for file in ("config.json", "tokenizer.json"):
            if (hf / file).read_bytes() != (back / file).read_bytes():
                raise SystemExit(f"{file} came back with other bytes")
        print("every tensor, config.json and tokenizer.json came back byte for byte")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
