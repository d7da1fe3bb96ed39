"""Directories of safetensors: model.safetensors, or shards with model.safetensors.index.json."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open

from r2jax.tensors import DTYPES, CheckpointError, Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_CODES = {dtype: code for code, dtype in DTYPES.items()}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      CheckpointError: the file cannot be read or does not hold one.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} should hold a JSON object, not a {type(value).__name__}")
    return value


def open_tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a Hugging Face directory by its name; reads the headers only.

    Raises:
      CheckpointError: no index beside several files, absent or damaged files, or an index that
        does not say where the tensors are.
    """
    if (directory / SINGLE).is_file():
        return _open_file(directory / SINGLE)
    if not (directory / INDEX).is_file():
        files = ", ".join(sorted(file.name for file in directory.glob("*.safetensors")))
        raise CheckpointError(f"{directory} has neither {SINGLE} nor {INDEX}, only {files}")
    index = read_json(directory / INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(v, str) for v in index.values()):
        raise CheckpointError(f"{directory / INDEX} has no weight_map of tensor names to files")
    files = sorted(set(index.values()))
    absent = [file for file in files if not (directory / file).is_file()]
    if absent:
        raise CheckpointError(
            f"{directory / INDEX} names {len(absent)} absent files: {', '.join(absent)}"
        )
    shards = {file: _open_file(directory / file) for file in files}
    lost = [f"{name} in {file}" for name, file in index.items() if name not in shards[file]]
    unlisted = [
        f"{name} in {file}"
        for file, tensors in shards.items()
        for name in tensors
        if index.get(name) != file
    ]
    if lost or unlisted:
        raise CheckpointError(
            f"{directory / INDEX} does not match the files. Listed but not there: "
            f"{', '.join(lost) or 'none'}. There but not listed: {', '.join(unlisted) or 'none'}"
        )
    return {name: shards[file][name] for name, file in index.items()}


def _open_file(path: Path) -> dict[str, Tensor]:
    try:
        with _open(path) as file:
            views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return {
                name: Tensor(
                    shape=tuple(view.get_shape()),
                    dtype=DTYPES.get(view.get_dtype(), np.dtype("V")),
                    read=functools.partial(_read, path, name),
                )
                for name, view in views.items()
            }
    except (SafetensorError, OSError) as error:
        raise CheckpointError(_damage(path, error)) from error


def _open(path: Path) -> Any:
    # pread, not the default mmap: the pages of a mapped file count as the process's memory.
    return safe_open(path, framework="numpy", backend="pread")


def _read(path: Path, name: str) -> np.ndarray:
    try:
        with _open(path) as file:
            return file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(_damage(path, error)) from error


def _damage(path: Path, error: Exception) -> str:
    """What is wrong with a file that the library refuses: it names neither file nor sizes."""
    try:
        actual = path.stat().st_size
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 0 < size <= actual - 8:
                return (
                    f"{path} is truncated or no safetensors file: its header should take {size:,} "
                    f"bytes, but the file has {actual:,}"
                )
            header = json.loads(file.read(size))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
        expected = 8 + size + max(ends, default=0)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return f"{path} is no readable safetensors file: {error}"
    if expected != actual:
        what = "truncated" if actual < expected else "damaged"
        return f"{path} is {what}: it should have {expected:,} bytes, but has {actual:,}"
    return f"{path} is no readable safetensors file: {error}"


def write_tensors(
    directory: Path,
    tensors: Mapping[str, Tensor],
    max_shard_size: int | str,
    progress: Callable[[int], None],
) -> None:
    """Write tensors as safetensors files, with an index if there are several. Holds one at a time.

    Args:
      directory: an existing one.
      tensors: by Hugging Face name.
      max_shard_size: bytes of a file, or such as "5GB"; a larger tensor gets a file of its own.
      progress: called with the bytes of each tensor written.
    """
    plan = split_state_dict_into_shards_factory(
        dict(sorted(tensors.items())),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    for filename, names in plan.filename_to_tensors.items():
        with (directory / filename).open("wb") as file:
            _write_file(file, {name: tensors[name] for name in names}, progress)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_file(
    file: BinaryIO, tensors: Mapping[str, Tensor], progress: Callable[[int], None]
) -> None:
    """One safetensors file: length of the header, the header, the values in the header's order.

    The library's writer wants every value in memory at once (5 GB with the usual shard size).
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers insists on "pt"
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # values start at a multiple of 8 bytes
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        value = np.ascontiguousarray(tensor.read())
        # As bytes: the buffer protocol does not know bfloat16.
        file.write(value.reshape(-1).view(np.uint8).data)
        progress(tensor.nbytes)
