"""Grading of worked answers by what a solution ends in: the number after "####" (GSM8K), the last
number of all (lm-eval's flexible match), the last box (MATH)."""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")  # lm-eval's, gsm8k "flexible-extract"
_FLEXIBLE_IGNORED = (",", r"\$", r"(?s).*#### ", r"\.$")  # in this order
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
# Between digits a blank counts: "1 2" is not "12".
_LATEX_SPACING = re.compile(r"\\left\b|\\right\b|\\[!,;: ]|~|(?<!\d)\s|\s(?!\d)")
_LATEX_SIGNS = re.compile(r"\\?\$|\^\\circ|\^\{\\circ\}")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")
_LATEX_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf)\{([^{}]*)\}")
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


def is_correct_flexibly(text: str, answer: str) -> bool:
    """lm-eval's gsm8k "flexible-extract": whether the last number in a solution is the answer's.

    As there, the two are compared as written, but for commas, dollar signs and a full stop at the
    end: 5.0 is not 5.

    Args:
      text: a solution.
      answer: the right number, or a whole reference solution with "#### N" at its end.
    """
    found = _FLEXIBLE.findall(text)
    return bool(found) and _as_compared(found[-1]) == _as_compared(answer)


def _as_compared(number: str) -> str:
    for ignored in _FLEXIBLE_IGNORED:
        number = re.sub(ignored, "", number)
    return number


def last_boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...} (or \fbox) whose braces close; None if there is none.

    Of boxes in a box the outer one counts.
    """
    boxed, end = None, 0
    for box in _BOX.finditer(text):
        if box.start() >= end and (close := _closing_brace(text, box.end())) is not None:
            boxed, end = text[box.end() : close].strip(), close
    return boxed


def _closing_brace(text: str, start: int) -> int | None:
    """Where the brace closes that was opened before `start`. Escaped braces do not count."""
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", text[start:]):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return start + brace.start()
    return None


def same_latex(answer: str, other: str) -> bool:
    """Whether two answers in LaTeX are written alike, but for spacing, dollar and degree signs, the
    size of fractions, thousands' commas, text as against mathematics, and a full stop."""
    return _plain_latex(answer) == _plain_latex(other)


def _plain_latex(answer: str) -> str:
    plain = _LATEX_SIGNS.sub("", _LATEX_SPACING.sub("", _LATEX_TEXT.sub(r"\1", answer)))
    plain = re.sub(r"\\[dt]frac", r"\\frac", plain).replace("{,}", ",").removesuffix(".")
    return plain.replace(",", "") if _THOUSANDS.fullmatch(plain) else plain
