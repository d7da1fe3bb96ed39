"""What a compiled program costs, as its compiler says: memory, operations, collectives."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import jax

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}  # the others say it: f32, s8, f8e4m3fn

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_COLLECTIVE = re.compile(rf" = (.*?) (ragged-)?({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"(body|condition|calls|to_apply|[a-z_]*computations?)=(\{[^}]*\}|%?[\w.\-]+)")


class Collective(NamedTuple):
    """One exchange between devices, as it stands in the program."""

    kind: str
    shapes: tuple[str, ...]
    """Of its results on one device."""
    bytes: int
    """Of its results on one device."""
    depth: int
    """How many loops it stands in."""


class Cost(NamedTuple):
    """Per device. Loops of unknown length count as one turn in `flops` and `bytes_accessed`."""

    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    alias_bytes: int
    """Of the output, those that stand in arguments."""
    code_bytes: int
    flops: float | None
    """None: the compiler does not say (CUDA's, ahead of time)."""
    bytes_accessed: float | None
    collectives: list[Collective]

    @property
    def total_bytes(self) -> int:
        """Memory that a device needs while the program runs."""
        return (
            self.argument_bytes
            + self.output_bytes
            + self.temporary_bytes
            + self.code_bytes
            - self.alias_bytes
        )


def cost(compiled: jax.stages.Compiled) -> Cost:
    """What the compiler says of a program.

    Args:
      compiled: from `jax.jit(...).lower(...).compile()`, for devices present or absent.

    Raises:
      ValueError: a compiler that does not say how much memory its programs need.
    """
    memory = compiled.memory_analysis()
    if memory is None:
        raise ValueError("the compiler of this platform does not say what memory a program needs")
    operations = compiled.cost_analysis() or {}
    return Cost(
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        flops=operations.get("flops"),
        bytes_accessed=operations.get("bytes accessed"),
        collectives=collectives(compiled.as_text() or ""),
    )


def collectives(text: str) -> list[Collective]:
    """All exchanges between devices of a compiled program, in its order.

    Args:
      text: of the compiled program (`Compiled.as_text()`), not of the lowered one, which has none.

    Returns:
      One entry for each place that the program calls it from. An exchange that is started and
      awaited apart is one.
    """
    found: defaultdict[str, list[Collective]] = defaultdict(list)
    calls: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    name = entry = ""
    for line in text.splitlines():
        if not line.startswith(" "):
            if (head := _COMPUTATION.match(line)) is not None:
                name = head[2]
                entry = name if head[1] else entry
            continue
        if (match := _COLLECTIVE.search(line)) is not None:
            found[name].append(_collective(*match.groups()))
        for role, callee in _CALLED.findall(line):
            inside = 1 if role in ("body", "condition") else 0
            calls[name] += [(one, inside) for one in re.findall(r"[\w.\-]+", callee)]

    def walk(computation: str, depth: int) -> list[Collective]:
        result = [one._replace(depth=depth) for one in found[computation]]
        for callee, inside in calls[computation]:
            result += walk(callee, depth + inside)
        return result

    return walk(entry, 0)


def _collective(result: str, ragged: str | None, kind: str, start: str | None) -> Collective:
    shapes = [f"{dtype}[{sizes}]" for dtype, sizes in _SHAPE.findall(result)]
    if start and (result.startswith("((") or kind != "all-reduce"):
        shapes = shapes[len(shapes) // 2 :]  # ((operands), results), as long as each other
    return Collective((ragged or "") + kind, tuple(shapes), sum(map(_nbytes, shapes)), 0)


def _nbytes(shape: str) -> int:
    dtype, _, sizes = shape[:-1].partition("[")
    bits = _BITS.get(dtype) or int(re.findall(r"\d+", dtype)[0])
    return math.ceil(math.prod(int(n) for n in sizes.split(",") if n) * bits / 8)


def summary(found: Sequence[Collective]) -> list[tuple[Collective, int]]:
    """Each different exchange and how often it stands in the program, largest sum of bytes
    first."""
    return sorted(Counter(found).items(), key=lambda item: -item[0].bytes * item[1])
