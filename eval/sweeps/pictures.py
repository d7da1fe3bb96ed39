"""Pictures of a sweep: `draw` makes them of its numbers alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.drawing import COLORS, MARKERS, SIZE, direct_labels, end_labels, in_both_themes
from eval.sweeps.parts import (
    BARS,
    LOOKS,
    Row,
    Summary,
    curve,
    faded,
    heading,
    labelled_bars,
    scale,
    series,
    shown,
    signed,
)


def draw_strategies(summary: Summary, figure: Figure) -> str:
    """Accuracy against NFE, a point a strategy."""
    axes = figure.subplots()
    for rows in series(summary).values():
        curve(axes, rows, "nfe", "accuracy", line=False)
    axes.set(xlabel="NFE (forwards an answer)", ylabel=f"right, % ({BARS})", xlim=(0, None))
    axes.margins(y=0.15)
    rows = summary["points"]
    labels = [
        (
            row["nfe"],
            100 * row["accuracy"],
            f"{row['label']}\n{100 * row['accuracy']:.1f} % at {row['nfe']:.1f}",
            COLORS[LOOKS[row["series"]]],
        )
        for row in rows
    ]
    heading(figure, "Accuracy against NFE", summary)
    direct_labels(axes, labels, _bars(rows))
    return "strategies"


def _bars(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Points along the error bars."""
    return [
        point
        for r in rows
        for t in np.linspace(-1, 1, 9)
        for point in (
            (r["nfe"], 100 * (r["accuracy"] + t * r["accuracy_standard_error"])),
            (r["nfe"] + t * r["nfe_standard_error"], 100 * r["accuracy"]),
        )
    ]


def draw_bounds(summary: Summary, figure: Figure) -> str:
    """Accuracy and NFE against each threshold."""
    heading(figure, "Thresholds", summary)
    _two_panels(summary, figure, "threshold (the others as they are)")
    return "thresholds"


def _two_panels(summary: Summary, figure: Figure, xlabel: str) -> None:
    """Accuracy and NFE along each series."""
    found = series(summary)
    for axes, y, ylabel in zip(
        figure.subplots(1, 2), ("accuracy", "nfe"), (f"right, % ({BARS})", "NFE"), strict=True
    ):
        for i, rows in enumerate(found.values()):
            # Side by side, so that no bar hides another.
            curve(axes, rows, "x", y, shift=3.0 * (i - (len(found) - 1) / 2))
        axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None) if y == "nfe" else None)
        axes.margins(x=0.08)
        axes.set_xticks(sorted({row["x"] for row in summary["points"]}))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        ends = []
        for name, rows in found.items():
            last = rows[-1]
            said = f"{scale(y) * last[y]:.1f}"
            if y == "nfe":  # and in the other panel by their colours
                said += f"  {shown(name)}"
            ends.append((last["x"], scale(y) * last[y], said, COLORS[LOOKS[name]]))
        end_labels(axes, ends)


def draw_tradeoff(summary: Summary, figure: Figure) -> str:
    """Accuracy against NFE along each threshold."""
    axes = figure.subplots()
    found = series(summary)
    for name, rows in found.items():
        curve(axes, rows, "nfe", "accuracy")
        look = LOOKS[name]
        axes.plot([], [], color=COLORS[look], marker=MARKERS[look], lw=2, label=shown(name))
    axes.set(xlabel="NFE (forwards an answer)", ylabel=f"right, % ({BARS})")
    axes.margins(0.08)
    figure.legend(loc="outside lower center", ncols=len(found), frameon=False)
    heading(figure, "Accuracy against NFE along each threshold (its value at the point)", summary)
    labels, lines = [], []
    for rows in found.values():
        xy = [(row["nfe"], 100 * row["accuracy"]) for row in rows]
        color = COLORS[LOOKS[rows[0]["series"]]]
        labels += [(*label, color) for label in _joined(axes, xy, [row["label"] for row in rows])]
        for (x, y), (u, v) in itertools.pairwise(xy):
            lines += [(x + t * (u - x), y + t * (v - y)) for t in np.linspace(0, 1, 60)]
    direct_labels(axes, labels, [*lines, *_bars(summary["points"])], size=8)
    return "thresholds-tradeoff"


def _joined(
    axes: Axes, xy: Sequence[tuple[float, float]], texts: Sequence[str]
) -> list[tuple[float, float, str]]:
    """Labels along a curve, one for points that follow one another at nearly the same place."""
    found: list[tuple[float, float, str]] = []
    for place, text in zip(xy, texts, strict=True):
        if found:
            x, y, before = found[-1]
            ends = axes.transData.transform([(x, y), place])
            if np.hypot(*(ends[1] - ends[0])) < 8:
                found[-1] = (x, y, f"{before.split('–')[0]}–{text}")
                continue
        found.append((*place, text))
    return found


def draw_lengths(summary: Summary, figure: Figure) -> str:
    """Accuracy and NFE against the length of the answer."""
    heading(figure, "Length of the answer", summary, length=False)
    _two_panels(summary, figure, "tokens of the answer (gen_length)")
    return "lengths"


def draw_ablation(summary: Summary, figure: Figure) -> str:
    """NFE of each variant, and its accuracy against the first's over the same problems."""
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
    rows, places, place = summary["points"], [], 0.0
    for before, row in zip([None, *rows], rows, strict=False):
        place += 1.0 if before is None or before["series"] == row["series"] else 1.6
        places.append(place)
    groups = list(series(summary))
    colors = [COLORS[groups.index(row["series"])] for row in rows]
    errors = [row["nfe_standard_error"] for row in rows]
    values = [row["nfe"] for row in rows]
    labelled_bars(left, places, values, errors, colors)
    left.set_yticks(places, [row["name"] for row in rows])
    left.set(
        xlabel=f"NFE ({BARS})", xlim=(0, 1.18 * max(map(sum, zip(values, errors, strict=True))))
    )
    left.invert_yaxis()
    first = rows[0]
    right.axvline(0, color="0.5", lw=1.2)
    for y, row, color in zip(places[1:], rows[1:], colors[1:], strict=True):
        change = {k: 100 * v for k, v in row["against_first"]["accuracy"].items()}
        low, high = change["value"] - change["low"], change["high"] - change["value"]
        right.errorbar(
            change["value"], y, xerr=[[low], [high]], color=color, marker="o", elinewidth=1.6
        )
        right.annotate(
            signed(change["value"]),
            (change["value"], y),
            (0, 4),
            textcoords="offset points",
            ha="center",
            va="bottom",
            size=8,
        )
    name, value = first["label"].split(" (")[0], 100 * first["accuracy"]
    right.set(xlabel=f"right, points above {name}'s {value:.1f} %\n(paired, 95 % intervals)")
    right.tick_params(axis="y", length=0)
    right.grid(axis="y", visible=False)
    heading(figure, "R²'s rules one by one", summary)
    return "ablation"


def draw_events(summary: Summary, figure: Figure) -> str:
    """How often each rule would have fired, and did, by strategy."""
    rules = {
        "confidence": "confidence\ncluster",
        "token": "token\ncluster",
        "temporal": "temporal",
        "total": "together\n(R_total)",
    }
    panels = figure.subplots(1, len(rules), sharey=True, sharex=True)
    bars = [
        (row, kind)
        for row in summary["points"]
        for kind in ("potential", "actual")
        if kind == "potential" or row["decode"]["apply_rules"]
    ]
    names = [f"{row['label']}\n{kind}" for row, kind in bars]
    for i, (axes, rule) in enumerate(zip(panels, rules, strict=True)):
        values = [row[kind][rule] for row, kind in bars]
        errors = [row[f"{kind}_standard_error"][rule] for row, kind in bars]
        colors = [
            COLORS[i] if kind == "actual" else faded(COLORS[i], axes.get_facecolor())
            for _, kind in bars
        ]
        labelled_bars(axes, names, values, errors, colors)
        axes.set_title(rules[rule])
        if i:
            axes.tick_params(axis="y", length=0)
    top = max(row[kind]["total"] + row[f"{kind}_standard_error"]["total"] for row, kind in bars)
    panels[0].set_xlim(0, 1.4 * top)
    panels[0].invert_yaxis()
    figure.supxlabel(f"events an answer ({BARS})", size=9)
    heading(figure, "What R²'s rules did (actual) and would have done (potential)", summary)
    return "events"


PICTURES: dict[str, tuple[Callable[[Summary, Figure], str], ...]] = {
    "strategies": (draw_strategies,),
    "thresholds": (draw_bounds, draw_tradeoff),
    "lengths": (draw_lengths,),
    "ablation": (draw_ablation,),
    "events": (draw_events,),
}


def draw(summary: Summary, directory: Path) -> list[Path]:
    """Write the pictures of a sweep; returns the files."""
    return [
        path
        for picture in PICTURES[summary["kind"]]
        for path in in_both_themes(
            lambda figure, picture=picture: picture(summary, figure), directory, "evaluation-", SIZE
        )
    ]
