"""Many ways to say the same solution.

The wording is drawn anew at every sentence: the order of independent steps, the sentence's frame,
its connective and verb, how the equation is written, the checks and remarks between. This is
deliberate: in a templated corpus nearly every token is certain once the problem is known, and a
decode rule has nothing to gain (8.5 forwards for 192 tokens). Here 32 tokens hold several choices
that nothing foretells.

Products, quotients and percentages of several digits are taken apart: 24 * 13 = 240 + 72 = 312.
"""

from __future__ import annotations

import re
from fractions import Fraction
from random import Random

from train.problems import Problem, Step, number

_TOKEN = re.compile(r"[0-9]|[A-Za-z]+|[^ \w]|\n")
LENGTH = 115.0, 7.0
LONGEST = 117
BRIEF = (0.0, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0)
"""Drafts of a solution that is too long: the share of its sentences in few words."""
"""Mean and deviation of the length in tokens that remarks and checks fill up to."""

# Connectives that open a step: the first one, those between, the last one.
_FIRST = ("First,", "To begin,", "To start,", "We start here:", "At first,", "Step one:")
_NEXT = ("Next,", "Then", "Now", "After that,", "From there,", "Moving on,", "With this,", "Also,")
_LAST = ("Finally,", "At last,", "In the end,", "So", "Therefore,", "Now", "Last,", "This way,")
_SEE = ("find", "compute", "work out", "get", "figure out", "calculate", "determine")
_IS = ("is", "equals", "comes to", "works out to", "must be", "turns out to be", "will be")
_GIVES = ("gives", "makes", "yields", "leads to", "results in", "produces", "leaves us with")
_SO = ("so", "which means", "and so", "hence", "meaning", "therefore", "thus", "and this means")
_WHICH = ("which is", "and that is", "and this is", "which gives")
_CHECK = (
    "Check:",
    "To check,",
    "Indeed,",
    "As a check,",
    "Looking back,",
    "We can verify:",
    "Note that",
)
_REMARK = (
    ("We", "Let us", "I will", "We should"),
    ("keep", "remember", "note", "write down", "save", "hold on to"),
    ("this", "that", "the"),
    ("number", "value", "result", "amount", "figure"),
    ("for later", "for the next part", "for what follows", "before going on", "for now"),
)
_REMARK_2 = (
    ("That", "This", "The above"),
    ("part", "piece", "bit", "step"),
    ("is done", "is clear", "is finished", "is settled", "is ready", "looks right"),
    ("so", "and", "and now"),
    ("we go on", "we continue", "we move on", "we can proceed", "the rest follows"),
)
_GOAL = (
    ("We", "Here we", "In this problem we", "Now we", "In the end we"),
    ("need", "want", "are asked", "have", "are going", "would like"),
    ("to",),
    _SEE,
)
_GOAL_2 = (
    ("The question", "The problem", "This question", "The task", "This exercise"),
    ("asks for", "is about", "wants", "is to find", "calls for", "is asking for"),
)
_CLOSE = (
    ("So", "Therefore,", "Thus,", "Hence,", "This means that", "In conclusion,", "All in all,"),
    (
        "the final answer",
        "the answer",
        "our answer",
        "the result",
        "the answer we want",
        "the solution",
    ),
)
_ADVICE = (
    ("Let us", "We can", "We will", "We now", "I will"),
    ("go", "work", "take this", "solve this", "do this", "think it through"),
    ("step by step", "one step at a time", "in order", "slowly", "carefully", "piece by piece"),
)


def _join(rng: Random, slots: tuple[tuple[str, ...], ...]) -> str:
    return " ".join([slot[int(rng.random() * len(slot))] for slot in slots])


def _pick(rng: Random, slot: tuple[str, ...]) -> str:
    return slot[int(rng.random() * len(slot))]


def _with_unit(text: str, unit: str) -> str:
    if not unit:
        return text
    if unit in "$€£":
        return unit + text
    if text == "1" and unit.endswith("s") and not unit.endswith("ss"):
        return f"1 {unit[:-1]}"
    return f"{text} {unit}"


def _equation(rng: Random, step: Step, *, speak: bool) -> str:
    """The equation of a step, its result last, without unit."""
    shown = step.shown
    result = number(step.value)
    spoken = speak and len(shown) == 2 and step.operator in "+-*/" and rng.random() < 0.25
    if spoken:
        word = {
            "+": ("plus", "and"),
            "-": ("minus", "less"),
            "*": ("times", "multiplied by"),
            "/": ("divided by", "over"),
        }[step.operator]
        left = f" {_pick(rng, word)} ".join(shown)
        equals = _pick(rng, (" is ", " equals ", " makes ", " gives "))
    else:
        gap = " " if rng.random() < 0.6 else ""
        equals = f"{gap}={gap}"
        match step.operator:
            case "%":
                left = f"{shown[0]}% of {shown[1]}"
                if rng.random() < 0.4:
                    left = f"{shown[1]}{gap}*{gap}{shown[0]}%"
            case "~":
                left = _pick(rng, (f"{shown[0]} of {shown[1]}", f"{shown[0]}{gap}*{gap}{shown[1]}"))
            case "@":
                hundred = number(step.operands[0] * 100)
                left = f"{shown[0]}{gap}/{gap}{shown[1]}{gap}*{gap}100"
                if rng.random() < 0.7:
                    left = f"{left}{equals}{hundred}{gap}/{gap}{shown[1]}"
            case "*":
                sign = "*" if rng.random() < 0.6 else " x "
                left = (f"{gap}{sign}{gap}" if sign == "*" else sign).join(shown)
                equals = " = " if sign == " x " else equals
            case sign:
                left = f"{gap}{sign}{gap}".join(shown)
    middle = ""
    if step.operator == "~":
        fraction, whole = step.operands
        part = number(whole / fraction.denominator)
        if part is not None:
            up, down = fraction.numerator, fraction.denominator
            middle = f"{shown[1]} / {down}"
            middle += f" * {up} = {part} * {up}" if up != 1 else ""
            middle += " = "
    elif step.parts:
        middle = " + ".join(step.parts) + " = "
    elif len(shown) > 2 and step.operator == "+":
        sums = list(step.operands)
        while len(sums) > 2:  # neighbours in pairs
            sums = [sum(sums[i : i + 2], Fraction(0)) for i in range(0, len(sums), 2)]
            middle += " + ".join(number(term) or "" for term in sums) + " = "
    return f"{left}{equals}{middle}{result}"


def _action(rng: Random, step: Step) -> tuple[str, str] | None:
    """What is done, as an order ("add 3 and 4") and as a noun ("adding 3 and 4")."""
    shown = step.shown
    if len(shown) != 2:
        if step.operator != "+":
            return None
        listed = f"{', '.join(shown[:-1])} and {shown[-1]}"
        return f"add up {listed}", f"adding up {listed}"
    a, b = shown
    match step.operator:
        case "+":
            a, b = (a, b) if rng.random() < 0.5 else (b, a)
            return f"add {a} and {b}", _pick(
                rng, (f"adding {a} and {b}", f"putting {a} and {b} together")
            )
        case "-":
            return _pick(rng, (f"take {b} from {a}", f"subtract {b} from {a}")), _pick(
                rng, (f"taking {b} away from {a}", f"subtracting {b} from {a}")
            )
        case "*":
            return f"multiply {a} by {b}", f"multiplying {a} by {b}"
        case "/":
            return _pick(rng, (f"divide {a} by {b}", f"split {a} by {b}")), f"dividing {a} by {b}"
        case "%":
            return f"take {a}% of {b}", _pick(rng, (f"taking {a}% of {b}", f"finding {a}% of {b}"))
        case "~":
            return f"take {a} of {b}", f"taking {a} of {b}"
    return None


def _named(rng: Random, label: str) -> str:
    """The label, now and then in other words, with its article."""
    if label.startswith("number of "):
        label = _pick(rng, ("number of ", "count of ", "number of ")) + label[10:]
    elif label.startswith("total number of "):
        label = _pick(rng, ("total number of ", "total of ", "full number of ")) + label[16:]
    elif label.startswith("cost of "):
        label = _pick(rng, ("cost of ", "price of ", "cost of ")) + label[8:]
    elif label.startswith("time "):
        label = _pick(rng, ("time ", "amount of time ", "time ")) + label[5:]
    return label if label.startswith(("half ", "twice ")) else f"the {label}"


def _sentence(rng: Random, step: Step, place: str) -> str:
    """One step as one sentence; place is "first", "middle" or "last"."""
    opening = {"first": _FIRST, "middle": _NEXT, "last": _LAST}[place]
    lead = f"{_pick(rng, opening)} " if rng.random() < 0.65 else ""
    name = _named(rng, step.label)
    result = number(step.value) or ""
    value = _with_unit(result, step.unit)
    action = _action(rng, step)
    frame = rng.random()
    if (step.parts or len(step.operands) > 3) and frame >= 0.62:
        frame *= 0.62  # the frames without an equation would skip the hard part
    equation = _equation(rng, step, speak=frame >= 0.2)
    full = equation.removesuffix(result) + value
    if frame < 0.2:
        text = (
            f"{name} {_pick(rng, ('is', 'is', 'will be', 'comes from', 'can be found as'))} {full}"
        )
    elif frame < 0.36:
        who = _pick(rng, ("we", "we can", "let us", "I"))
        text = f"{who} {_pick(rng, _SEE)} {name}: {full}"
    elif frame < 0.5:
        text = (
            f"{full}, {_pick(rng, _SO)} {name} is {result}"
            if rng.random() < 0.3
            else f"{full}, {_pick(rng, _WHICH)} {name}"
        )
    elif frame < 0.62 or action is None:
        text = f"to {_pick(rng, _SEE)} {name}, "
        text += f"{action[0]}: {full}" if action else f"we take {full}"
    elif frame < 0.8:
        text = f"{action[1]} {_pick(rng, _GIVES)} {value}, "
        text += f"{_pick(rng, _WHICH)} {name}"
    elif frame < 0.92:
        text = f"{action[1]}, {name} {_pick(rng, _IS)} {value}"
        text = f"by {text}" if rng.random() < 0.4 else text
    else:
        who = _pick(rng, ("we", "you", "we must", "one can"))
        get = _pick(rng, ("get", "find", "obtain"))
        text = f"{who} {action[0]} and {get} {value} as {name}"
    text = lead + text
    return text[0].upper() + text[1:] + "."


def _brief(rng: Random, step: Step, place: str) -> str:
    """One step in few words."""
    result = number(step.value) or ""
    full = _equation(rng, step, speak=False).removesuffix(result)
    full += _with_unit(result, step.unit if rng.random() < 0.4 or step.unit in "$€£" else "")
    frame = rng.random()
    if frame < 0.4:
        label = step.label.removeprefix("number of ") if rng.random() < 0.4 else step.label
        text = f"{label}: {full}"
    elif frame < 0.7:
        text = f"{_named(rng, step.label)} {_pick(rng, ('is', 'will be', 'must be'))} {full}"
    else:
        text = f"{full} {_pick(rng, ('for', 'as', 'is'))} {_named(rng, step.label)}"
    if rng.random() < 0.3:
        lead = _pick(rng, {"first": _FIRST, "middle": _NEXT, "last": _LAST}[place])
        text = f"{lead} {text}"
    return text[0].upper() + text[1:] + "."


def _inverse(rng: Random, step: Step) -> str | None:
    """The step, run backwards, as a check."""
    if len(step.operands) != 2 or step.operator not in "+-*/":
        return None
    c = number(step.value)
    a, b = step.shown
    if c == "0" or b == "0":
        return None
    match step.operator:
        case "+":
            text = _pick(rng, (f"{c} - {b} = {a}", f"{c} - {a} = {b}"))
        case "-":
            text = _pick(rng, (f"{c} + {b} = {a}", f"{b} + {c} = {a}"))
        case "*":
            text = _pick(rng, (f"{c} / {b} = {a}", f"{c} / {a} = {b}"))
        case _:
            text = _pick(rng, (f"{c} * {b} = {a}", f"{b} * {c} = {a}"))
    if rng.random() < 0.35:
        text = text.replace(" ", "")
    ending = _pick(
        rng, ("", ", as it should", ", as expected", ", so this is right", ", which fits")
    )
    return f"{_pick(rng, _CHECK)} {text}{ending}."


def _ordered(rng: Random, steps: tuple[Step, ...]) -> list[int]:
    """A random order in which every step comes after those it needs; the last step stays last."""
    left = list(range(len(steps) - 1))
    order: list[int] = []
    while left:
        ready = [i for i in left if steps[i].needs.issubset(order)]
        chosen = ready[int(rng.random() * len(ready))]
        order.append(chosen)
        left.remove(chosen)
    return [*order, len(steps) - 1]


def size(text: str) -> int:
    """Roughly how many tokens: every digit and sign, and every word."""
    return len(_TOKEN.findall(text))


def solution(problem: Problem, rng: Random) -> str:
    """The worked solution, ending in a line "#### N"."""
    steps = problem.steps
    order = _ordered(rng, steps)
    places = ["middle"] * len(order)
    places[0], places[-1] = "first", "last"
    answer = f"#### {problem.answer}"
    said: list[str] = []
    length = 0
    for brief in BRIEF:  # long problems: as many full sentences as fit
        draft = [
            _brief(rng, steps[index], place)
            if rng.random() < brief
            else _sentence(rng, steps[index], place)
            for index, place in zip(order, places, strict=True)
        ]
        drafted = sum(map(size, draft))
        if not said or drafted < length:
            said, length = draft, drafted
        if length <= LONGEST:
            break
    room = min(rng.gauss(*LENGTH), 123.0) - size(answer) - 2 - length
    before: list[str] = []
    after: list[list[str]] = [[] for _ in order]
    final = _named(rng, steps[-1].label)
    value = _with_unit(problem.answer, steps[-1].unit)
    kinds = ["goal", "close", "plan", "advice"]
    kinds += [f"check {i}" for i in range(len(order))]
    kinds += [f"remark {i}" for i in range(len(order) - 1)]
    rng.shuffle(kinds)
    for kind in kinds:
        if room < 9:
            break
        at = 0
        match kind.split()[0]:
            case "goal":
                goal = _GOAL if rng.random() < 0.6 else _GOAL_2
                text = f"{_join(rng, goal)} {final}."
            case "advice":
                text = f"{_join(rng, _ADVICE)}."
            case "plan":
                if len(order) < 2:
                    continue
                text = _pick(rng, ("The plan is", "Our plan is", "The idea is", "The way is"))
                text += f" to {_pick(rng, _SEE)} {_named(rng, steps[order[0]].label)} "
                text += (
                    _pick(rng, ("first", "at the start", "before the rest", "to begin with")) + "."
                )
            case "close":
                text = f"{_join(rng, _CLOSE)} {_pick(rng, _IS[:6])} {value}."
                at = -1
            case "check":
                at = int(kind.split()[1])
                text = _inverse(rng, steps[order[at]]) or ""
            case _:
                at = int(kind.split()[1])
                text = f"{_join(rng, _REMARK if rng.random() < 0.5 else _REMARK_2)}."
        if not text or size(text) > room + 4:
            continue
        room -= size(text)
        match kind.split()[0]:
            case "goal":
                before.insert(0, text)
            case "advice" | "plan":
                before.append(text)
            case "close":
                after[-1].append(text)
            case "check":
                after[at].insert(0, text)
            case _:
                after[at].append(text)
    pieces = before
    for sentence, more in zip(said, after, strict=True):
        pieces.append(sentence)
        pieces += more
    gap = [" " if rng.random() < 0.75 else "\n" for _ in pieces]
    gap[0] = ""
    body = "".join(g + p for g, p in zip(gap, pieces, strict=True))
    return f"{body}\n{answer}"
