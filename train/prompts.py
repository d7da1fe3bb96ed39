"""Prompts to collect answers for: any data set that `datasets` reads, by names of its columns."""

from __future__ import annotations

import glob
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


class Prompt(NamedTuple):
    """A question, and the right answer where there is one."""

    text: str
    reference: str | None


def read_prompts(
    source: str, prompt_column: str, answer_column: str | None, *, split: str, limit: int | None
) -> list[Prompt]:
    """The first `limit` prompts of a data set.

    Args:
      source: a JSONL, JSON, parquet or CSV file (the first two also as .gz), or a hub id, with a
        configuration after a colon ("openai/gsm8k:main").
      prompt_column: whose texts are the prompts.
      answer_column: whose texts are the right answers; None: none are known.
      split: of a data set from the hub.
      limit: None: all.

    Raises:
      ValueError: no such file or data set, an unknown column, a row without text, no rows.
    """
    data = _load(source, split)
    wanted = [name for name in (prompt_column, answer_column) if name is not None]
    for name in wanted:
        if name not in data.column_names:
            raise ValueError(
                f"{source} has no column {name!r}; it has {', '.join(data.column_names)}"
            )
    if limit is not None:
        data = data.select(range(min(limit, len(data))))
    if not len(data):
        raise ValueError(f"{source} holds no prompts")
    prompts = []
    for i, row in enumerate(data):
        fields: dict[str, Any] = dict(row)
        for name in wanted:
            if isinstance(fields[name], (int, float)) and name == answer_column:
                fields[name] = str(fields[name])  # a bare number, as a CSV's are read
            if not isinstance(fields[name], str) or not fields[name].strip():
                raise ValueError(f"{source}, row {i}: {name} must be a text, got {fields[name]!r}")
        answer = None if answer_column is None else fields[answer_column]
        prompts.append(Prompt(fields[prompt_column], answer))
    return prompts


def _load(source: str, split: str) -> Any:
    """The data set; no code of it is run."""
    import datasets  # takes a second to import

    datasets.disable_progress_bars()
    path = Path(source)
    suffixes = [s for s in path.suffixes if s != ".gz"]
    options: dict[str, Any]
    kind = _FORMATS.get(suffixes[-1]) if suffixes else None
    if kind is not None:
        if not path.is_file():
            raise ValueError(f"{source}: there is no such file")
        # The name as it is, not as a pattern; and what is in the file now, not what was there once.
        name, options = kind, {"data_files": glob.escape(str(path)), "split": "train"}
        options |= {"cache_dir": tempfile.mkdtemp(), "keep_in_memory": True}
    else:
        name, _, config = source.partition(":")
        options = {"name": config or None, "split": split}
    try:
        return datasets.load_dataset(name, **options)
    except Exception as error:  # the hub's client, the readers: anything
        first = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ValueError(f"{source} cannot be read: {type(error).__name__}: {first}") from error
    finally:
        shutil.rmtree(options.get("cache_dir", ""), ignore_errors=True)
