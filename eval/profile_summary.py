"""Where the time of a profiled run goes: `python -m eval.profile_summary DIR`.

Reads the newest trace that `jax.profiler.trace` wrote under DIR and sums kernel times by name
(numbers at their end taken off), and the time that no kernel ran.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jax.profiler import ProfileData
from rich.console import Console
from rich.table import Table

from r2jax.cli import Parser, run

MOST = 40  # groups kept: the rest is microseconds


class Kernel(NamedTuple):
    """One execution."""

    name: str
    start_ns: float
    end_ns: float


def kernels(data: Any) -> list[Kernel]:
    """What ran on the first accelerator's streams, or (for a CPU) in XLA's own threads.

    Events' statistics are left alone: jaxlib 0.11.2 aborts on some of a CPU's.

    Args:
      data: a `jax.profiler.ProfileData`.
    """
    planes = {plane.name: list(plane.lines) for plane in data.planes}
    for name in sorted(name for name in planes if name.startswith("/device:")):
        # The other lines of a device repeat its kernels by module, by operation, ...
        for start in ("Stream", "XLA Ops"):  # of a GPU, of a TPU
            if found := _events(line for line in planes[name] if line.name.startswith(start)):
                return found
    threads = _events(line for line in planes["/host:CPU"] if line.name.startswith("tf_XLA"))
    return [k for k in threads if re.fullmatch(r"[\w.-]+", k.name) and group(k.name) != "while"]


def _events(lines: Iterable[Any]) -> list[Kernel]:
    return [
        Kernel(event.name, event.start_ns, event.end_ns) for line in lines for event in line.events
    ]


def group(name: str) -> str:
    """A kernel's name without instance numbers and template arguments."""
    name = re.sub(r"<.*", "", name.removeprefix("void ")).split("(")[0]
    return re.sub(r"([._]\d+)+$", "", name)


def summary(found: Iterable[Kernel]) -> dict[str, Any]:
    """Milliseconds and launches by group, and the idle time between the first and the last.

    Raises:
      ValueError: there are no kernels.
    """
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    ordered = sorted(found, key=lambda kernel: kernel.start_ns)
    if not ordered:
        raise ValueError("the trace holds no kernels")
    idle, gaps, end = 0.0, 0, ordered[0].start_ns
    for kernel in ordered:
        total = totals[group(kernel.name)]
        total[0] += kernel.end_ns - kernel.start_ns
        total[1] += 1
        if kernel.start_ns > end:
            idle, gaps = idle + kernel.start_ns - end, gaps + 1
        end = max(end, kernel.end_ns)
    return {
        "span_ms": (end - ordered[0].start_ns) / 1e6,
        "idle_ms": idle / 1e6,
        "gaps": gaps,
        "launches": len(ordered),
        "kernels": [
            {"name": name, "ms": ns / 1e6, "launches": count}
            for name, (ns, count) in sorted(totals.items(), key=lambda item: -item[1][0])[:MOST]
        ],
    }


def summarise(directory: Path) -> dict[str, Any]:
    """The summary of the newest trace under `directory`.

    Raises:
      ValueError: there is none, or it is empty.
    """
    files = sorted(directory.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise ValueError(f"{directory} holds no trace (*.xplane.pb) of jax.profiler")
    return summary(kernels(ProfileData.from_file(str(files[-1]))))


def kernel_table(result: dict[str, Any], label: str, most: int = 25) -> Table:
    """The groups that took longest."""
    title = (
        f"{label}: {result['span_ms']:.2f} ms from first to last kernel, "
        f"{result['idle_ms']:.2f} ms of it idle in {result['gaps']} gaps, "
        f"{result['launches']} launches"
    )
    shown = Table("kernel", "ms", "%", "launches", "µs each", title=title)
    for kernel in result["kernels"][:most]:
        shown.add_row(
            kernel["name"][:80],
            f"{kernel['ms']:.2f}",
            f"{100 * kernel['ms'] / result['span_ms']:.1f}",
            str(kernel["launches"]),
            f"{1e3 * kernel['ms'] / kernel['launches']:.1f}",
        )
    return shown


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m eval.profile_summary", description=__doc__)
    parser.add_argument("directory", type=Path, help="as given to `eval.bench --profile`")
    args = parser.parse_args(argv)
    Console(width=130).print(kernel_table(summarise(args.directory), args.directory.name))


if __name__ == "__main__":
    sys.exit(run("python -m eval.profile_summary", main))
