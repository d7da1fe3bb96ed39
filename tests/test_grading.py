"""The number after the last "####", the last number of all, the last box."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import math_equal, math_grading
from eval.math_grading import grade_boxed
from r2jax.grading import (
    extract_number,
    is_correct,
    is_correct_flexibly,
    last_boxed,
    same_latex,
)
from tests.fake_comparison import hangs_or_dies

# In the form of GSM8K's and of MATH's solutions.
GSM8K = [
    "She sells 3 * 4 = <<3*4=12>>12 eggs, so 12 * $100 = $<<12*100=1200>>1200.\n#### 1,200",
    "Half of 7 is 3.5, which he loses.\n#### -3.5",
    "#### 0",
]
MATH = [
    r"Half of it is $\boxed{\frac{1}{2}}.$",
    r"So $x=\boxed{5}$ or, as the other root is negative, only $\boxed{x = \sqrt{25}}$.",
    r"The domain is $\boxed{\left[2, 5\right) \cup (7, \infty)}$",
    r"In all \[\boxed{10,\!080 \text{ ways}}.\]",
    r"The angle has \boxed{90^\circ}.",
    r"$$\boxed{\begin{pmatrix} -1/3 \\ 2 \end{pmatrix}}$$",
    r"That is, $\boxed{\text{(C)}}$.",
    r"written $\boxed{\{1\pm\sqrt{5},-2\}}$ or \fbox{",
]


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


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("The answer is 18.", "#### 18", True),
        ("It was 17, now it is $1,200.", "#### 1200", True),
        ("so -5", "#### -5", True),
        ("so - 5", "#### -5", False),
        ("18 eggs, 3 a day", "#### 18", False),  # the last number, whatever it is
        ("#### 18\n\nQuestion 2", "#### 18", False),
        ("It is 18.0", "#### 18", False),  # as written
        ("none", "#### 18", False),
        ("", "#### 0", False),
        ("18", "so 3 * 6 = 18\n#### 18", True),
    ],
)
def test_grades_flexibly_as_lm_eval(text: str, answer: str, *, right: bool) -> None:
    assert is_correct_flexibly(text, answer) is right


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed{5} or \boxed{ \frac{1}{2} }.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),  # the escaped brace opens nothing
        (r"\boxed{1 \text{ or } \boxed{2}}", r"1 \text{ or } \boxed{2}"),
        (r"\boxed{7} and \boxed{8", "7"),  # cut off
        (r"\fbox {A}", "A"),
        (r"\boxed{}", ""),
        (r"boxed{5}", None),
        ("5", None),
    ],
)
def test_finds_the_last_box(text: str, boxed: str | None) -> None:
    assert last_boxed(text) == boxed


@given(st.text(alphabet="ab{}\\ "), st.text(alphabet="\\boxed{} "))
def test_a_box_holds_what_was_put_in(content: str, before: str) -> None:
    """Of balanced braces, after anything that does not open a box around it."""
    before, content = before.replace("{", ""), content.replace("\\", "")
    depths = [content[:i].count("{") - content[:i].count("}") for i in range(len(content) + 1)]
    if min(depths) < 0 or depths[-1] != 0:
        content = content.replace("{", "").replace("}", "")
    assert last_boxed(f"{before} \\boxed{{{content}}}}}") == content.strip()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (r"\dfrac{1}{2}", r"\frac{1}{2}", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", True),
        (r"10,\!080", "10080", True),
        ("58,500", "58{,}500", True),
        ("11, 111, 111", "11111111", True),
        (r"\$36.", "36", True),
        (r"90^\circ", "90", True),
        (r"\text{east}", "east", True),
        ("(1,100)", "(1100)", False),
        ("1 2", "12", False),
        ("1,2", "12", False),
        ("-1", "1", False),
        ("a", "A", False),
        (r"\leftarrow", "arrow", False),
    ],
)
def test_compares_how_answers_are_written(one: str, other: str, *, same: bool) -> None:
    assert same_latex(one, other) is same
    assert same_latex(other, one) is same


def test_reference_solutions_are_right() -> None:
    assert all(is_correct(answer, answer) for answer in GSM8K)
    assert all(is_correct_flexibly(answer, answer) for answer in GSM8K)
    assert all(last_boxed(solution) for solution in MATH)
    assert grade_boxed(MATH, MATH, workers=1) == [True] * len(MATH)
    assert grade_boxed(MATH, [str(last_boxed(s)) for s in MATH], workers=1) == [True] * len(MATH)


def test_boxes_are_compared_as_mathematics() -> None:
    """What is not written alike goes to math-verify."""
    rows = [
        (r"\boxed{0.5}", MATH[0], True),
        (r"\boxed{\frac{2}{3}}", MATH[0], False),
        (r"\boxed{5}", MATH[1], True),
        (r"\boxed{[2,5) \cup (7,\infty)}", MATH[2], True),
        (r"\boxed{[2,5] \cup (7,\infty)}", MATH[2], False),
        (r"\boxed{10080}", MATH[3], True),
        (r"\boxed{\begin{pmatrix} -\frac13 \\ 2 \end{pmatrix}}", MATH[5], True),
        (r"\boxed{C}", MATH[6], True),
        (r"\boxed{B}", MATH[6], False),
        (r"\boxed{-2, 1-\sqrt5, 1+\sqrt5}", MATH[7], True),
        (r"\boxed{q - p}", "p - q", False),
        (r"\boxed{(b+2)(a+5)}", "ab + 2a + 5b + 10", True),
        (r"\boxed{}", "5", False),
        (r"\boxed{\frac{}}", "5", False),
        ("5", "5", False),  # no box
        ("", "5", False),
    ]
    done: list[int] = []
    texts, references, right = zip(*rows, strict=True)
    graded = grade_boxed(texts, references, workers=1, advance=lambda: done.append(1))
    assert graded == list(right)
    assert len(done) == len(rows)


def test_a_reference_must_hold_an_answer() -> None:
    with pytest.raises(ValueError, match="reference answer 1 is empty"):
        grade_boxed(["", ""], ["5", " "], workers=1)


def test_a_comparison_that_hangs_or_dies_is_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_equal, "equal", hangs_or_dies)
    monkeypatch.setattr(math_equal, "prepare", print)
    monkeypatch.setattr(math_grading, "_LAST_SECONDS", 1)
    texts = [f"\\boxed{{{word}}}" for word in ("hang", "A", "die", "A")]
    assert grade_boxed(texts, ["a"] * 4, workers=1) == [False, True, False, True]
