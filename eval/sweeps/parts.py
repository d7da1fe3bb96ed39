"""What the pictures of sweeps share: series and their looks, bars, titles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from eval.drawing import COLORS, LABELS, MARKERS, figure_of
from eval.sweeps.points import SPATIAL, TEMPORAL, TRANSFER

Summary = dict[str, Any]
Row = dict[str, Any]
# A series looks the same in every picture.
LOOKS = {
    LABELS[name]: i
    for i, name in enumerate(("r2", "fast_dllm", "local_leap", "streaming", "vanilla"))
}
LOOKS |= {TRANSFER: 1, SPATIAL: 0, TEMPORAL: 3}
BARS = "bars: ± 1 standard error"


def subtitle(summary: Summary, *, length: bool = True) -> str:
    """The circumstances, for under a title."""
    task, model = summary["task"], summary["model"]
    said = [f"{model['checkpoint']}, {task['name']}, {task['problems']} problems"]
    decode = summary["points"][0]["decode"]
    if length:
        said.append(f"gen {decode['gen_length']}")
    block = decode["block_length"]
    return ", ".join([*said, f"block {block}"] if block else said)


def heading(figure: Figure, text: str, summary: Summary, *, length: bool = True) -> None:
    """Two lines over the figure."""
    figure.suptitle(f"{text}\n{subtitle(summary, length=length)}", size=10)


def series(summary: Summary) -> dict[str, list[Row]]:
    """The points of each series, in their order."""
    found: dict[str, list[Row]] = {}
    for row in summary["points"]:
        found.setdefault(row["series"], []).append(row)
    return found


def curve(
    axes: Axes, rows: Sequence[Row], x: str, y: str, *, line: bool = True, shift: float = 0.0
) -> None:
    """A series with its standard errors, where it has them; `shift` moves it right, in points."""
    look = LOOKS[rows[0]["series"]]

    def errors(name: str) -> list[float] | None:
        field = f"{name}_standard_error"
        return [scale(name) * r[field] for r in rows] if field in rows[0] else None

    container = axes.errorbar(
        [scale(x) * r[x] for r in rows],
        [scale(y) * r[y] for r in rows],
        errors(y),
        errors(x),
        color=COLORS[look],
        marker=MARKERS[look],
        ls="-" if line else "none",
        lw=2,
        elinewidth=1.2,
        ms=6,
    )
    for artist in container.get_children():
        moved = ScaledTranslation(shift / 72, 0, figure_of(axes).dpi_scale_trans)
        artist.set_transform(artist.get_transform() + moved)


def shown(name: str) -> str:
    """A series' name with its symbols set as such."""
    return name.replace("τ_s", "$τ_s$").replace("τ_t", "$τ_t$")


def scale(name: str) -> float:
    """Accuracy is shown in per cent."""
    return 100 if name == "accuracy" else 1


def signed(value: float) -> str:
    """With a sign that is one."""
    return f"{value:+.1f}".replace("-", "−")


def labelled_bars(
    axes: Axes,
    places: Sequence[Any],
    values: Sequence[float],
    errors: Sequence[float],
    colors: Sequence[Any],
) -> None:
    """Bars to the right with their standard errors, and the number behind each."""
    axes.barh(places, values, xerr=errors, color=colors, error_kw={"ecolor": "0.5", "lw": 1.2})
    for place, value, error in zip(places, values, errors, strict=True):
        axes.annotate(
            f"{value:.1f}", (value + error, place), (4, 0), textcoords="offset points", va="center"
        )
    axes.grid(axis="y", visible=False)


def faded(color: str, page: Any) -> tuple[float, ...]:
    """Half way to the page's colour."""
    return tuple((np.array(to_rgb(color)) + np.array(to_rgb(page))) / 2)
