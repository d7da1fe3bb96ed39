"""What the pictures of `eval` have in common: colours, two pages, PNG and SVG, labels that keep out
of each other's way."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from scipy.optimize import isotonic_regression

THEMES = {
    "": {"page": "#FFFFFF", "ink": "#1F2328", "grid": "#D8DCE1"},
    "-dark": {"page": "#0D1117", "ink": "#E6EDF3", "grid": "#343B44"},
}
# From Okabe and Ito's palette, told apart with every kind of colour vision; legible on both pages.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = "osD^vP"
LABELS = {
    "r2": "R²",
    "fast_dllm": "Fast-dLLM",
    "vanilla": "vanilla",
    "streaming": "Streaming-dLLM",
    "local_leap": "LocalLeap",
}
Label = tuple[float, float, str, str]
"""x and y of a point, what to write there, and the point's colour."""
SIZE = (7.5, 4.2)
"""Inches of a picture; at 160 dots an inch 1200 pixels, so that 9 points read well at 640."""


def in_both_themes(
    paint: Callable[[Figure], str | None],
    directory: Path,
    prefix: str,
    size: tuple[float, float] = SIZE,
) -> list[Path]:
    """Draw a figure for a light and for a dark page, each as PNG and SVG; the same data give the
    same bytes.

    Args:
      paint: fills an empty figure and returns the picture's name; None: there is nothing to draw.
      directory: of the files.
      prefix: in front of the name in a file's.
      size: inches.

    Returns:
      The files.
    """
    files = []
    for suffix, theme in THEMES.items():
        colors = dict.fromkeys(
            ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"),
            theme["ink"],
        )
        pages = dict.fromkeys(
            ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"),
            theme["page"],
        )
        style: dict[Any, Any] = {
            **colors, **pages, "grid.color": theme["grid"], "axes.grid": True,
            "axes.axisbelow": True, "axes.titlesize": 10, "font.size": 9,
            "axes.spines.top": False, "axes.spines.right": False, "legend.framealpha": 1,
            "svg.hashsalt": "r2jax",
        }  # fmt: skip
        with matplotlib.rc_context(style):
            figure = Figure(figsize=size, layout="constrained")
            name = paint(figure)
            if name is None:
                return []
            for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                files.append(directory / f"{prefix}{name}{suffix}.{kind}")
                figure.savefig(files[-1], dpi=160, metadata=metadata)
    return files


def plain(axis: Any, *steps: float) -> None:
    """Numbers, not powers of ten, on a logarithmic axis; `steps` are the ticks of a decade."""
    if steps:
        axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
    axis.set_minor_locator(NullLocator())


# Where a label may stand beside its point, the best first: points away, and to which side.
_DISTANCES = (6, 10, 16, 24, 36, 54)
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


def direct_labels(
    axes: Axes,
    labels: Sequence[Label],
    occupied: Sequence[tuple[float, float]] = (),
    **style: Any,
) -> None:
    """Write beside points what they are, each label where it hides least, with a line to those that
    had to go far.

    Called when everything else is drawn.

    Args:
      axes: with limits that will not change any more.
      labels: in the order in which they choose their places.
      occupied: further places to keep free, such as points along a line.
      **style: of the text.
    """
    figure = _settled(axes)
    renderer = FigureCanvasAgg(figure).get_renderer()
    inside = np.array([axes.get_window_extent(renderer).extents])
    points = axes.transData.transform([label[:2] for label in labels] + list(occupied))
    taken = np.hstack([points - 4, points + 4])
    sides, far = (
        np.array(each) for each in zip(*itertools.product(_SIDES, _DISTANCES), strict=True)
    )
    offsets = far[:, None] * sides / np.hypot(*sides.T)[:, None]  # in points

    for (x, y, text, color), point in zip(labels, points, strict=False):
        trial = axes.annotate(text, (x, y), **style)
        size = np.array(trial.get_window_extent(renderer).size)
        trial.remove()
        corners = point + offsets * figure.dpi / 72 + (sides - 1) / 2 * size
        boxes = np.hstack([corners, corners + size])
        hidden = _shared(boxes, taken).sum(1)
        outside = size.prod() - _shared(boxes, inside).sum(1)
        best = np.argmin(hidden + 3 * outside + far)
        taken = np.vstack([taken, boxes[best]])
        note = axes.annotate(
            text,
            (x, y),
            tuple(offsets[best]),
            textcoords="offset points",
            ha=("right", "center", "left")[sides[best][0] + 1],
            va=("top", "center", "bottom")[sides[best][1] + 1],
            arrowprops=_line(color) if far[best] > _DISTANCES[1] else None,
            **style,
        )
        # A rim of the page's colour around letters that stand on a line.
        rim = patheffects.withStroke(linewidth=2.5, foreground=axes.get_facecolor())
        note.set_path_effects([rim])
        note.set_in_layout(False)


def _line(color: str) -> dict[str, Any]:
    """From a label to what it names."""
    return {"arrowstyle": "-", "color": color, "lw": 1, "shrinkA": 1, "shrinkB": 4}


def end_labels(axes: Axes, ends: Sequence[Label]) -> None:
    """Name the curves of a panel at their right ends, outside, with a line to each where names had
    to make room for others.

    Called when everything else is drawn.

    Args:
      axes: with limits that will not change any more.
      ends: the last point of each curve.
    """
    figure = _settled(axes)
    inside = axes.get_window_extent()
    heights = [(axes.transData.transform(end[:2])[1] - inside.y0) / inside.height for end in ends]
    gap = 1.25 * matplotlib.rcParams["font.size"] * figure.dpi / 72 / inside.height
    order = sorted(range(len(ends)), key=lambda i: (heights[i], -i))
    # The nearest heights that are a gap apart are a monotone fit to heights less their gaps.
    steps = gap * np.arange(len(ends))
    places = isotonic_regression(np.array([heights[i] for i in order]) - steps).x + steps
    for i, place in zip(order, places, strict=True):
        x, y, text, color = ends[i]
        axes.annotate(
            text,
            (x, y),
            (1.05, place),
            textcoords="axes fraction",
            va="center",
            arrowprops=_line(color),
        )


def figure_of(axes: Axes) -> Figure:
    """The figure that holds a panel."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    return figure


def _settled(axes: Axes) -> Figure:
    """The same, its layout made."""
    figure = figure_of(axes)
    figure.draw_without_rendering()
    return figure


def _shared(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The area that each of `boxes` [B, 4] (left, bottom, right, top) has in common with each of
    `others` [O, 4]; [B, O]."""
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    return np.maximum(high - low, 0).prod(-1)


def title(axes: Axes, text: str) -> None:
    """Over the whole figure, not the axes alone: labels on the left leave those off-centre."""
    figure_of(axes).suptitle(text, size=10)
