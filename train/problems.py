"""Word problems with worked solutions: exact steps, endlessly varied wording.

The problems are reasoning-gym's gsm_symbolic (Apache-2.0) solved as train/templates.py says, and
plain arithmetic drills. `problem(rng)` draws one; `train.wording.solution` writes it out.

Training and held-out problems never meet: a generator's seed below 2**40 is training, above is
held-out, and a question whose CRC-32 is divisible by `HELD_OUT` is kept for held-out sets, any
other for training, so that templates with few variants do not give the same text to both.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
import types
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from train.templates import TEMPLATES

HELD_OUT = 40
"""One question in 40 belongs to the held-out side."""
DRILL_SHARE = 0.07
_SPLIT = 2**40
_OPERATOR = re.compile(r" ([-+*/%~@]) ")
_REPAIRS = (
    (re.compile(r"(\d)\.0\b(?!\d)"), r"\1"),
    (re.compile(r"\.00%"), "%"),
    (re.compile(r"\b([2-9]|\d\d+) (slice|hour|liter|month)\b"), r"\1 \2s"),
    (re.compile(r"\b1 months\b"), "1 month"),
    (re.compile(r"\b(for \d+) the amount"), r"\1 times the amount"),
    (re.compile(r"\b(ride the [a-z ]+? \d+)\."), r"\1 times."),
    (re.compile(r"(in full \d+),"), r"\1 times,"),
    (re.compile(r"(slew \d+) as many"), r"\1 times as many"),
    (re.compile(r"\b(bunch|peach)s\b"), r"\1es"),
    (re.compile(r"\b([Aa]) (?=(?:[aeio]|8-|80-)(?!ne\b))"), r"\1n "),
    (re.compile(r"\b([Aa])n (?=[bcdfgjklmnpqrstvwxyz])"), r"\1 "),
    (re.compile(r"(?<=[.?] )([a-z])"), lambda found: found[1].upper()),
    (re.compile(r"^([a-z])"), lambda found: found[1].upper()),
)


class Step(NamedTuple):
    """One computation: the thing computed, the operator, its operands and the exact result."""

    label: str
    operator: str
    operands: tuple[Fraction, ...]
    shown: tuple[str, ...]
    value: Fraction
    unit: str
    needs: frozenset[int]
    parts: tuple[str, ...]
    """The partial results that the step is taken apart into, if any: 24 * 13 -> 240, 72."""


class Problem(NamedTuple):
    """A question, its answer as text, and the steps that lead there (the last one gives it)."""

    question: str
    answer: str
    steps: tuple[Step, ...]
    template: int


def number(value: Fraction) -> str | None:
    """The number in digits, or None if it needs more than four decimals."""
    if value.denominator == 1:
        return str(value.numerator)
    if 10000 % value.denominator:
        return None
    return f"{float(value):.4f}".rstrip("0")


def compute(operator: str, operands: tuple[Fraction, ...]) -> Fraction:
    """The exact result. Raises ZeroDivisionError as division does."""
    first, *rest = operands
    for other in rest:
        match operator:
            case "+":
                first += other
            case "-":
                first -= other
            case "*" | "~":
                first *= other
            case "/":
                first /= other
            case "%":
                first = first * other / 100
            case "@":
                first = first * 100 / other
            case _:
                raise ValueError(f"operator must be one of + - * / % ~ @, got {operator!r}")
    return first


def _places(value: Fraction) -> list[int]:
    """The number's non-zero places: 132 -> [100, 30, 2]."""
    text = str(value.numerator)
    return [int(d) * 10 ** (len(text) - 1 - i) for i, d in enumerate(text) if d != "0"]


def partial_results(
    operator: str, operands: tuple[Fraction, ...], value: Fraction
) -> tuple[str, ...]:
    """Two to four terms with the step's result as their sum, each easy to see; or none."""
    if len(operands) != 2:
        return ()
    a, b = operands
    parts: list[Fraction] = []
    match operator:
        case "*":
            whole = [x for x in (a, b) if x.denominator == 1]
            if not whole:
                return ()
            # The factor with fewer places is taken apart, unless it has but one.
            split = min(whole, key=lambda x: (len(_places(x)), x))
            other = b if split is a else a
            if len(_places(split)) == 1 and len(_places(other)) > 2:
                split, other = other, split
            if split.denominator == 1:
                parts = [other * place for place in _places(split)]
        case "%":
            if a.denominator == 1:
                parts = [b * place / 100 for place in _places(a)]
                if any(part.denominator > 1 for part in parts):
                    return ()
        case "/":
            if b > 2 and value.denominator == 1:
                parts = [Fraction(place) for place in _places(value)]
    texts = [number(part) for part in parts]
    if not 2 <= len(texts) <= 4:
        return ()
    return tuple(text for text in texts if text is not None)


@functools.cache
def _generators() -> dict[int, Callable[[Random, float], dict[str, Any]]]:
    """The generator functions, from their two files alone.

    Importing the package loads every other task of reasoning-gym: two seconds a process, and a
    dozen dependencies that these files do not use. So the package is stood in for while they load.
    """
    spec = importlib.util.find_spec("reasoning_gym")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("reasoning_gym is not installed: pip install reasoning-gym")
    root = Path(spec.submodule_search_locations[0])
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if _ours(name)}
    package = types.ModuleType("reasoning_gym")
    package.__path__ = [str(root)]
    sys.modules["reasoning_gym"] = package
    try:
        found: dict[int, Callable[[Random, float], dict[str, Any]]] = {}
        for name in ("generators_00_49", "generators_50_99"):
            path = root / "arithmetic" / "gsm_symbolic" / f"{name}.py"
            file_spec = importlib.util.spec_from_file_location(name, path)
            if file_spec is None or file_spec.loader is None:
                raise ModuleNotFoundError(f"{path}: reasoning-gym has no such file")
            module = importlib.util.module_from_spec(file_spec)
            file_spec.loader.exec_module(module)
            for index in TEMPLATES:
                if hasattr(module, f"generate_{index}"):
                    found[index] = getattr(module, f"generate_{index}")
    finally:
        for name in list(sys.modules):
            if _ours(name):
                del sys.modules[name]
        sys.modules.update(before)
    return found


def _ours(name: str) -> bool:
    return name == "reasoning_gym" or name.startswith("reasoning_gym.")


@functools.cache
def _recipe(template: int) -> tuple[tuple[str, str, str, tuple[str, ...], str], ...]:
    """(key, label, operator, operand names, unit) of each step."""
    steps = []
    for line in TEMPLATES[template].splitlines():
        key, label, expression, unit = (part.strip() for part in line.split("|"))
        operators = set(_OPERATOR.findall(expression))
        if len(operators) != 1:
            raise ValueError(f"template {template}, step {key}: not one operator in {expression!r}")
        steps.append((key, label, operators.pop(), tuple(_OPERATOR.split(expression)[::2]), unit))
    return tuple(steps)


def _variables(template: int, example: dict[str, Any]) -> dict[str, Any]:
    variables = dict(example["metadata"]["variables"])
    match template:
        case 26:  # the question shows percentages, the variables are fractions
            variables["percent_first"] = round(100 * variables["fraction_first"])
            variables["percent_second"] = round(100 * variables["fraction_second"])
        case 38:
            variables["n"] = variables["skeins_per_item"]
        case 70:  # the question says how many fell, the variables which share
            variables["dropped"] = variables["initial_count"] - variables["remaining"]
        case 76:
            variables["accept_percent"] = round(100 * variables["acceptance_fraction"])
        case 95:
            variables["daily"] = [variables[f"daily_servings{i}"] for i in (1, 2, 3)]
            variables["days"] = 7 if variables["time_period"] == "week" else 30
    return variables


def _exact(value: Any) -> Fraction:
    return Fraction(str(round(value, 6)) if isinstance(value, float) else value)


def instance(template: int, seed: int) -> Problem | None:
    """One problem of a template, or None where its steps do not give a clean, right answer."""
    example = _generators()[template](Random(seed), 1.0)
    variables = _variables(template, example)
    currency = variables.get("currency", "$")
    values: dict[str, tuple[Fraction, str, int]] = {}
    steps: list[Step] = []
    for key, label, operator, names, unit in _recipe(template):
        operands, shown, needs = [], [], set()
        for name in names:
            if name in values:
                value, text, index = values[name]
                needs.add(index)
            else:
                raw: Any = name
                if not name.isdigit():
                    variable, _, item = name.partition("[")
                    raw = variables[variable]
                    raw = raw[int(item[:-1])] if item else raw
                value = _exact(raw)
                # A fraction is shown as the question shows it: 3/4, or 0.75.
                text = number(value) if not isinstance(raw, str | Fraction) else str(raw)
                if text is None:
                    return None
            operands.append(value)
            shown.append(text)
        try:
            result = compute(operator, tuple(operands))
        except ZeroDivisionError:
            return None
        text = number(result)
        if text is None or result < 0:
            return None
        values[key] = result, text, len(steps)
        unit = currency if unit == "$" else unit.format_map(variables)
        label = label.format_map(variables)
        steps.append(
            Step(
                label=label,
                operator=operator,
                operands=tuple(operands),
                shown=tuple(shown),
                value=result,
                unit=unit,
                needs=frozenset(needs),
                parts=partial_results(operator, tuple(operands), result),
            )
        )
    answer = number(steps[-1].value)
    if answer is None or steps[-1].value != _exact(example["answer"].replace(",", "")):
        return None
    question = example["question"]
    for pattern, repaired in _REPAIRS:
        question = pattern.sub(repaired, question)
    return Problem(question, answer, tuple(steps), template)


_ASK = ("What is {}?", "Compute {}.", "Calculate {}.", "Find the value of {}.", "How much is {}?")


def drill(seed: int) -> Problem:
    """A plain calculation of one to three steps, solved from left to right."""
    rng = Random(seed)
    value = Fraction(rng.randint(2, rng.choice((20, 99, 999))))
    text = str(value)
    steps: list[Step] = []
    for index in range(rng.choice((1, 2, 2, 3))):
        operator = rng.choice("++--**/")
        other = rng.randint(2, 12 if operator in "*/" else rng.choice((20, 99, 999)))
        if operator == "*" and value < 100:
            other = rng.randint(2, 99)
        if (operator == "-" and other > value) or (operator == "*" and value > 999):
            operator = "+"
        if operator == "/" and (value % other or value == 0):
            operator = "+"
        operands = (value, Fraction(other))
        value = compute(operator, operands)
        # Left to right, so a product of a longer expression needs brackets.
        text = f"({text})" if index and operator in "*/" and steps[-1].operator in "+-" else text
        text = f"{text} {operator} {other}"
        needs = frozenset({index - 1} if index else ())
        label = ("first result", "second result", "third result")[index]
        steps.append(
            Step(
                label=label,
                operator=operator,
                operands=operands,
                shown=tuple(map(str, operands)),
                value=value,
                unit="",
                needs=needs,
                parts=partial_results(operator, operands, value),
            )
        )
    steps[-1] = steps[-1]._replace(label="value of the expression")
    return Problem(rng.choice(_ASK).format(text), str(value), tuple(steps), -1)


def is_held_out(question: str) -> bool:
    """Whether this question belongs to the held-out side."""
    return zlib.crc32(question.encode()) % HELD_OUT == 0


def problem(rng: Random, *, held_out: bool = False) -> Problem:
    """A problem of one side; drills in training only."""
    templates = tuple(TEMPLATES)
    while True:
        seed = rng.randrange(_SPLIT) + (_SPLIT if held_out else 0)
        if not held_out and rng.random() < DRILL_SHARE:
            found: Problem | None = drill(seed)
        else:
            found = instance(templates[int(rng.random() * len(templates))], seed)
        if found is not None and is_held_out(found.question) == held_out:
            return found
