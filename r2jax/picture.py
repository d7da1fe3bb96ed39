"""A picture of one decoded answer: position x step, and which rule committed what.

matplotlib is imported here only; it is not needed for anything else.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.figure
import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from r2jax.decode_config import DecodeConfig
from r2jax.text import TextOutput
from r2jax.trace import CONFIDENCE_CLUSTER, TEMPORAL, TOKEN_CLUSTER, TRANSFER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# From Okabe and Ito's palette: told apart with every kind of colour vision (tested), and black text
# is legible on all.
RULES = {
    TRANSFER: ("transfer", "#56B4E9"),
    CONFIDENCE_CLUSTER: ("confidence cluster", "#E69F00"),
    TOKEN_CLUSTER: ("token cluster", "#F0E442"),
    TEMPORAL: ("temporal", "#009E73"),
}
_MASKED, _DONE = "#E4E4E4", "#FFFFFF"
_CELL = (0.44, 0.25)  # width and height of a cell in inches
_FONT, _SMALLEST = 8.0, 4.0  # points


def of_answer(
    out: TextOutput,
    row: int,
    tokenizer: PreTrainedTokenizerFast,
    mask_id: int,
    config: DecodeConfig,
) -> matplotlib.figure.Figure:
    """Draw one row of what `r2jax.generate_text(..., trace=True)` returned.

    Args:
      out: the result.
      row: which prompt.
      tokenizer: of the model.
      mask_id: the model's mask token (`model.config.mask_id`).
      config: with which `out` was decoded.

    Raises:
      ValueError: `out` was decoded without `trace`.
    """
    states, committed_by = out.output.states, out.output.committed_by
    if states is None or committed_by is None:
        raise ValueError("there is nothing to draw: decode with trace=True")
    tokens, answer, nfe = np.asarray(out.output.tokens[row]), len(out.tokens[row]), out.nfe[row]
    labels = [str(tokenizer.decode([token])) for token in tokens[:answer]]
    return trajectory(
        np.asarray(states[row]),
        tokens,
        np.asarray(committed_by[row]),
        labels + ["end"] * (len(tokens) - answer),
        block_length=config.block_length or len(tokens),
        mask_id=mask_id,
        answer_length=answer,
        title=f"{len(tokens)} tokens decoded in {nfe} forwards (NFE {nfe})",
    )


def trajectory(
    states: Int[np.ndarray, "K G"],
    tokens: Int[np.ndarray, " G"],
    committed_by: Int[np.ndarray, " G"],
    labels: Sequence[str],
    *,
    block_length: int,
    mask_id: int,
    answer_length: int | None = None,
    title: str,
) -> matplotlib.figure.Figure:
    """Draw one row of a traced generation.

    One panel a block: columns are positions, rows are the forwards spent on the block, from top to
    bottom, and below them the text. A token stands in the row of the forward that committed it, in
    the colour of the rule.

    Args:
      states: the answer before each forward; -1 in unused entries.
      tokens: the final answer.
      committed_by: which rule wrote each position (`r2jax.trace.TRANSFER`, ...).
      labels: the text of each position's token.
      block_length: positions of a block.
      mask_id: the mask token.
      answer_length: tokens before the end; blocks that only hold what follows are left out. None:
        all of them.
      title: of the picture.

    Raises:
      ValueError: labels or a block length that do not fit the number of tokens.
    """
    gen_length = len(tokens)
    if len(labels) != gen_length or gen_length % block_length:
        raise ValueError(
            f"{len(labels)} labels and block_length {block_length} do not fit {gen_length} tokens"
        )
    nfe = int(np.sum(states[:, 0] >= 0))
    # Row k: after k forwards; committed at k: masked before forward k, and not after it.
    masked = np.concatenate([states[:nfe], tokens[None]]) == mask_id
    written = np.argmax(~masked, axis=0) - 1

    last = gen_length - 1 if answer_length is None else min(answer_length, gen_length - 1)
    shown = range(last // block_length + 1)
    end = len(shown) * block_length
    current = np.argmax(masked[:-1], axis=1) // block_length  # block of each forward
    forwards = [np.flatnonzero(current == block) for block in shown]
    width = _CELL[0] * block_length + 1.2
    heights = [_CELL[1] * (len(steps) + 1) for steps in forwards]
    height = sum(heights) + 0.45 * len(heights) + 1.3
    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for block, (axis, steps) in enumerate(zip(axes, forwards, strict=True)):
        columns = np.arange(block * block_length, (block + 1) * block_length)
        _draw_block(axis, steps, columns, written, committed_by, labels)
    rest = "" if end == gen_length else f" (from {end} on: nothing but the end, not shown)"
    axes[-1].set_xlabel(f"position in the answer{rest}")
    figure.supylabel("forward", fontsize="medium")
    figure.suptitle(title)
    used = [rule for rule in RULES if rule in committed_by[:end]]
    handles = [Patch(facecolor=RULES[rule][1], label=RULES[rule][0]) for rule in used]
    handles += [Patch(facecolor=_MASKED, label="masked")]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def save(figure: matplotlib.figure.Figure, path: str | os.PathLike[str]) -> None:
    """Write a picture in the format of the file name's ending (.png, .svg, .pdf).

    Raises:
      ValueError: an ending that matplotlib does not know.
      OSError: the file cannot be written.
    """
    with warnings.catch_warnings():
        # A token in a script that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path, dpi=130, facecolor="white")


def _draw_block(
    axis: Axes,
    steps: Int[np.ndarray, " s"],
    columns: Int[np.ndarray, " L"],
    written: Int[np.ndarray, " G"],
    committed_by: Int[np.ndarray, " G"],
    labels: Sequence[str],
) -> None:
    palette = [_MASKED, _DONE, *(color for _, color in RULES.values())]
    cells = np.full((len(steps) + 1, len(columns)), 1)  # the last row is the text
    cells[:-1] = np.where(written[columns][None] < steps[:, None], 1, 0)
    row_of = {int(step): row for row, step in enumerate(steps)}
    for x, column in enumerate(columns):
        label, size = _fit(str(labels[column]))
        text = {"size": size, "ha": "center", "va": "center", "parse_math": False}
        axis.text(x, len(steps), label, color="#444444", **text)
        row = row_of.get(int(written[column]))  # None: not by a forward of this block, at the end
        if row is not None:
            cells[row, x] = 2 + int(committed_by[column])
            axis.text(x, row, label, **text)
    axis.imshow(
        cells,
        cmap=ListedColormap(palette),
        vmin=0,
        vmax=len(palette) - 1,
        aspect="auto",
        interpolation="nearest",
    )
    axis.set_yticks(range(len(steps) + 1), [*(str(step + 1) for step in steps), "text"])
    ticks = [x for x, column in enumerate(columns) if column % 4 == 0]
    axis.set_xticks(ticks, [str(columns[x]) for x in ticks])
    axis.set_xticks(np.arange(-0.5, len(columns)), minor=True)
    axis.set_yticks(np.arange(-0.5, len(steps) + 1), minor=True)
    axis.grid(which="minor", color="white", linewidth=1.0)
    axis.tick_params(which="both", length=0, labelsize=8)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _fit(label: str) -> tuple[str, float]:
    """A token as it is shown, and a font size at which it fits a cell."""
    label = _printable(label)
    room = 72 * _CELL[0] * 0.94 / 0.6  # points in a cell; a glyph is about 0.6 of its size wide
    longest = int(room / _SMALLEST)
    if len(label) > longest:
        label = label[: longest - 1] + "…"
    return label, min(_FONT, room / len(label))


def _printable(label: str) -> str:
    """A token's text without blanks at its ends, line breaks as an arrow, blanks alone as a bar."""
    shown = label.strip(" ").replace("\n", "↵").replace("\t", "⇥")
    shown = "".join(char if char.isprintable() else "□" for char in shown)
    return shown or "␣"
