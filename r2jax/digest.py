"""Digests: short names of what shaped a result, to tell whether two runs are the same."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Of a checkpoint directory, what shapes an answer. generation_config.json holds defaults only: the
# decode configuration of a run says what became of them.
_SHAPING = ("config.json", "*.safetensors", "params/**/*", "tokenizer*", "chat_template*")


def of_json(value: Any) -> str:
    """SHA-256 of a value's JSON text."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def of_checkpoint(directory: str | os.PathLike[str]) -> str:
    """SHA-256 of a checkpoint directory's configuration, tokenizer and weights (all their bytes).

    Raises:
      OSError: a file cannot be read.
    """
    directory = Path(directory)
    files = sorted({file for shape in _SHAPING for file in directory.glob(shape) if file.is_file()})
    with ThreadPoolExecutor() as threads:  # hashlib lets go of the interpreter lock
        digests = list(threads.map(_of_file, files))
    return of_json(
        {f.relative_to(directory).as_posix(): d for f, d in zip(files, digests, strict=True)}
    )


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
