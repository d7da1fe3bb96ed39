"""The number after the last "####"."""

from __future__ import annotations

import pytest

from r2jax.grading import extract_number, is_correct


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 5\n#### 5", "5"),
        ("#### 1,200", "1200"),
        ("#### $5.00", "5.00"),
        ("####-3 apples\nmore 7", "-3"),
        ("#### -$3", "-3"),
        ("#### 1\n#### 2", "2"),
        ("no marker 7", None),
        ("####\n7", None),
        ("#### none", None),
    ],
)
def test_extracts_what_follows_the_last_marker(text: str, number: str | None) -> None:
    assert extract_number(text) == number


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("#### 1,200", "1200", True),
        ("#### $5", "5.0", True),
        ("#### 0.50", "$.5", True),
        ("#### 5", "the reasoning of 9 things\n#### 5", True),
        ("#### 51", "5", False),
        ("#### -5", "5", False),
        ("5", "5", False),
    ],
)
def test_grades(text: str, answer: str, *, right: bool) -> None:
    assert is_correct(text, answer) is right


def test_an_answer_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="must hold a number"):
        is_correct("#### 5", "five")
