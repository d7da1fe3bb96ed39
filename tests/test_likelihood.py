"""The Monte-Carlo likelihood, against NumPy networks and against its exact expectation."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import jax
import numpy as np
import pytest

import r2jax
from eval import likelihood
from eval.likelihood import Request, draw_masks, greedy_matches, log_likelihoods
from r2jax.sharding import make_mesh
from tests import oracle_networks

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = {"llada": GOLDEN / "llada" / "tiny-a", "Dream": GOLDEN / "dream" / "dream-a"}


@pytest.fixture(scope="module", params=list(FAMILIES))
def pair(request: pytest.FixtureRequest):
    """A model and the same network in NumPy."""
    folder = FAMILIES[request.param]
    return r2jax.load(folder), oracle_networks.load(folder, np.float64)


def requests(model: r2jax.Transformer, *lengths: tuple[int, int]) -> list[Request]:
    rng = np.random.default_rng(1)
    usable = [t for t in range(model.config.vocab_size) if t != model.config.mask_id]
    return [Request(rng.choice(usable, c), rng.choice(usable, a)) for c, a in lengths]


def masked_log_p(network: oracle_networks.Network, request: Request, mask_id: int, masked) -> float:
    """Σ log p over the masked tokens of one sample, from the whole sequence at once."""
    answer = np.where(masked, mask_id, request.answer)
    tokens = np.concatenate([request.context, answer])
    every = np.arange(len(tokens))
    network(tokens, 0, len(tokens), "full")  # its cache
    z = network.run(tokens, every, every)
    log_p = z - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True))
    log_p -= z.max(-1, keepdims=True)
    columns = len(request.context) + np.flatnonzero(masked) - network.SHIFT
    return float(log_p[columns, request.answer[masked]].sum())


def scores(model: r2jax.Transformer, rows: list[Request], **options) -> dict[int, float]:
    options = {"mc_num": 7, "seed": 3, **options}
    return {score.index: score.value for score in log_likelihoods(model, rows, **options)}


def test_the_estimate_is_that_of_a_plain_network(pair):
    """Every sample by itself, in requests of all widths at once."""
    model, network = pair
    rows = requests(model, (5, 3), (70, 9), (1, 1), (12, 4))
    found = scores(model, rows)
    for i, request in enumerate(rows):
        masks = draw_masks(request, 7, 3)
        samples = [
            len(mask) / mask.sum() * masked_log_p(network, request, model.config.mask_id, mask)
            for mask in masks
        ]
        assert found[i] == pytest.approx(np.mean(samples), rel=1e-4)


def test_the_expectation_is_the_mean_over_all_masks(pair):
    """LLaDA's Eq. 6: l uniform, all subsets of that size alike."""
    model, network = pair
    (request,) = requests(model, (6, 3))
    exact = 0.0
    for size in (1, 2, 3):
        for chosen in itertools.combinations(range(3), size):
            mask = np.isin(np.arange(3), chosen)
            part = masked_log_p(network, request, model.config.mask_id, mask)
            exact += part * 3 / size / math.comb(3, size) / 3
    found = scores(model, [request], mc_num=1500)[0]
    assert found == pytest.approx(exact, rel=0.02)


def test_masks_are_even_fixed_and_shared():
    context, other = np.arange(4), np.arange(5)
    masks = draw_masks(Request(context, np.array([1, 2, 3])), 300, 0)
    assert np.bincount(masks.sum(1)).tolist() == [0, 100, 100, 100]
    assert (abs(masks.mean(0) - 2 / 3) < 0.1).all()
    same = draw_masks(Request(context, np.array([7, 8, 9])), 300, 0)  # another answer to choose
    assert (masks == same).all()
    assert (masks != draw_masks(Request(other, np.array([1, 2, 3])), 300, 0)).any()
    assert (masks != draw_masks(Request(context, np.array([1, 2, 3])), 300, 1)).any()


def test_a_score_depends_on_its_request_alone():
    """Exactly, in float32: neither on the other requests nor on their order; what was done is not
    done again."""
    model = r2jax.load(FAMILIES["llada"])
    rows = requests(model, (5, 3), (70, 9), (12, 4), (30, 2))
    all_of_them = scores(model, rows)
    backwards = scores(model, rows[::-1])
    for i, row in enumerate(rows):
        assert scores(model, [row]) == {0: all_of_them[i]}
        assert backwards[len(rows) - 1 - i] == all_of_them[i]
    assert scores(model, rows, skip={0, 2}) == {i: all_of_them[i] for i in (1, 3)}


def test_calls_of_any_number_of_samples(monkeypatch: pytest.MonkeyPatch):
    """A call that holds all samples, one that does not divide them, and a mesh."""
    model = r2jax.load(FAMILIES["llada"])
    rows = requests(model, (5, 3), (20, 6))
    whole = scores(model, rows)
    monkeypatch.setattr(likelihood, "TOKENS", 3 * 64)
    split = scores(model, rows)
    mesh = make_mesh(data=2, devices=jax.devices()[:2])
    spread = scores(r2jax.load(FAMILIES["llada"], mesh=mesh), rows)
    for i in range(2):
        assert split[i] == pytest.approx(whole[i], rel=1e-5)
        assert spread[i] == pytest.approx(whole[i], rel=1e-5)


def test_without_a_context():
    model = r2jax.load(FAMILIES["llada"])
    network = oracle_networks.load(FAMILIES["llada"], np.float64)
    (request,) = requests(model, (0, 2))
    samples = [
        2 / mask.sum() * masked_log_p(network, request, model.config.mask_id, mask)
        for mask in draw_masks(request, 7, 3)
    ]
    assert scores(model, [request])[0] == pytest.approx(np.mean(samples), rel=1e-4)


def test_greedy_matches():
    """The answer that decoding gives is the greedy one, another is not."""
    model = r2jax.load(FAMILIES["llada"])
    rows = requests(model, (5, 4), (9, 4))
    config = r2jax.DecodeConfig.vanilla(gen_length=4, block_length=4)
    tokens = np.asarray(r2jax.generate(model, [row.context for row in rows], config).tokens)
    rows = [Request(rows[0].context, tokens[0]), Request(rows[1].context, tokens[1].copy())]
    rows[1].answer[3] = (rows[1].answer[3] + 1) % model.config.mask_id
    found = dict(greedy_matches(model, rows, batch_size=2))
    assert found == {0: True, 1: False}
    assert dict(greedy_matches(model, rows, batch_size=2, skip={0, 1})) == {}
