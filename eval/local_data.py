"""Problems from local files: JSON lines, plain or gzipped."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Table(NamedTuple):
    """The rows of a file."""

    rows: list[dict[str, Any]]
    source: str
    """Its name and the SHA-256 of its bytes, for results."""


def read_table(path: str | Path) -> Table:
    """The objects of a JSONL file (.gz: gzipped), one a line; empty lines are passed over.

    Raises:
      ValueError: no rows, or a line that is no JSON object.
      OSError: the file cannot be read.
    """
    data = Path(path).read_bytes()
    source = f"{Path(path).name} (sha256 {hashlib.sha256(data).hexdigest()})"
    try:
        text = (gzip.decompress(data) if str(path).endswith(".gz") else data).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not (gzipped) UTF-8 text: {error}") from None
    rows = []
    for i, line in enumerate(io.StringIO(text), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {i}: must be a JSON object, got {line[:40]!r}")
            rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no problems")
    return Table(rows, source)


def read_problems(path: str | Path) -> list[dict[str, str]]:
    """Questions and answers of a JSONL file, as texts.

    Raises:
      ValueError: no problems, or one without question and answer.
      OSError: the file cannot be read.
    """
    return problems_of(read_table(path), path)


def problems_of(table: Table, path: str | Path) -> list[dict[str, str]]:
    """`read_problems` of a file that has been read."""
    problems = []
    for i, row in enumerate(table.rows, start=1):
        try:
            problems.append({field: str(row[field]) for field in ("question", "answer")})
        except KeyError:
            raise ValueError(
                f'{path}, problem {i}: must be {{"question": ..., "answer": ...}}'
            ) from None
    return problems


def parse_data(words: Sequence[str], tasks: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Files by task and split, from `--data TASK=FILE` and `--data TASK:SPLIT=FILE`.

    Args:
      words: the option's values.
      tasks: those that are evaluated.

    Returns:
      For each task its files by split; "" is the split that is evaluated.

    Raises:
      ValueError: not of that form, a task that is not evaluated, or a split given twice.
      OSError: there is no such file.
    """
    found: dict[str, dict[str, Path]] = {}
    for word in words:
        name, equals, file = word.partition("=")
        task, _, split = name.partition(":")
        if not equals or not task or not file:
            raise ValueError(f"--data must be TASK=FILE or TASK:SPLIT=FILE, got {word!r}")
        if task not in tasks:
            raise ValueError(f"--data {word}: --tasks does not name {task!r}")
        if split in found.setdefault(task, {}):
            raise ValueError(f"--data names {name} twice")
        if not Path(file).is_file():
            raise FileNotFoundError(f"--data {word}: there is no such file")
        found[task][split] = Path(file)
    return found
