"""Pictures and tables of docs/performance.md.

    python -m eval.plots eval/results/speed-*.json -o docs

Reads files that `eval.bench` wrote, draws every picture that their results suffice for (PNG and
SVG, each for a light and a dark page), and prints the results as Markdown.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from eval.bench_table import COMPILED_HEADER, HEADER, compiled_cells, further, markdown
from eval.bench_table import cells as row_cells
from eval.drawing import COLORS, LABELS, MARKERS, in_both_themes, plain, title
from r2jax.cli import Parser, run
from r2jax.quantize import DTYPES

Row = dict[str, Any]


def weights_of(row: Row) -> str:
    """bf16, fp8, ..."""
    s = row["settings"]
    return s["quantize"] or {"bfloat16": "bf16", "float32": "f32"}[s["dtype"]]


def where(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Those whose settings are these."""
    return [r for r in rows if all(r["settings"][k] == v for k, v in wanted.items())]


def groups(rows: Iterable[Row], *free: str) -> list[list[Row]]:
    """Rows that differ in the settings `free` (and in what was measured besides) alone, the largest
    group first, each in ascending order of the first of `free`; of equal ones the latest."""
    besides = {*free, "target_nfe", "lock_step", "references", "seed", "shortest_prompt"}
    found: dict[str, dict[Any, Row]] = defaultdict(dict)
    for row in sorted(rows, key=lambda r: r["date"]):
        s = row["settings"]
        same = {k: v for k, v in s.items() if k not in besides}
        group = found[json.dumps([same, row["device"], row["versions"]])]
        group[tuple(s[name] for name in free)] = row
    ordered = sorted(found.values(), key=len, reverse=True)
    return [sorted(g.values(), key=lambda r: r["settings"][free[0]] or "") for g in ordered]


def subtitle(row: Row) -> str:
    """The circumstances, for under a title."""
    s = row["settings"]
    model = {"llada-8b": "LLaDA-8B shapes, random weights"}.get(s["model"], s["model"])
    return f"{row['device']['kind']}, {model}, prompt {s['prompt_length']}"


def draw_programs(rows: list[Row], axes: Axes) -> str | None:
    """Milliseconds per NFE of ours and of the reference programs, at batch 1; of rules that were
    timed more than once the latest."""
    timed = sorted((r for r in rows if r.get("references")), key=lambda r: r["date"])
    base = list({r["settings"]["rules"]: r for r in timed}.values())
    if not base:
        return None
    first = next((r for r in base if r["settings"]["rules"] == "r2"), base[0])
    programs = {"original": "R²-dLLM (PyTorch)", "bonsai": "bonsai (JAX)"}

    def label(program: str, row: Row) -> str:
        rules = row["settings"]["rules"]
        return f"{program}, {LABELS.get(rules, rules)}"

    bars = {
        label(programs[name], row): r["ms_per_nfe"]
        for row in base
        for name, r in row["references"].items()
        if "error" not in r
    }
    ours = [*base, *next(g for g in groups(rows, "quantize") if first in g)]
    bars |= {label(f"r2jax {weights_of(row)}", row): row["ms_per_nfe"] for row in ours}
    if len(bars) == 1:
        return None
    ordered = sorted(bars.items(), key=lambda item: item[1])
    names, values = zip(*ordered, strict=True)
    colors = [COLORS[0] if name.startswith("r2jax") else COLORS[1] for name in names]
    drawn = axes.barh(names, values, color=colors)
    axes.bar_label(drawn, [f"{value:.3g} ms" for value in values], padding=4)
    axes.set(xscale="log", xlabel="ms per NFE (shorter is better)", xlim=(1, 3 * max(values)))
    plain(axes.xaxis)
    axes.grid(axis="y", visible=False)
    gen = first["settings"]["gen_length"]
    title(axes, f"One answer at a time: {subtitle(first)}, gen {gen}")
    return "programs"


def draw_roofline(rows: list[Row], axes: Axes) -> str | None:
    """Operations per second against operations per byte, with the measured roofs."""
    # Weights and batch may differ: one picture for the device and the lengths with most results.
    found = groups(where(rows, cache="dual", rules="r2", mesh=None), "batch", "quantize")
    chosen = [r for r in (found[0] if found else []) if r["floor_step"].get("ratio")]
    if len(chosen) < 2:
        return None
    kinds = list(dict.fromkeys(map(weights_of, chosen)))
    rate = max(r["rates"]["copy_gb_per_s"] for r in chosen) / 1e3  # TB/s
    roofs = {k: v for r in chosen for k, v in r["rates"]["matmul_tflops"].items()}
    for i, kind in enumerate(kinds):
        roof = roofs[str(DTYPES[kind]) if kind in DTYPES else chosen[0]["settings"]["dtype"]]
        axes.plot(
            [1, roof / rate, 4e4], [rate, roof, roof],
            color=COLORS[i], lw=1.3, zorder=1, label=f"{kind}: {roof:,.0f} TFLOP/s measured",
        )  # fmt: skip
        axes.scatter([], [], s=55, color=COLORS[i], label=f"{kind}: block step")
        axes.scatter([], [], s=55, facecolor="none", edgecolor=COLORS[i], label=f"{kind}: refresh")
    axes.text(50, 62 * rate, f"{rate:.2f} TB/s measured", size=8, ha="right")
    for row in chosen:
        kind = kinds.index(weights_of(row))
        for part, face in (("step", COLORS[kind]), ("refresh", "none")):
            work = row[f"floor_{part}"]
            flops = sum(work["flops"].values())
            x, y = flops / work["bytes"], flops / (1e9 * row[f"ms_per_{part}"])
            axes.scatter(x, y, s=55, facecolor=face, edgecolor=COLORS[kind], lw=1.8, zorder=3)
            batch, place = str(row["settings"]["batch"]), (6, -11) if kind % 2 == 0 else (-8, 8)
            axes.annotate(batch, (x, y), place, textcoords="offset points", size=7)
    axes.set(
        xscale="log", yscale="log", xlim=(10, 4e4), ylim=(10 * rate, 1.8 * max(roofs.values()))
    )
    axes.set(xlabel="operations per byte that must be moved", ylabel="TFLOP/s")
    plain(axes.xaxis)
    plain(axes.yaxis, 1, 2, 5)
    axes.legend(loc="lower right")
    title(axes, f"Roofline, numbers are batch sizes: {subtitle(chosen[0])}")
    return "roofline"


def _series(axes: Axes, i: int, xs: Sequence[Any], ys: Sequence[float], label: str) -> None:
    axes.plot(xs, ys, color=COLORS[i], marker=MARKERS[i], label=label, lw=2, ms=6)


def draw_batches(rows: list[Row], axes: Axes) -> str | None:
    """Tokens per second against the batch size, with what the floors allow."""
    chosen = where(rows, rules="r2", cache="dual", mesh=None)
    found = groups(chosen, "batch", "quantize")[:1]
    series = groups(found[0], "batch") if found else []
    series = [s for s in series if len({r["settings"]["batch"] for r in s}) > 1]
    if not series:
        return None
    for i, each in enumerate(series):
        xs = [r["settings"]["batch"] for r in each]
        _series(axes, i, xs, [r["tokens_per_second"] for r in each], weights_of(each[0]))
        if all("floor_run" in r for r in each):
            floors = [r["tokens_per_second"] * r["floor_run"]["ratio"] for r in each]
            axes.plot(xs, floors, color=COLORS[i], ls=":", label=f"{weights_of(each[0])}: floor")
    axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="tokens/s")
    axes.set_xticks(sorted({r["settings"]["batch"] for s in series for r in s}))
    plain(axes.xaxis)
    plain(axes.yaxis, 1, 2, 3, 5, 7)
    axes.legend(loc="upper left")
    title(axes, f"Batches: {subtitle(series[0][0])}")
    return "batches"


def draw_lengths(rows: list[Row], axes: Axes) -> str | None:
    """Seconds of an answer against its length, for each rule set, in all at the same threshold."""
    chosen = where(rows, batch=1, mesh=None, quantize=None)
    series = [g for g in groups(chosen, "gen_length") if len(g) > 1]
    if not series:
        return None
    series = series[: len(COLORS)]
    highest: dict[int, float] = defaultdict(float)
    for row in itertools.chain(*series):
        x = row["settings"]["gen_length"]
        highest[x] = max(highest[x], row["seconds"])
    for i, each in enumerate(series):
        s = each[0]["settings"]
        label = f"{LABELS[s['rules']]}, cache {s['cache']}"
        label += f", window {s['window_size']}" if s["window_size"] is not None else ""
        xs = [r["settings"]["gen_length"] for r in each]
        ys = [r["seconds"] for r in each]
        _series(axes, i, xs, ys, label)
        for x, y, row in zip(xs, ys, each, strict=True):
            place = (0, 7) if y == highest[x] else (0, -13)  # others would lie on the line above
            axes.annotate(
                f"{row['nfe_max']}", (x, y), place, textcoords="offset points", size=7, ha="center"
            )
    axes.set(xlabel="tokens of the answer", ylabel="seconds (numbers: NFE)", ylim=(0, None))
    axes.set_xticks(sorted({r["settings"]["gen_length"] for s in series for r in s}))
    axes.legend(loc="upper left")
    title(axes, f"Longer answers: {subtitle(series[0][0])}")
    return "lengths"


def _grouped_bars(
    axes: Axes, rows: Sequence[Row], names: Sequence[str], keys: Sequence[str]
) -> None:
    """For each of `rows` a bar of each of `keys`, the floor of it as a line across."""
    width = 0.8 / len(keys)
    for j, key in enumerate(keys):
        xs = [i + (j - (len(keys) - 1) / 2) * width for i in range(len(rows))]
        ys = [row[f"ms_per_{key}"] for row in rows]
        label = {"step": "block step", "refresh": "refresh", "nfe": "NFE"}[key]
        drawn = axes.bar(xs, ys, 0.92 * width, color=COLORS[j], label=label)
        axes.bar_label(drawn, [f"{y:.2f}" for y in ys], padding=2, size=8)
        floors = [(row.get(f"floor_{key}") or {}).get("ms") for row in rows]
        for x, floor in zip(xs, floors, strict=True):
            if floor is not None:
                axes.plot([x - 0.46 * width, x + 0.46 * width], [floor, floor], color="0.55", lw=2)
    axes.plot([], [], color="0.55", lw=2, label="floor")
    axes.set_xticks(range(len(rows)), names)
    axes.set(ylabel="ms", ylim=(0, 1.15 * max(r[f"ms_per_{k}"] for r in rows for k in keys)))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper right")


def draw_quantised(rows: list[Row], axes: Axes) -> str | None:
    """Milliseconds of a block step and of a refresh by the dtype of the weights, batch 1."""
    chosen = groups(where(rows, rules="r2", cache="dual", batch=1, mesh=None), "quantize")
    if not chosen or len(chosen[0]) < 2:
        return None
    _grouped_bars(axes, chosen[0], [weights_of(r) for r in chosen[0]], ["step", "refresh"])
    title(axes, f"Quantised weights: {subtitle(chosen[0][0])}, batch 1")
    return "quantised"


def draw_meshes(rows: list[Row], axes: Axes) -> str | None:
    """Milliseconds of a block step and of a refresh on one and several devices."""
    found = [g for g in groups(where(rows, rules="r2", cache="dual"), "mesh") if len(g) > 1]
    if not found:
        return None
    chosen = min(found, key=lambda g: (-len(g), g[0]["settings"]["batch"]))
    names = [r["settings"]["mesh"] or "one" for r in chosen]
    _grouped_bars(axes, chosen, names, ["step", "refresh"])
    title(
        axes,
        f"Several devices: {subtitle(chosen[0])}, {weights_of(chosen[0])}, "
        f"batch {chosen[0]['settings']['batch']}",
    )
    return "meshes"


PICTURES: tuple[Callable[[list[Row], Axes], str | None], ...] = (
    draw_programs,
    draw_roofline,
    draw_batches,
    draw_lengths,
    draw_quantised,
    draw_meshes,
)


def draw(rows: list[Row], directory: Path) -> list[Path]:
    """Write every picture that `rows` suffice for; returns the files."""
    files = []
    for picture in PICTURES:
        files += in_both_themes(
            lambda figure, picture=picture: picture(rows, figure.subplots()),
            directory,
            "performance-",
        )
    return files


def read(paths: Sequence[str]) -> tuple[list[Row], list[Row]]:
    """The results of all files: those timed, and those of `--compile-only`, which get the command
    and the versions of their file.

    Raises:
      ValueError: a file is not one of eval.bench.
    """
    timed, compiled = [], []
    for path in paths:
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            for row in content["results"]:
                if "topology" in row:
                    compiled.append({**row, **{k: content[k] for k in ("command", "versions")}})
                else:
                    timed.append({**row, "status": row["status"]})
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is no file of eval.bench") from None
    return timed, compiled


def pages(timed: list[Row], compiled: list[Row]) -> Iterator[str]:
    """Markdown: a table for every command, with the circumstances."""
    for rows, header, cells in (
        (timed, HEADER, row_cells),
        (compiled, COMPILED_HEADER, compiled_cells),
    ):
        for command in dict.fromkeys(row["command"] for row in rows):
            part = [row for row in rows if row["command"] == command]
            first = part[0]
            said = [", ".join(f"{name} {v}" for name, v in first["versions"].items())]
            if "device" in first:
                said = [first["device"]["kind"], *said, first["date"][:10]]
            yield f"`{command}`\n\n{'; '.join(said)}\n\n{markdown(header, map(cells, part))}\n"
            lines = [f"- {line}" for row in part if "status" in row for line in further(row)]
            if lines:
                yield "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m eval.plots", description=__doc__)
    parser.add_argument("results", nargs="+", metavar="FILE", help="JSON of eval.bench")
    parser.add_argument("-o", "--output", required=True, help="directory of the pictures")
    args = parser.parse_args(argv)
    if not Path(args.output).is_dir():
        raise ValueError(f"--output {args.output!r} is no directory")
    timed, compiled = read(args.results)
    for path in draw([row for row in timed if row["status"] == "ok"], Path(args.output)):
        print(path, file=sys.stderr)
    for page in pages(timed, compiled):
        print(page)


if __name__ == "__main__":
    sys.exit(run("python -m eval.plots", main))
