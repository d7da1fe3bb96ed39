"""What the trajectory viewer's page holds; test_viewer_browser.py has what it does."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from html.parser import HTMLParser
from typing import Any

import jax
import numpy as np
import pytest

import r2jax
from r2jax import viewer
from tests import golden_cases as golden
from tests.trajectories import (
    CONFIG,
    FAST,
    OUTPUTS,
    PROMPT,
    TEXTS,
    TOKENIZER,
    Tokenizer,
    make_page,
    text_output,
)


class Parsed(HTMLParser):
    """The elements of a page, and what its scripts hold."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append(dict(attrs))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def data_of(page: str) -> dict[str, Any]:
    return json.loads(Parsed(page).scripts[0])


TRACES = {
    "r2": ("tiny-a", {"spatial_threshold": 0.6, "temporal_threshold": 0.5}),
    "vanilla": ("tiny-a", {"cache": "none", "threshold": None}),
    "stop, prefix": ("tiny-a", {"cache": "prefix", "stop_at_eos": True, "eos_id": (15, 144)}),
    "dream, sampled": ("dream-a", {"temperature": 0.7}),
}


@pytest.mark.parametrize(("name", "options"), TRACES.values(), ids=TRACES)
def test_the_page_holds_the_trace(name: str, options: dict[str, Any]):
    """All of it but predictions of positions that are written: states follow from when each token
    was committed."""
    config = r2jax.DecodeConfig(gen_length=32, block_length=16, **options)
    model, key = golden.model(name), jax.random.key(0)
    raw = r2jax.generate(model, [[3, 4], list(range(8, 20))], config, key=key, trace=True)
    out = jax.tree.map(lambda x: np.asarray(x)[1:], raw)
    page = make_page({"one": text_output(out, answer=20)}, tokenizer=AnyTokenizer())
    (found,) = data_of(page)["strategies"]

    nfe, tokens = int(out.nfe[0]), np.array(found["tokens"])
    np.testing.assert_array_equal(tokens, out.tokens[0])
    assert found["nfe"] == nfe == len(found["forwards"])
    np.testing.assert_array_equal(found["committed_by"], out.committed_by[0])
    at = np.array(found["committed_at"])
    states = np.where(at <= np.arange(nfe)[:, None], tokens, model.config.mask_id)
    np.testing.assert_array_equal(states, out.states[0, :nfe])
    assert sum(forward["full"] for forward in found["forwards"]) == out.refreshes[0]
    for k, forward in enumerate(found["forwards"]):
        assert forward["block"] == out.blocks[0, k]
        masked = states[k, forward["block"] * 16 :][:16] == model.config.mask_id
        assert [x is not None for x in forward["predictions"]] == masked.tolist()
        assert [x is not None for x in forward["confidences"]] == masked.tolist()
        for values, want in (
            (forward["predictions"], out.predictions[0, k]),
            (forward["confidences"], out.confidences[0, k]),
        ):
            kept = np.array(values)[masked].astype(float)
            np.testing.assert_allclose(kept, want[masked], rtol=0, atol=5.1e-5)


class AnyTokenizer(Tokenizer):
    def decode(self, ids: list[int]) -> str:
        return str(ids[0])


def test_text_that_looks_like_markup_is_data():
    page = make_page()
    plain = Parsed(make_page({"one": text_output(FAST.output, 2)}, tokenizer=AnyTokenizer()))
    parsed = Parsed(page)
    assert parsed.tags == plain.tags and parsed.attributes == plain.attributes
    assert parsed.tags.count("script") == 2 == page.count("</script")
    data = json.loads(parsed.scripts[0])
    assert data["prompt"] == PROMPT and data["about"] == "<made up>"
    assert {int(i): text for i, text in data["texts"].items()} == dict(list(enumerate(TEXTS))[1:])
    assert data["ends"] == [1]
    assert [s["name"] for s in data["strategies"]] == list(OUTPUTS)
    assert data["strategies"][0]["options"] == json.loads(json.dumps(dataclasses.asdict(CONFIG)))


def test_only_the_pages_own_script_may_run():
    parsed = Parsed(make_page())
    policy = next(a["content"] for a in parsed.attributes if a.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[1].encode()).digest()).decode()
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )


def test_what_is_no_number_is_unknown():
    assert FAST.output.confidences is not None
    confidences = np.full_like(FAST.output.confidences, np.nan)
    out = text_output(FAST.output._replace(confidences=confidences), 17)
    (found,) = data_of(make_page({"one": out}))["strategies"]
    assert found["forwards"][0]["confidences"] == [None] * 8


def test_refusals():
    bare = dataclasses.replace(FAST, output=FAST.output._replace(states=None))
    with pytest.raises(ValueError, match="bare: there is nothing to show: decode with trace=True"):
        make_page({"bare": bare})
    with pytest.raises(ValueError, match="slow: row must be between 0 and 0, got 1"):
        make_page(row=1)
    with pytest.raises(ValueError, match=r"the same names, got \['a'\] and \['b'\]"):
        viewer.page({"a": FAST}, 0, TOKENIZER, prompt="", configs={"b": CONFIG})
    with pytest.raises(ValueError, match="the same names"):
        make_page({})
