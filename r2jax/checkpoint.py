"""Load and save models: Hugging Face and converted (orbax) directories, hub ids, bundled names.

A checkpoint directory has a config.json (Hugging Face's own, kept byte for byte), tokenizer files,
and its parameters either as safetensors files under Hugging Face's names or as an orbax checkpoint
in `params/` under ours. Both hold the same tensors in the same orientation, so converting copies
bytes. Nothing here unpickles, and no code of a checkpoint is run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
from huggingface_hub import snapshot_download
from jax.sharding import Mesh, Sharding

from r2jax import orbax_files, safetensors_files
from r2jax.atomic import new_directory
from r2jax.config import ModelConfig
from r2jax.hf import hf_names, is_buffer
from r2jax.model import Transformer
from r2jax.quantize import DTYPES as NARROW
from r2jax.quantize import Quantization
from r2jax.sharding import check_mesh
from r2jax.tensors import DTYPES, CheckpointError, Tensor, check
from r2jax.weights import abstract, apart, assemble
from r2jax.weights import quantized as quantized_tensors

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
    quantized: Quantization | None = None
    """What the layers' projections are stored as, beside their scales (converted only)."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def load(
    source: str | os.PathLike[str],
    dtype: Any = None,
    mesh: Mesh | None = None,
    *,
    quantize: Quantization | None = None,
    fused: bool | None = None,
) -> Transformer:
    """The model of a checkpoint, on its devices.

    Tensors are read one by one straight into (sharded) arrays: beside the model, host and device
    never hold more than the parts of one matrix.

    Args:
      source: a directory (Hugging Face or converted), a bundled model's name, or a hub id.
      dtype: of the parameters, the activations and the logits: bfloat16, float16 or float32. None:
        as stored.
      mesh: from `r2jax.sharding.make_mesh`; None: JAX's default device.
      quantize: "fp8" or "int8": the layers' projections in 8 bits (quantize.py). None: as stored.
      fused: lay the weights out for decoding (fuse.py); False: apart, for training; None: fused
        where that pays, on NVIDIA GPUs (a TPU's compiler would lay them out anew at every use).

    Raises:
      CheckpointError: not found, damaged, of an unknown architecture, tensors missing, unexpected
        or misshapen.
      ValueError: another dtype, or a mesh that cannot hold the model (`sharding.check_mesh`).
    """
    checkpoint = open_checkpoint(resolve(source))
    if mesh is not None:
        check_mesh(mesh, checkpoint.config)
    try:
        target = stored_dtype(checkpoint, source) if dtype is None else np.dtype(dtype)
    except TypeError:
        target = None
    if target is None or target not in DTYPES.values():
        raise ValueError(f"dtype must be bfloat16, float16 or float32, got {dtype!r}")
    if quantize not in (None, *get_args(Quantization)):
        raise ValueError(f'quantize must be "fp8", "int8" or None, got {quantize!r}')
    if quantize is not None and checkpoint.quantized not in (None, quantize):
        raise CheckpointError(
            f"{source} is quantised to {checkpoint.quantized} already; load the original to "
            f"have {quantize}"
        )

    def read(name: str, dtype: np.dtype, sharding: Sharding | None) -> jax.Array:
        return checkpoint.tensors[name].array(dtype, sharding)

    return assemble(
        checkpoint.config,
        read,
        dtype=target,
        fused=fused,
        quantize=quantize or checkpoint.quantized,
        stored=checkpoint.quantized is not None,
        mesh=mesh,
    )


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
    skipped: tuple[str, ...] = ()
    kind = _kind(directory)
    quantized = None
    if kind == "converted":
        tensors = orbax_files.open_tensors(directory / _PARAMS)
        quantized = _quantization(tensors)
        narrow = NARROW[quantized] if quantized else None
        check(tensors, parameter_shapes(config, quantized), directory, narrow)
    else:
        shapes = parameter_shapes(config)
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
    return Checkpoint(
        config=config,
        tensors=tensors,
        files=files,
        kind=kind,
        skipped=skipped,
        quantized=quantized,
    )


def quantized(checkpoint: Checkpoint, kind: Quantization) -> Checkpoint:
    """The checkpoint with its projections in 8 bits, to be written as a converted one.

    Raises:
      CheckpointError: it is quantised already.
    """
    if checkpoint.quantized:
        raise CheckpointError(
            f"the checkpoint is quantised to {checkpoint.quantized} already; quantise the original"
        )
    tensors = quantized_tensors(checkpoint.tensors, checkpoint.config, kind)
    return dataclasses.replace(checkpoint, tensors=tensors, quantized=kind)


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
    if kind == "hf" and checkpoint.quantized:
        raise CheckpointError(
            f"the model is quantised to {checkpoint.quantized}, which Hugging Face's layout has no "
            "place for; write the original, or kind 'converted'"
        )
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
    tensors = apart(model)
    files = dict(files or {})
    if "config.json" not in files:
        config = model.config.to_hf(dtype=str(model.dtype))
        files["config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    return Checkpoint(
        config=model.config,
        tensors=tensors,
        files=files,
        kind="converted",
        quantized=_quantization(tensors),
    )


def _quantization(tensors: Mapping[str, Tensor]) -> Quantization | None:
    found = {tensor.dtype for tensor in tensors.values()}
    return next((kind for kind, dtype in NARROW.items() if dtype in found), None)


def parameter_shapes(
    config: ModelConfig, quantize: Quantization | None = None
) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a checkpoint, by its path, such as
    "layers.3.q_proj.weight"."""
    _, parameters = abstract(config, quantize=quantize)
    return {name: param.get_value().shape for name, param in parameters.items()}


def stored_dtype(checkpoint: Checkpoint, source: object) -> np.dtype:
    """What the tensors are stored in, scales and 8-bit projections apart.

    Raises:
      CheckpointError: in several dtypes.
    """
    dtypes = {
        tensor.dtype
        for name, tensor in checkpoint.tensors.items()
        if tensor.dtype not in NARROW.values() and not name.endswith(".scale")
    }
    if len(dtypes) > 1:
        names = ", ".join(sorted(map(str, dtypes)))
        raise CheckpointError(f"{source} mixes {names}; say which dtype the model should have")
    return dtypes.pop()
