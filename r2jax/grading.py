"""Grading of worked answers by the number after "####", GSM8K's convention."""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_SIGNED = re.compile(r"([-+]?)\s*[$€£]\s*([-+]?)")


def extract_number(text: str) -> str | None:
    """The number after the last "####", as written but without commas; None if there is none.

    Only the rest of that line counts: a currency sign before and a unit behind are ignored.
    """
    _, marker, rest = text.rpartition("####")
    if not marker:
        return None
    line = rest.lstrip(" \t").split("\n", 1)[0]
    found = _NUMBER.search(_SIGNED.sub(r"\1\2", line))
    return found[0].replace(",", "") if found else None


def normalise(number: str) -> Fraction | None:
    """The value of "1,200", "$5", "-5.0" or "12 apples"; None if it holds no number."""
    found = _NUMBER.search(_SIGNED.sub(r"\1\2", number))
    return Fraction(found[0].replace(",", "")) if found else None


def is_correct(text: str, answer: str) -> bool:
    """Whether the final number of a solution equals the answer's.

    Args:
      text: a solution that ends in "#### N".
      answer: the right number, or a whole reference solution with its own "####".

    Raises:
      ValueError: `answer` holds no number.
    """
    wanted = normalise(answer.rpartition("####")[2])
    if wanted is None:
        raise ValueError(f"answer must hold a number, got {answer!r}")
    found = extract_number(text)
    return found is not None and normalise(found) == wanted
