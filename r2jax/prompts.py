"""Prompts from the command line, from files and from standard input."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

# What a record of an answer says beside the prompt; a line's own fields must leave them free.
RESULTS = (
    "text",
    "tokens",
    "prompt_length",
    "nfe",
    "refreshes",
    "counts",
    "batch",
    "seconds",
    "compile_seconds",
    "config",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt, where it stands, and what else stood in its line."""

    text: str
    where: str
    """For errors: 'prompt 3', or 'questions.jsonl, line 3, field "question"'."""
    fields: dict[str, Any]


def read_prompts(words: Sequence[str], files: Sequence[str], stdin: TextIO) -> list[Prompt]:
    """Prompts from the command line, from files, and from standard input.

    Args:
      words: prompts themselves; "-" stands for standard input.
      files: names of files. With neither words nor files, standard input is read, if it is no
        terminal.
      stdin: standard input.

    Raises:
      ValueError: no prompt at all, or a line that is no prompt.
      OSError: a file that cannot be read.
    """
    prompts: list[Prompt] = []
    if not words and not files and not stdin.isatty():
        words = ["-"]
    for i, word in enumerate(words, start=1):
        if word == "-":
            prompts += _lines(stdin, "standard input")
        else:
            prompts.append(_prompt(word, f"prompt {i}", {}))
    for file in files:
        with Path(file).open(encoding="utf-8-sig") as lines:  # Windows marks UTF-8 files
            prompts += _lines(lines, file)
    if not prompts:
        raise ValueError(
            'no prompt: give one as an argument, with --prompts-file, or "-" for stdin'
        )
    return prompts


def _lines(lines: Iterable[str], source: str) -> Iterator[Prompt]:
    """One prompt a line: plain text, or a JSON object with the field prompt or question."""
    try:
        for i, line in enumerate(lines, start=1):
            line, where = line.strip(), f"{source}, line {i}"
            if line.startswith("{"):
                yield _json_prompt(line, where)
            elif line:
                yield _prompt(line, where, {})
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text: {error}") from None


def _json_prompt(line: str, where: str) -> Prompt:
    try:
        fields = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{where} starts with a brace but is no JSON object ({error}); write such a prompt as "
            '{"prompt": "..."}'
        ) from None
    name = "prompt" if "prompt" in fields else "question"
    if not isinstance(fields.get(name), str):
        raise ValueError(f'{where} needs a text in the field "prompt" or "question"')
    for field in fields:
        if field in RESULTS:
            raise ValueError(
                f"{where} has a field {json.dumps(field)}, where the result stands; rename it"
            )
    return _prompt(fields[name], f"{where}, field {json.dumps(name)}", fields)


def _prompt(text: str, where: str, fields: dict[str, Any]) -> Prompt:
    try:
        json.dumps([text, fields], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # Such as "\ud800" in JSON, or bytes of an argument that are no UTF-8.
        raise ValueError(f"{where} holds half a character, which no text can hold") from None
    return Prompt(text=text, where=where, fields=fields)
