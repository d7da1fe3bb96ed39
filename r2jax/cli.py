"""The edge of every program here: a user's mistake is one line on stderr and exit status 2."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser that does not print its usage in front of an error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def run(program: str, main: Callable[[], int | None]) -> int:
    """Run `main` and return the exit status: its own, 2 for bad input, 130 when interrupted.

    Args:
      program: its name, in front of an error.
      main: raises ValueError or OSError for what the user can put right.
    """
    try:
        return main() or 0
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2


def check_output(path: str | None) -> None:
    """Refuse a file that could not be written, before the work that should end in it."""
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise ValueError(f"--output {path!r}: there is no such directory")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path`, which appears when it is complete."""
    aside = Path(f"{path}.part")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def write_json(path: str | None, value: Any) -> None:
    """Write `value` to `path`, which appears when it is complete; None: do nothing."""
    if path is not None:
        write_text(path, json.dumps(value, indent=1) + "\n")
