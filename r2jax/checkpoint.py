"""Load and save models: Hugging Face and converted (orbax) directories, hub ids, bundled names.

A checkpoint directory has a config.json (Hugging Face's own, kept byte for byte), tokenizer files,
and its parameters either as safetensors files under Hugging Face's names or as an orbax checkpoint
in `params/` under ours. Both hold the same tensors in the same orientation, so converting copies
bytes. Nothing here unpickles, and no code of a checkpoint is run.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from huggingface_hub import snapshot_download
from jax.sharding import Mesh, Sharding

from r2jax import orbax_files, safetensors_files
from r2jax.atomic import new_directory
from r2jax.config import ModelConfig
from r2jax.hf import hf_names, is_buffer
from r2jax.model import Transformer
from r2jax.sharding import check_mesh, named_sharding
from r2jax.tensors import DTYPES, CheckpointError, Tensor, check

Kind = Literal["hf", "converted"]
Files = Mapping[str, bytes | Path]
Progress = Callable[[int], None]

_PARAMS = "params"
_BUNDLED = Path(__file__).parent / "models"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_WEIGHTS = (*_PICKLES, ".safetensors", ".safetensors.index.json", ".bin.index.json", ".gguf", ".h5")
_HUB_FILES = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.txt",
    "tokenizer*",
    "*.model",
    "LICENSE*",
    "*.md",
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A checkpoint whose tensors have been checked against its config.json, and not been read."""

    config: ModelConfig
    tensors: Mapping[str, Tensor]
    """By our parameter path, such as "layers.3.q_proj.weight"."""
    files: Files
    """Every other file by its name: config.json, the tokenizer's files, the licence."""
    kind: Kind
    skipped: tuple[str, ...] = ()
    """Derived buffers in the files (rotary frequencies) that are computed instead."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def load(
    source: str | os.PathLike[str], dtype: Any = None, mesh: Mesh | None = None
) -> Transformer:
    """The model of a checkpoint, on its devices.

    Tensors are read one by one, the largest first, straight into (sharded) arrays: beside the
    arrays the host never holds more than one tensor.

    Args:
      source: a directory (Hugging Face or converted), a bundled model's name, or a hub id.
      dtype: of the parameters, the activations and the logits: bfloat16, float16 or float32. None:
        as stored.
      mesh: from `r2jax.sharding.make_mesh`; None: JAX's default device.

    Raises:
      CheckpointError: not found, damaged, of an unknown architecture, tensors missing, unexpected
        or misshapen.
      ValueError: another dtype, or a mesh that cannot hold the model (`sharding.check_mesh`).
    """
    checkpoint = open_checkpoint(resolve(source))
    if mesh is not None:
        check_mesh(mesh, checkpoint.config)
    try:
        target = _dtype(checkpoint, source) if dtype is None else np.dtype(dtype)
    except TypeError:
        target = None
    if target is None or target not in DTYPES.values():
        raise ValueError(f"dtype must be bfloat16, float16 or float32, got {dtype!r}")
    graph, parameters = _abstract(checkpoint.config)
    shardings = _shardings(parameters, mesh)
    arrays = {
        name: tensor.array(target, shardings[name])
        for name, tensor in sorted(checkpoint.tensors.items(), key=lambda item: -item[1].nbytes)
    }
    state = [(_path(name), param.replace(arrays[name])) for name, param in parameters.items()]
    return nnx.merge(graph, nnx.from_flat_state(state))


def resolve(source: str | os.PathLike[str], *, weights: bool = True) -> Path:
    """The directory of a checkpoint: a path, a bundled name, or a hub id (downloaded to its cache).

    Args:
      source: one of the three.
      weights: False: of a hub id, download everything but the weights.

    Raises:
      CheckpointError: none of the three, or the hub does not give it.
    """
    path = Path(source).expanduser()
    if os.fspath(source) and path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the directory that holds config.json")
    name = os.fspath(source)
    if (_BUNDLED / name / "config.json").is_file() and Path(name).name == name:
        return _BUNDLED / name
    if not _HUB_ID.fullmatch(name):
        bundled = sorted(entry.parent.name for entry in _BUNDLED.glob("*/config.json"))
        raise CheckpointError(
            f"{name!r} is not a directory, not a bundled model ({', '.join(bundled) or 'none'}) "
            "and not a Hugging Face id (owner/name)"
        )
    ignore = ["*/*"] if weights else ["*/*", "*.safetensors"]
    try:
        return Path(
            snapshot_download(name, allow_patterns=list(_HUB_FILES), ignore_patterns=ignore)
        )
    # Offline, absent, gated, ...: the libraries below raise of many kinds.
    except Exception as error:
        raise CheckpointError(
            f"{name!r} is not a directory, and the Hugging Face hub did not give it: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def open_checkpoint(directory: str | os.PathLike[str]) -> Checkpoint:
    """What a directory holds; reads config.json and the tensors' headers, no values.

    Raises:
      CheckpointError: as `load`.
    """
    directory = Path(directory)
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} has no config.json")
    source = str(directory / "config.json")
    try:
        config = ModelConfig.from_hf(safetensors_files.read_json(Path(source)), source)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    shapes = parameter_shapes(config)
    skipped: tuple[str, ...] = ()
    kind = _kind(directory)
    if kind == "converted":
        tensors = orbax_files.open_tensors(directory / _PARAMS)
        check(tensors, shapes, directory)
    else:
        stored = safetensors_files.open_tensors(directory)
        names = hf_names(config.model_type, shapes)
        skipped = tuple(name for name in stored if is_buffer(name))
        stored = {name: tensor for name, tensor in stored.items() if name not in skipped}
        check(stored, {names[name]: shape for name, shape in shapes.items()}, directory)
        tensors = {name: stored[names[name]] for name in shapes}
    files = {
        file.name: file
        for file in sorted(directory.iterdir())
        if file.is_file() and not file.name.startswith(".") and not file.name.endswith(_WEIGHTS)
    }
    return Checkpoint(config=config, tensors=tensors, files=files, kind=kind, skipped=skipped)


def _kind(directory: Path) -> Kind:
    if (directory / _PARAMS).is_dir():
        return "converted"
    if any(directory.glob("*.safetensors")) or (directory / safetensors_files.INDEX).is_file():
        return "hf"
    pickles = sorted(file.name for file in directory.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"{directory} holds its weights as pickles only ({', '.join(pickles)}), which are not "
            "read: unpickling runs whatever code the file names. Where you trust the file, write "
            "safetensors with PyTorch: safetensors.torch.save_file(torch.load(FILE, "
            'weights_only=True), "model.safetensors")'
        )
    raise CheckpointError(
        f"{directory} holds no weights: neither {safetensors_files.SINGLE}, nor "
        f"{safetensors_files.INDEX} with its files, nor a converted {_PARAMS}/"
    )


def save(
    model: Transformer,
    directory: str | os.PathLike[str],
    *,
    files: Files | None = None,
    force: bool = False,
) -> None:
    """Write a model as a converted (orbax) directory.

    Args:
      model: its parameters are brought to the host one by one.
      directory: to be made; complete or not at all.
      files: content or path of what belongs beside the parameters, by file name: the tokenizer's
        files, and a config.json unless `model.config.to_hf()` is wanted.
      force: replace an older checkpoint.

    Raises:
      CheckpointError: the directory exists, or there is no room for it.
    """
    write(_of_model(model, files), "converted", directory, force=force)


def save_hf(
    model: Transformer,
    directory: str | os.PathLike[str],
    *,
    files: Files | None = None,
    max_shard_size: int | str = "5GB",
    force: bool = False,
) -> None:
    """Write a model as a Hugging Face directory of safetensors files; otherwise as `save`."""
    write(_of_model(model, files), "hf", directory, max_shard_size=max_shard_size, force=force)


def write(
    checkpoint: Checkpoint,
    kind: Kind,
    directory: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "5GB",
    force: bool = False,
    progress: Progress = lambda num_bytes: None,
) -> None:
    """Write a checkpoint in either layout, one tensor at a time; other files stay as they are.

    Args:
      checkpoint: from `open_checkpoint`.
      kind: "hf" (safetensors) or "converted" (orbax).
      directory: to be made; complete or not at all.
      max_shard_size: of a safetensors file, in bytes or such as "5GB".
      force: replace an older checkpoint.
      progress: called with the bytes of each tensor written.

    Raises:
      CheckpointError: the directory exists, or there is no room for it.
    """
    sizes = [
        len(f) if isinstance(f, bytes) else f.stat().st_size for f in checkpoint.files.values()
    ]
    # The slack is for headers and metadata: about 150 bytes a tensor here, 200 in orbax.
    needed = checkpoint.nbytes + sum(sizes) + 2**16 + 512 * len(checkpoint.tensors)
    with new_directory(Path(directory), needed, force=force) as partial:
        for name, content in checkpoint.files.items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            (partial / name).write_bytes(data)
        if kind == "converted":
            orbax_files.write_tensors(partial / _PARAMS, checkpoint.tensors, progress)
        else:
            names = hf_names(checkpoint.config.model_type, checkpoint.tensors)
            tensors = {names[name]: tensor for name, tensor in checkpoint.tensors.items()}
            safetensors_files.write_tensors(partial, tensors, max_shard_size, progress)


def _of_model(model: Transformer, files: Files | None) -> Checkpoint:
    tensors = {}
    for name, param in _flat(nnx.state(model, nnx.Param)).items():
        value: jax.Array = param.get_value()
        tensors[name] = Tensor(
            shape=value.shape,
            dtype=np.dtype(value.dtype),
            read=lambda value=value: np.asarray(value),
        )
    files = dict(files or {})
    if "config.json" not in files:
        config = model.config.to_hf(dtype=str(model.dtype))
        files["config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    return Checkpoint(config=model.config, tensors=tensors, files=files, kind="converted")


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a model, by its path, such as "layers.3.q_proj.weight"."""
    _, parameters = _abstract(config)
    return {name: param.get_value().shape for name, param in parameters.items()}


@functools.lru_cache(maxsize=1)  # 1.3 s with 32 layers, and `load` needs it twice
def _abstract(config: ModelConfig) -> tuple[nnx.GraphDef, Mapping[str, nnx.Variable]]:
    """The model without values: its graph, and its parameters by path (any dtype)."""
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    return graph, _flat(state)


def _flat(state: nnx.State) -> dict[str, Any]:
    return {".".join(map(str, path)): param for path, param in nnx.to_flat_state(state)}


def _path(name: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))


def _dtype(checkpoint: Checkpoint, source: object) -> np.dtype:
    dtypes = {tensor.dtype for tensor in checkpoint.tensors.values()}
    if len(dtypes) > 1:
        names = ", ".join(sorted(map(str, dtypes)))
        raise CheckpointError(f"{source} mixes {names}; say which dtype the model should have")
    return dtypes.pop()


def _shardings(
    parameters: Mapping[str, nnx.Variable], mesh: Mesh | None
) -> dict[str, Sharding | None]:
    if mesh is None:
        return dict.fromkeys(parameters)
    return {
        name: named_sharding(mesh, param.get_metadata("logical_axes"))
        for name, param in parameters.items()
    }
