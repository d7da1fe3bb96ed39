"""Results of the bench for people: a line when one is there, a table of all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _with_ratio(ms: float | None, floor: dict[str, Any] | None) -> str:
    """A time, and how many times its floor that is."""
    ratio = (floor or {}).get("ratio")
    return _number(ms) + ("" if ratio is None else f" ({ratio:.2f}x)")


def headline(label: str, row: dict[str, Any]) -> str:
    """One result in a line."""
    if row["status"] != "ok":
        return f"{label}: {row['status']}: {row['error']}"
    return (
        f"{label}: {row['seconds']:.3f} s, NFE {row['nfe_max']}, {row['ms_per_nfe']:.2f} ms/NFE, "
        f"refresh {_with_ratio(row['ms_per_refresh'], row['floor_refresh'])}, "
        f"step {_with_ratio(row['ms_per_step'], row['floor_step'])}, "
        f"{row['tokens_per_second']:.1f} tokens/s, compiled in {row['compile_seconds']:.1f} s"
    )


HEADER = (
    *("rules", "cache", "gen", "batch", "weights", "mesh", "NFE", "s", "ms/NFE", "refresh ms"),
    *("step ms", "run/floor", "tokens/s", "compile s", "GB"),
)


def cells(row: dict[str, Any]) -> list[str]:
    """One result under `HEADER`; (1.10x) is the ratio to the floor."""
    s = row["settings"]
    what = [s["rules"], s["cache"], str(s["gen_length"]), str(s["batch"])]
    what += [s["quantize"] or s["dtype"], s["mesh"] or "-"]
    if row["status"] != "ok":
        return [*what, row["status"], *[""] * (len(HEADER) - len(what) - 1)]
    same = row["nfe_max"] == row["nfe_mean"]
    return [
        *what,
        str(row["nfe_max"]) if same else f"{row['nfe_mean']:.0f}..{row['nfe_max']}",
        _number(row["seconds"], 3),
        _number(row["ms_per_nfe"]),
        _with_ratio(row["ms_per_refresh"], row["floor_refresh"]),
        _with_ratio(row["ms_per_step"], row["floor_step"]),
        _number(row.get("floor_run", {}).get("ratio")),
        _number(row["tokens_per_second"], 1),
        _number(row["compile_seconds"], 1),
        _number(row["program_memory_gb"], 1),
    ]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """All results for a terminal."""
    title = "(1.23x): times the floor = max(bytes / copy rate, operations / matmul rate)"
    result = Table(*HEADER, title=title)
    for row in rows:
        result.add_row(*cells(row))
    return result


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table for a page."""
    lines = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


COMPILED_HEADER = (
    *("topology", "mesh", "batch", "weights", "a device needs", "it has", "fits"),
    *("exchanged in a refresh", "in a block step", "compile s"),
)


def compiled_cells(row: dict[str, Any]) -> list[str]:
    """A result of `--compile-only` under `COMPILED_HEADER`."""

    def exchanged(where: str) -> str:
        ours = [c for c in row.get("collectives", []) if c["where"] == where]
        return f"{sum(c['bytes'] * c['count'] for c in ours) / 1e6:,.1f} MB"

    def gib(value: float | None) -> str:
        return "-" if value is None else f"{value / 2**30:.1f} GiB"

    return [
        row["topology"],
        ", ".join(f"{axis}={n}" for axis, n in row["mesh"].items()),
        str(row["batch"]),
        gib(row["weight_bytes"]),
        gib(row.get("total_bytes")),
        gib(row["hbm_bytes"]),
        "yes" if row["fits"] else "no",
        exchanged("refresh"),
        exchanged("block step"),
        _number(row.get("compile_seconds"), 0),
    ]


def further(row: dict[str, Any]) -> list[str]:
    """What else was measured of a configuration, in lines."""
    if row["status"] != "ok":
        return []
    words = []
    fed = row["columns"]
    if fed["refresh_fed"] > fed["refresh_needed"] or fed.get("step_fed") != fed.get("step_needed"):
        line = f"a refresh needs {fed['refresh_needed']:.0f} columns, {fed['refresh_fed']:.0f} fed"
        if "step_fed" in fed:
            line += f"; a step needs {fed['step_needed']:.0f}, {fed['step_fed']:.0f} fed"
        words.append(line)
    if composed := row.get("composed_at_target_nfe"):
        words.append(
            f"composed of {composed['refreshes']} refreshes + {composed['steps']} steps: "
            f"{composed['seconds']:.3f} s, "
            f"{composed['tokens_per_second']:.0f} tokens/s"
        )
    if at := row.get("run_at_target_nfe"):
        words.append(
            f"real run at NFE {at['nfe_max']}: {at['seconds']:.3f} s, "
            f"{at['tokens_per_second']:.0f} tokens/s"
        )
    if rows := row.get("lock_step"):
        words.append(
            f"lock step {rows['forwards_in_lock_step']} forwards, independent "
            f"{rows['forwards_if_independent']}: at most "
            f"{rows['bound_on_gain_of_independent_rows']:.3f}x"
        )
    for name, theirs in row.get("references", {}).items():
        words.append(
            f"{name}: {theirs['error']}"
            if "error" in theirs
            else f"{name}: {theirs['seconds']:.3f} s, NFE {theirs['nfe']}, "
            f"{theirs['ms_per_nfe']:.2f} ms/NFE = {theirs['times_ours_at_equal_nfe']:.1f}x ours"
        )
    return words
