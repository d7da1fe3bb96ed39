"""Parameters as an orbax checkpoint: a nested dict of arrays that orbax reads without us.

parameters = orbax.checkpoint.StandardCheckpointer().restore(directory)
parameters["layers"]["3"]["q_proj"]["weight"]
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding

from r2jax.tensors import CheckpointError, Tensor

# Tensors are stored in pieces of about this size, so that a reader of a part of one reads little
# else. Larger than 32 MiB: glibc gives buffers above that back to the system as soon as they are
# freed (with 16 MiB the peak of a conversion was 290 MB higher).
_CHUNK_BYTES = 64 * 2**20


def open_tensors(directory: Path) -> dict[str, Tensor]:
    """Every array of the checkpoint by its path with dots, such as "layers.3.q_proj.weight".

    Raises:
      CheckpointError: orbax cannot read the directory.
    """
    directory = directory.absolute()  # orbax finds nothing under a relative path
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            metadata = checkpointer.metadata(directory).item_metadata.tree
        return {
            ".".join(path): Tensor(
                shape=tuple(leaf.shape),
                dtype=np.dtype(leaf.dtype),
                read=functools.partial(_read, directory, path),
                read_sharded=functools.partial(_read_sharded, directory, path),
            )
            for path, leaf in _leaves(metadata)
        }
    except Exception as error:  # whatever a damaged directory makes orbax and tensorstore raise
        raise CheckpointError(f"{directory} is no readable orbax checkpoint: {error}") from error


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _read(directory: Path, path: Sequence[str]) -> np.ndarray:
    return _restore(directory, path, ocp.RestoreArgs(restore_type=np.ndarray))


def _read_sharded(
    directory: Path, path: Sequence[str], sharding: Sharding, dtype: np.dtype
) -> jax.Array:
    return _restore(directory, path, ocp.ArrayRestoreArgs(sharding=sharding, dtype=dtype))


def _restore(directory: Path, path: Sequence[str], args: ocp.RestoreArgs) -> Any:
    """One leaf; everything else in the checkpoint is left alone."""
    item, restore_args = 0, args
    for key in reversed(path):
        item, restore_args = {key: item}, {key: restore_args}
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.restore(
                directory,
                args=ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True),
            )
    except Exception as error:  # see open_tensors
        raise CheckpointError(f"{directory}: cannot read {'.'.join(path)}: {error}") from error
    return jax.tree.leaves(tree)[0]


class _OneAtATime(ocp.type_handlers.NumpyHandler):
    """Writes `Tensor` leaves as arrays, each read when the one before is on disk."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._progress = progress

    async def serialize(
        self,
        values: Sequence[Any],
        infos: Sequence[Any],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> Sequence[Any]:
        args = args or [ocp.SaveArgs()] * len(values)
        for value, info, arg in zip(values, infos, args, strict=True):
            for written in await super().serialize([value.read()], [info], [arg]):
                written.result()
            self._progress(value.nbytes)
        return []


def write_tensors(
    directory: Path, tensors: Mapping[str, Tensor], progress: Callable[[int], None]
) -> None:
    """Write tensors as one orbax checkpoint. Holds one at a time.

    Args:
      directory: to be made.
      tensors: by path with dots.
      progress: called with the bytes of each tensor written.
    """
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = tensor
    handler = ocp.PyTreeCheckpointHandler(
        type_handler_registry=ocp.type_handlers.create_type_handler_registry(
            (Tensor, _OneAtATime(progress)),
            (jax.Array, ocp.type_handlers.ArrayHandler()),  # orbax warns when nobody writes these
        ),
        # bfloat16 weights compress by about 20 %; written plain they need no second buffer (the
        # peak was 170 MB lower) and are read faster.
        use_compression=False,
    )
    save_args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(directory, args=ocp.args.PyTreeSave(tree, save_args=save_args))
