"""Command-line options that follow from `DecodeConfig`, and the reading of prompts."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from r2jax.decode_config import DecodeConfig

PRESETS = ("r2", "fast_dllm", "vanilla")


def add_decode_options(parser: argparse.ArgumentParser) -> None:
    """`--preset`, and one option per field of `DecodeConfig`, so that the two cannot drift apart.

    Values are only turned into Python here; `DecodeConfig` judges them, with its own messages.
    """
    group = parser.add_argument_group(
        "decoding",
        "Every option of r2jax.DecodeConfig by its name; 'none' switches a rule off. Defaults are\n"
        "the checkpoint's generation_config.json, then the preset's ([r2's] are shown).",
    )
    group.add_argument(
        "--preset",
        choices=PRESETS,
        default="r2",
        help="R²-dLLM (default), Fast-dLLM, or LLaDA's own sampler; the options below change it",
    )
    hints, texts = typing.get_type_hints(DecodeConfig), _field_docstrings()
    for field in dataclasses.fields(DecodeConfig):
        hint = hints[field.name]
        text = texts.get(field.name, "").replace("%", "%%")
        default = "none" if field.default is None else str(field.default).lower()
        arguments: dict[str, Any] = {
            "default": argparse.SUPPRESS,
            "help": f"{text} [{default}]".strip(),
        }
        if hint is bool:
            arguments["action"] = argparse.BooleanOptionalAction
        else:
            keep_none = "none" in _choices(hint)  # a choice of that name, not None
            arguments["type"] = lambda text, keep_none=keep_none: _value(text, keep_none)
            arguments["metavar"] = _metavar(hint)
        group.add_argument(f"--{field.name.replace('_', '-')}", **arguments)


def decode_config(args: argparse.Namespace, defaults: dict[str, Any]) -> DecodeConfig:
    """The configuration that the options ask for.

    Args:
      args: parsed with `add_decode_options`.
      defaults: the checkpoint's, from `generation_defaults`; options win.

    Raises:
      ValueError: from `DecodeConfig`.
    """
    names = [field.name for field in dataclasses.fields(DecodeConfig)]
    chosen = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return getattr(DecodeConfig, args.preset)(**{**defaults, **chosen})


def dashes(argv: Sequence[str]) -> list[str]:
    """Options may be written as in Python: --gen_length is --gen-length. Prompts stay as is."""
    out = list(argv)
    for i, word in enumerate(argv):
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            if " " not in name:
                out[i] = name.replace("_", "-") + equals + value
    return out


def read_prompts(words: Sequence[str], files: Sequence[str], stdin: TextIO) -> list[str]:
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
    prompts: list[str] = []
    if not words and not files and not stdin.isatty():
        words = ["-"]
    for word in words:
        prompts += _lines(stdin, "standard input") if word == "-" else [word]
    for file in files:
        with Path(file).open(encoding="utf-8") as lines:
            prompts += _lines(lines, file)
    if not prompts:
        raise ValueError('no prompt: give one as an argument, with --prompt-file, or "-" for stdin')
    return prompts


def _lines(lines: Iterable[str], source: str) -> Iterator[str]:
    """One prompt a line: plain text, or a JSON object with the field prompt or question."""
    try:
        for i, line in enumerate(lines, start=1):
            line = line.strip()
            if line.startswith("{"):
                yield _json_prompt(line, f"{source}, line {i}")
            elif line:
                yield line
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text: {error}") from None


def _json_prompt(line: str, where: str) -> str:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where} starts with a brace but is no JSON object ({error}); write such a prompt as "
            '{"prompt": "..."}'
        ) from None
    prompt = fields.get("prompt", fields.get("question"))
    if not isinstance(prompt, str):
        raise ValueError(f'{where} needs a text in the field "prompt" or "question"')
    return prompt


def _value(text: str, keep_none: bool) -> Any:
    """A Python value: none, a number, numbers joined by commas, or the text itself."""
    if text.lower() == "none" and not keep_none:
        return None
    if "," in text:
        return tuple(_value(part, keep_none) for part in text.split(","))
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def _choices(hint: Any) -> tuple[Any, ...]:
    """The values that a type hint lists: of Literal["a", "b"] | None, "a" and "b"."""
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    return tuple(choice for part in typing.get_args(hint) for choice in _choices(part))


def _metavar(hint: Any) -> str:
    parts = typing.get_args(hint) or (hint,)
    choices = _choices(hint)
    names = list(choices) or [
        {int: "INT", float: "NUMBER"}.get(part, "INT,...")
        for part in parts
        if part is not type(None)
    ]
    return "|".join(names + ["none"] * (type(None) in parts))


def _field_docstrings() -> dict[str, str]:
    """The strings under the fields of `DecodeConfig`, which document them in one place."""
    (body,) = ast.parse(inspect.getsource(DecodeConfig)).body
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name) and isinstance(text.value, ast.Constant)
            texts[field.target.id] = " ".join(str(text.value.value).split())
    return texts
