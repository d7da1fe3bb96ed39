"""Directories that appear complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from r2jax.tensors import CheckpointError


@contextlib.contextmanager
def new_directory(path: Path, num_bytes: int, *, force: bool = False) -> Iterator[Path]:
    """A directory to write into, which becomes `path` when the block ends without an error.

    It is a sibling of `path` (so that the last step is one rename) and is removed on any error.

    Args:
      path: where the result is to stand.
      num_bytes: what will be written, for the check of free space.
      force: replace an older checkpoint at `path`, once the new one is complete.

    Raises:
      CheckpointError: `path` exists (or, with force, is no checkpoint), there is too little space,
        or the disk fills up while writing.
    """
    path = path.absolute()
    if path.exists() and not force:
        raise CheckpointError(f"{path} exists already; choose another name or pass --force")
    if path.exists() and not (path / "config.json").is_file():
        raise CheckpointError(f"{path} is not a checkpoint (no config.json); it is not replaced")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < num_bytes:
            raise CheckpointError(
                f"{path} needs {num_bytes:,} bytes, but only {free:,} are free on that disk"
            )
        partial = path.parent / f".{path.name}.partial-{os.getpid()}"
        partial.mkdir()
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error
    try:
        yield partial
        _replace(path, partial)
    except Exception as error:
        if _is_full_disk(error):
            raise CheckpointError(
                f"the disk of {path} is full ({num_bytes:,} bytes are needed); nothing was kept"
            ) from error
        if isinstance(error, OSError):
            raise CheckpointError(f"cannot write {path}: {error}") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(path: Path, partial: Path) -> None:
    if not path.exists():
        partial.rename(path)
        return
    old = partial.with_name(partial.name + ".old")
    path.rename(old)
    partial.rename(path)
    shutil.rmtree(old)


def _is_full_disk(error: BaseException | None) -> bool:
    """Whether a full disk is the cause: tensorstore says so in words, inside other exceptions."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
