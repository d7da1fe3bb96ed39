"""The picture of a trajectory: which cell has which colour and text, and the files."""

from types import SimpleNamespace
from typing import Any

import matplotlib.colors
import numpy as np
import pytest

from r2jax import picture
from r2jax.decode_config import DecodeConfig
from r2jax.trace import CONFIDENCE_CLUSTER, TEMPORAL, TRANSFER

MASK = 9
LABELS = [" a", "$b$", "\n", " ", "\x02", "a very long token", "end", "end"]
# Two blocks of four: the first takes two forwards, the second one.
TOKENS = np.array([1, 2, 3, 4, 5, 6, 0, 0])
STATES = np.full((8, 8), -1)
STATES[0] = MASK
STATES[1] = [1, MASK, 3, 4, MASK, MASK, MASK, MASK]
STATES[2] = [1, 2, 3, 4, MASK, MASK, MASK, MASK]
RULES = np.array(
    [TRANSFER, TEMPORAL, CONFIDENCE_CLUSTER, CONFIDENCE_CLUSTER, *[TRANSFER] * 4], np.int8
)


def draw(**changes):
    arguments = {"block_length": 4, "mask_id": MASK, "title": "NFE 3", **changes}
    return picture.trajectory(STATES, TOKENS, RULES, LABELS, **arguments)


def colors(axis):
    """Hex colours of the cells, [rows, columns]."""
    (image,) = axis.get_images()
    rgba = image.cmap(image.norm(image.get_array()))
    return [[matplotlib.colors.to_hex(cell).upper() for cell in row] for row in rgba]


def test_cells_and_texts():
    figure = draw()
    first, second = figure.axes
    masked, done = "#E4E4E4", "#FFFFFF"
    transfer, cluster, temporal = (
        picture.RULES[rule][1] for rule in (TRANSFER, CONFIDENCE_CLUSTER, TEMPORAL)
    )
    assert colors(first) == [
        [transfer, masked, cluster, cluster],
        [done, temporal, done, done],
        [done] * 4,  # the text
    ]
    assert colors(second) == [[transfer] * 4, [done] * 4]
    texts = {text.get_position(): text.get_text() for text in first.texts}
    assert texts == {
        (0, 0): "a", (1, 1): "$b$", (2, 0): "↵", (3, 0): "␣",
        (0, 2): "a", (1, 2): "$b$", (2, 2): "↵", (3, 2): "␣",
    }  # fmt: skip
    assert [t.get_text() for t in second.texts[::2]] == ["□", "a very long…", "end", "end"]
    assert [label.get_text() for label in first.get_yticklabels()] == ["1", "2", "text"]
    assert [label.get_text() for label in second.get_yticklabels()] == ["3", "text"]
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["transfer", "confidence cluster", "temporal", "masked"]
    assert figure.get_suptitle() == "NFE 3"


def test_blocks_after_the_end_are_left_out():
    (axis,) = draw(answer_length=2).axes
    assert "from 4 on" in axis.get_xlabel()
    assert len(draw(answer_length=8).axes) == 2


@pytest.mark.parametrize(
    ("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_files(tmp_path, suffix, start):
    path = tmp_path / f"picture.{suffix}"
    picture.save(draw(), path)
    assert path.read_bytes().startswith(start)


class Tokenizer:
    def decode(self, ids):
        return LABELS[ids[0] - 1]


def answer(states: np.ndarray | None) -> Any:
    rules = None if states is None else RULES[None]
    raw = SimpleNamespace(states=states, tokens=TOKENS[None], committed_by=rules)
    return SimpleNamespace(output=raw, tokens=[[1, 2, 3, 4, 5, 6]], nfe=np.array([3]))


def test_picture_of_an_answer():
    config = DecodeConfig(gen_length=8, block_length=4)
    tokenizer: Any = Tokenizer()
    figure = picture.of_answer(answer(STATES[None]), 0, tokenizer, MASK, config)
    assert [len(axis.texts) for axis in figure.axes] == [8, 8]
    assert [t.get_text() for t in figure.axes[1].texts[4:]] == ["end"] * 4
    assert figure.get_suptitle() == "8 tokens decoded in 3 forwards (NFE 3)"
    with pytest.raises(ValueError, match="trace=True"):
        picture.of_answer(answer(None), 0, tokenizer, MASK, config)


def test_refusals():
    with pytest.raises(ValueError, match="block_length 3 do not fit 8 tokens"):
        draw(block_length=3)


def test_colours_differ_in_every_kind_of_colour_vision():
    """RGB distances, also as protanopes and deuteranopes see them (Viénot et al. 1999)."""
    to_lms = np.array(
        [[17.8824, 43.5161, 4.1193], [3.4557, 27.1554, 3.8671], [0.02996, 0.18431, 1.46709]]
    )
    protan, deutan = np.eye(3), np.eye(3)
    protan[0] = [0, 2.0234, -2.5258]
    deutan[1] = [0.4942, 0, 1.2483]
    rgb = np.array([matplotlib.colors.to_rgb(color) for _, color in picture.RULES.values()]) ** 2.2
    for simulate in (np.eye(3), protan, deutan):
        seen = rgb @ (np.linalg.inv(to_lms) @ simulate @ to_lms).T
        seen = np.clip(seen, 0, 1) ** (1 / 2.2)
        distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert distances[~np.eye(len(rgb), dtype=bool)].min() > 0.3
