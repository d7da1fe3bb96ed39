"""What Dream's decoding adds to the jitted rules, against the NumPy oracle: its schedule, the cap
of its plain sampler, its measures of certainty, and decisions rounded to bfloat16."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import r2jax
from r2jax import predict, redundancy, transfer
from r2jax.decode_config import Alg
from r2jax.denoise import denoise, start
from r2jax.family import DREAM
from tests import oracle, strategies

many = settings(max_examples=300, deadline=None, derandomize=True)
LENGTH = 8
MASK = 4


def rows(commit: jax.Array, expected: list[np.ndarray]) -> None:
    np.testing.assert_array_equal(np.asarray(commit), np.stack(expected))


@many
@given(strategies.blocks(length=LENGTH), st.integers(1, 20), st.integers(0, 19))
def test_timesteps(blocks: strategies.Blocks, steps: int, first: int):
    step = (first + np.arange(8)) % steps  # rows are not at the same step
    got = jax.jit(transfer.by_timesteps)(blocks.masked, blocks.rest, step, steps)
    expected = [
        oracle.schedule(masked, rest, oracle.freed(int(masked.sum()), int(at), steps))
        for masked, rest, at in zip(blocks.masked, blocks.rest, step, strict=True)
    ]
    rows(got, expected)


@pytest.mark.parametrize("length", [64, 256])
@pytest.mark.parametrize("steps", [1, 7, 32, 64, 128])
def test_timesteps_of_whole_answers(length: int, steps: int):
    """A whole answer from all masks to none: the quotas of every step."""
    schedule = jax.jit(transfer.by_timesteps)
    masked, order = np.ones((1, length), bool), np.arange(length, dtype=np.float32)[None]
    for step in range(steps):
        got = schedule(masked, order, np.array([step]), steps)
        assert got.sum() == oracle.freed(int(masked.sum()), step, steps)
        masked = masked & ~np.asarray(got)
    assert not masked.any()


@many
@given(
    strategies.blocks(length=LENGTH), strategies.sixteenths(), st.integers(0, 9),
    st.sampled_from([1, 2, 4, 8]),
)  # fmt: skip
def test_capped_threshold(blocks: strategies.Blocks, limit: float, step: int, each: int):
    confidence = 1 / (1 + blocks.rest)
    most = jax.jit(transfer.allowance)(blocks.masked, np.full(8, step), each)
    room = [oracle.room(masked, step, each) for masked in blocks.masked]
    assert most[:, 0].tolist() == room
    got = jax.jit(transfer.by_threshold)(blocks.masked, confidence, blocks.rest, limit, most)
    each_row = zip(blocks.masked, blocks.rest, confidence, room, strict=True)
    rows(got, [oracle.threshold(m, r, c, limit, n) for m, r, c, n in each_row])


def random_logits(digits: bytes, step: float = 0.5) -> np.ndarray:
    """[2, 3, 12] on a grid: equal logits are common."""
    return ((np.frombuffer(digits, np.uint8).reshape(2, 3, 12) % 24) * step).astype(np.float32)


some_logits = st.binary(min_size=72, max_size=72).map(random_logits)
predict_by = jax.jit(predict.predict, static_argnums=1, static_argnames=("alg", "rounded"))


@pytest.mark.parametrize("alg", ["entropy", "topk_margin"])
@many
@given(some_logits, st.integers(0, 11))
def test_score(alg: str, logits: np.ndarray, mask_id: int):
    got = predict_by(logits, mask_id, alg=alg)
    token, _, top_confidence = oracle.top1(logits, mask_id)
    np.testing.assert_array_equal(got.token, token)
    np.testing.assert_array_equal(got.top, token)
    np.testing.assert_allclose(got.confidence, oracle.score(logits, alg), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got.order, -got.confidence)
    np.testing.assert_allclose(got.top_confidence, top_confidence, rtol=2e-6)


def bfloat16(x: np.ndarray | float) -> np.ndarray:
    """Rounded to bfloat16, as float32."""
    return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float32)


def rounded_scores(logits: np.ndarray, alg: str) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and scores as PyTorch has them of bfloat16: every operation rounds."""
    z = logits.astype(np.float64)
    p = np.exp(z - z.max(-1, keepdims=True))
    p = bfloat16(p / p.sum(-1, keepdims=True))
    if alg == "confidence":
        return p, p.max(-1)
    if alg == "entropy":
        return p, bfloat16(bfloat16(p * bfloat16(np.log(bfloat16(p + 1e-10)))).sum(-1))
    ordered = np.sort(p, -1)
    return p, bfloat16(ordered[..., -1] - ordered[..., -2])


@pytest.mark.parametrize("alg", ["confidence", "entropy", "topk_margin"])
@many
@given(some_logits)
def test_rounded_score(alg: str, logits: np.ndarray):
    """Of bfloat16 logits. (Scores within two units: an exp that rounds the other way is no fault.)

    Logits are multiples of 1/2, so the most likely probabilities are equal or far apart.
    """
    mask_id = 11
    logits[..., mask_id] = -9  # the likeliest token is not the mask
    got = predict_by(jnp.asarray(logits, jnp.bfloat16), mask_id, alg=alg, rounded=True)
    p, score = rounded_scores(logits, alg)
    np.testing.assert_array_equal(got.token, p.argmax(-1))
    scale = np.log(12) if alg == "entropy" else 1
    np.testing.assert_allclose(got.confidence, score, rtol=2**-7, atol=scale * 2**-8)
    np.testing.assert_array_equal(got.confidence, bfloat16(np.asarray(got.confidence)))
    np.testing.assert_array_equal(got.order, -got.confidence)
    exact = 1 / (1 + oracle.residual(logits, np.asarray(got.top)))
    np.testing.assert_allclose(got.top_confidence, exact, rtol=2e-6)  # for runs and streaks


def test_equal_once_rounded_goes_to_the_lowest_id():
    """Two logits that differ and have one bfloat16 probability; runs go by the raw top-1."""
    logits = jnp.asarray([[[0.0, 0.001, -8.0]]], jnp.bfloat16)
    assert predict_by(logits, 2).token.tolist() == [[1]]
    found = predict_by(logits, 2, rounded=True)
    assert (found.token.tolist(), found.top.tolist()) == ([[0]], [[1]])


def test_confidence_of_the_nucleus():
    """filtered: what does not belong to the nucleus is no part of the confidence."""
    logits = jnp.log(jnp.asarray([[[0.5, 0.25, 0.15, 0.1, 1e-9]]]))
    cases: list[tuple[Alg, float]] = [
        ("confidence", 0.5 / 0.75),
        ("topk_margin", 0.25 / 0.75),
        ("entropy", 2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)),
    ]
    for alg, confidence in cases:
        found = predict.predict(logits, 4, top_p=0.7, alg=alg, filtered=True)
        np.testing.assert_allclose(found.confidence, [[confidence]], rtol=1e-5)
        np.testing.assert_allclose(found.top_confidence, [[0.5]], rtol=1e-6)
    whole = predict.predict(logits, 4, top_p=0.7)
    np.testing.assert_allclose(whole.confidence, [[0.5]], rtol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 8])
@many
@given(
    strategies.blocks(length=LENGTH), st.integers(0, 8), st.integers(0, 7),
    st.sampled_from([-3e-3, -1e-3, -1e-4, 1e-4, 1e-3, 3e-3]),
)  # fmt: skip
def test_rounded_window_mean(
    size: int, blocks: strategies.Blocks, unmasked: int, row: int, off: float
):
    """The limit lies just beside the mean of one row's first window."""
    window = blocks.masked[row, :size]
    own = blocks.confidence[row, :size][window]
    limit = np.float32((own.mean() if len(own) else 0.5) + off)
    rule = jax.jit(redundancy.confidence_cluster, static_argnums=(2, 5))
    got = rule(blocks.masked, blocks.confidence, size, limit, unmasked, jnp.bfloat16)
    each = [
        oracle.confidence_cluster(m, c, size, float(limit), unmasked, ml_dtypes.bfloat16)
        for m, c in zip(blocks.masked, blocks.confidence, strict=True)
    ]
    rows(got.positions, [positions for positions, _ in each])
    assert got.events.tolist() == [events for _, events in each]


def certain(*probabilities: float, dtype: str = "bfloat16") -> jax.Array:
    """Logits [1, L, 5] of the token 0 against the token 1."""
    p = np.array(probabilities)
    logits = np.full((1, len(p), MASK + 1), -np.inf)
    logits[0, :, 0], logits[0, :, 1] = np.log(p / (1 - p)), 0
    return jnp.asarray(logits, dtype)


@pytest.mark.parametrize("round_confidence", [False, True])
@pytest.mark.parametrize("kind", ["threshold", "window"])
def test_rounded_decisions(kind: str, round_confidence: bool):
    """0.8977 passes a threshold of 0.9 once both are 0.8984375; a window's mean passes 0.8 once
    it is 0.80078125."""
    options: dict = {"threshold": 0.9, "confidence_cluster_size": None}
    p, written = (0.99, 0.5, 0.8977, 0.5, 0.5), [True, False, round_confidence, False, False]
    if kind == "window":
        options = {"threshold": 0.995, "confidence_cluster_size": 3}
        options |= {"spatial_threshold": 0.8, "confidence_cluster_unmasked": 0}
        p, written = (0.99, 0.5, 0.8008, 0.8008, 0.7966), [True, False, *[round_confidence] * 3]
    config = r2jax.DecodeConfig(
        gen_length=5, block_length=5, token_cluster=None, temporal_steps=None,
        round_confidence=round_confidence, **options,
    )  # fmt: skip
    static, scalars = config.split(0)
    progress = start(1, static, DREAM, MASK)
    progress = denoise(progress, certain(*p), 0, static, scalars, DREAM, MASK, None, full=False)
    assert (np.asarray(progress.answer)[0] != MASK).tolist() == written
