"""`Journal`: the records of a long run, kept as they come, so that a crash loses none of them.

While a run lasts its records stand in `OUT.partial`, in the order in which they were made:

    {"r2jax journal": 1, "count": 500, "settings": {...}}     what shapes the results
    [17, {...}]                                               index in the list, record
    [3, {...}]

Each append is on the disk when it returns. A run with the same settings keeps every whole line and
makes the others anew; one with other settings is refused. At the end the records are written in the
list's order to OUT, which appears when it is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

_MAGIC = b'{"r2jax journal": 1, '


class Journal:
    """A resumable JSONL file; `with Journal(...) as journal`, then `append` ... `finish`."""

    def __init__(
        self, path: str | os.PathLike[str], settings: Mapping[str, Any], count: int
    ) -> None:
        """Start a journal, or go on with the one of an earlier run.

        Args:
          path: of the final file, one JSON record a line.
          settings: everything that shapes the records, as JSON: the checkpoint's digest, the decode
            configuration, the prompts' digest, ... What only shapes speed does not belong here.
          count: records of the complete list.

        Raises:
          ValueError: the final file exists, the journal belongs to other settings or is none, or
            another process is writing it.
          OSError: it cannot be written.
        """
        self.path = Path(path)
        self.partial = Path(f"{path}.partial")
        self.count = count
        self._offsets: dict[int, int] = {}
        settings = json.loads(json.dumps(settings))  # as they will be read again: lists, no tuples
        if not self.partial.exists():
            self._refuse_to_overwrite()
        self._file: BinaryIO = open(self.partial, "a+b")  # noqa: SIM115 - closed by __exit__
        try:
            _lock(self._file, self.partial)
            self._recover(settings)
            if len(self._offsets) < count:
                self._refuse_to_overwrite()
        except BaseException:
            self._file.close()
            raise

    @property
    def done(self) -> Collection[int]:
        """Indices of the records that are kept."""
        return self._offsets.keys()

    def append(self, records: Mapping[int, Any]) -> None:
        """Keep records, by their index in the list; they are on the disk when this returns."""
        lines = []
        end = self._file.seek(0, os.SEEK_END)
        offsets = {}
        for index, record in records.items():
            if not 0 <= index < self.count or index in self._offsets:
                raise ValueError(f"record {index} of {self.count} is out of range or kept already")
            line = _line([index, record])
            offsets[index] = end
            end += len(line)
            lines.append(line)
        self._write(b"".join(lines))
        self._offsets |= offsets

    def finish(self) -> None:
        """Write the final file in the list's order, and remove the journal.

        Raises:
          ValueError: records are missing.
        """
        records = self.records()
        ordered = Path(f"{self.path}.tmp")
        with ordered.open("wb") as out:
            out.writelines(_line(record) for record in records)
            out.flush()
            os.fsync(out.fileno())
        os.replace(ordered, self.path)
        _sync_directory(self.path)
        # Killed before this line, the next run finds a complete journal and ends the same way.
        self.discard()

    def records(self) -> Iterator[Any]:
        """All records in the list's order, for those who make another final file of them.

        Raises:
          ValueError: records are missing.
        """
        if len(self._offsets) < self.count:
            raise ValueError(f"{self.partial} holds {len(self._offsets)} of {self.count} records")

        def read() -> Iterator[Any]:
            for index in range(self.count):
                self._file.seek(self._offsets[index])
                yield json.loads(self._file.readline())[1]

        return read()

    def discard(self) -> None:
        """Remove the journal: what it holds is kept elsewhere, or is nothing."""
        self.partial.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _refuse_to_overwrite(self) -> None:
        if self.path.exists():
            raise ValueError(f"{self.path} exists already; remove it or choose another name")

    def _recover(self, settings: Any) -> None:
        """Find the records of an earlier run; cut off a last line that a crash cut short.

        A line stands for itself: one that is damaged in another way (pages of one write may reach
        the disk in any order; a disk or an editor may do worse) is passed over, with a warning, and
        those behind it are kept.
        """
        self._file.seek(0)
        head = self._file.readline()
        end = len(head)
        if not head.endswith(b"\n") and _MAGIC.startswith(head[: len(_MAGIC)]):
            self._file.truncate(0)
            header = {"r2jax journal": 1, "count": self.count, "settings": settings}
            self._write(_line(header))
            _sync_directory(self.partial)
            return
        header = _parse(head)
        if not isinstance(header, dict) or not isinstance(header.get("settings"), dict):
            raise ValueError(
                f"{self.partial} is not a journal of r2jax; remove it or choose another name for "
                "the output"
            )
        before = {"count": header.get("count"), **header["settings"]}
        changes = list(differences(before, {"count": self.count, **settings}))
        if changes:
            raise ValueError(
                f"{self.partial} holds the results of other settings: {'; '.join(changes)}. Go on "
                "with the settings it was begun with, choose another name for the output, or "
                "remove the file to start anew"
            )
        damaged = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break  # cut short, so it is the last
            entry = _parse(line)
            if (
                isinstance(entry, list)
                and len(entry) == 2
                and entry[0] in range(self.count)
                and entry[0] not in self._offsets
            ):
                self._offsets[entry[0]] = end
            else:
                damaged += 1
            end += len(line)
        self._file.truncate(end)
        if damaged:
            warnings.warn(
                f"{self.partial}: {damaged} damaged lines are passed over; their records are made "
                "anew",
                stacklevel=3,
            )

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:  # a full disk, which names no file by itself
            raise OSError(error.errno, error.strerror, str(self.partial)) from error


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _parse(line: bytes) -> Any:
    """The value of a whole line; None for a line that is damaged or cut short."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:  # no JSON, or no UTF-8
        return None


def differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """What differs, by dotted name: "decode.threshold was 0.9, is now 0.8"."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name} was {_shown(old)}, is now {_shown(new)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:13]}...{text[-1]}"


def _lock(file: BinaryIO, path: Path) -> None:
    """Refuse a journal that another process writes; the lock goes with the process, however ended.

    Without effect on Windows and on file systems that have no locks.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{path} is being written by another process") from None
    except OSError:
        return


def _sync_directory(path: Path) -> None:
    """Bring a new name in a directory to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path.absolute().parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
