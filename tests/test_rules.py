"""The jitted rules against the NumPy oracle, on thousands of random blocks full of ties."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2jax import predict, redundancy, transfer
from tests import oracle, strategies

# 300 examples x 8 rows: thousands of blocks a rule. Shapes are fixed, so each rule compiles once.
many = settings(max_examples=300, deadline=None, derandomize=True)
LENGTH = 8


def rows(commit: jax.Array, expected: list[np.ndarray]) -> None:
    np.testing.assert_array_equal(np.asarray(commit), np.stack(expected))


@many
@given(
    st.binary(min_size=2 * 3 * 12, max_size=2 * 3 * 12),
    st.integers(0, 11),
)
def test_prediction(digits: bytes, mask_id: int):
    logits = (np.frombuffer(digits, np.uint8).reshape(2, 3, 12) % 24).astype(np.float32) / 2
    got = jax.jit(predict.predict, static_argnums=1)(logits, mask_id)
    token, rest, confidence = oracle.top1(logits, mask_id)
    np.testing.assert_array_equal(got.token, token)
    np.testing.assert_allclose(got.order, rest, rtol=2e-6)
    np.testing.assert_allclose(got.confidence, confidence, rtol=2e-6)
    assert (got.token != mask_id).all()


def test_no_temperature_brings_the_mask_back():
    """An infinite temperature flattens all; the mask stays out, or decoding would never end."""
    logits = jnp.zeros((1, 50, 3)).at[..., 2].set(9.0)
    keys = jax.random.split(jax.random.key(0), (1, 50))
    for temperature in (1e38, float("inf")):
        assert (predict.predict(logits, 2, keys, temperature).token < 2).all()


def test_a_bfloat16_tie_goes_to_the_lowest_id():
    logits = jnp.asarray([[[1.0, 3.001, 3.002, 3.0]]], jnp.bfloat16)
    assert predict.predict(logits, 0).token.tolist() == [[1]]
    assert predict.predict(logits, 1).token.tolist() == [[2]]


def test_certain_positions_are_still_ranked():
    """Two confidences that both round to 1.0 in float32 differ in their residual mass."""
    logits = jnp.asarray([[[40.0, 0.0, 0.0], [50.0, 0.0, 0.0], [45.0, 0.0, 0.0]]])
    got = predict.predict(logits, 2)
    assert got.confidence.tolist() == [[1.0, 1.0, 1.0]]
    assert transfer.rank(jnp.ones((1, 3), bool), got.order).tolist() == [[2, 0, 1]]


def test_sampling_follows_the_softmax_and_the_nucleus():
    probability = np.array([0.5, 0.25, 0.15, 0.1])
    logits = jnp.log(jnp.broadcast_to(jnp.asarray(probability), (1, 4000, 4)))
    keys = jax.random.split(jax.random.key(0), (1, 4000))

    def shares(**options):
        drawn = predict.predict(logits, 3, keys, **options)
        np.testing.assert_allclose(
            drawn.confidence, probability[np.asarray(drawn.token)], rtol=1e-5
        )
        assert (np.asarray(drawn.top) == 0).all()
        return np.bincount(np.asarray(drawn.token)[0], minlength=4) / 4000

    without_mask = probability[:3] / probability[:3].sum()
    np.testing.assert_allclose(shares(temperature=1.0), [*without_mask, 0], atol=0.03)
    squared = without_mask**2 / (without_mask**2).sum()
    np.testing.assert_allclose(shares(temperature=0.5), [*squared, 0], atol=0.03)
    # 0.5 / 0.9 = 0.56 is not yet 0.7; with the second token it is.
    np.testing.assert_allclose(shares(temperature=1.0, top_p=0.7), [2 / 3, 1 / 3, 0, 0], atol=0.03)


@many
@given(strategies.blocks(length=LENGTH), st.integers(1, 10), st.integers(0, 9))
def test_schedule(blocks: strategies.Blocks, steps: int, step: int):
    step = min(step, steps - 1)
    got = jax.jit(transfer.by_schedule)(blocks.masked, blocks.rest, np.full(8, step), steps)
    quota = oracle.quotas(LENGTH, steps)[step]
    rows(
        got, [oracle.schedule(*row, quota) for row in zip(blocks.masked, blocks.rest, strict=True)]
    )


@many
@given(strategies.blocks(length=LENGTH), strategies.sixteenths())
def test_threshold(blocks: strategies.Blocks, limit: float):
    confidence = 1 / (1 + blocks.rest)
    got = jax.jit(transfer.by_threshold)(blocks.masked, confidence, blocks.rest, limit)
    each = zip(blocks.masked, blocks.rest, confidence, strict=True)
    rows(got, [oracle.threshold(*row, limit) for row in each])


@many
@given(
    strategies.blocks(length=LENGTH),
    strategies.sixteenths(),
    strategies.sixteenths(),
    st.integers(1, 9),
)
def test_leap(blocks: strategies.Blocks, one: float, other: float, radius: int):
    limit, lower = max(one, other), min(one, other)
    confidence = 1 / (1 + blocks.rest)
    limits = jax.jit(transfer.leap)(blocks.masked, confidence, limit, lower, radius)
    each = list(zip(blocks.masked, blocks.rest, confidence, strict=True))
    expected = [oracle.leap(masked, c, limit, lower, radius) for masked, _, c in each]
    np.testing.assert_array_equal(limits, np.stack(expected))
    got = jax.jit(transfer.by_threshold)(blocks.masked, confidence, blocks.rest, limits)
    rows(got, [oracle.threshold(*row, own) for row, own in zip(each, expected, strict=True)])


def test_moving():
    masked = jnp.asarray([[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 1]], bool)
    scale = transfer.moving(masked, 4, 0.5)
    np.testing.assert_allclose(scale[:, 0], [1, 1 - 0.5 * 2 / 8, 1 - 0.5 * 3 / 8], rtol=1e-7)
    np.testing.assert_allclose(transfer.moving(masked, 0, 1.0)[:, 0], [1, 0.5, 0.25], rtol=1e-7)
    assert (transfer.moving(masked, 7, 0.0) == 1).all()


@many
@given(strategies.blocks(length=LENGTH), st.sampled_from([0.3, 0.7, 1.1, 1.9, 2.3, 4.1]))
def test_factor(blocks: strategies.Blocks, scale: float):
    confidence = 1 / (1 + blocks.rest)
    got = jax.jit(transfer.by_factor)(blocks.masked, confidence, blocks.rest, scale)
    rows(
        got,
        [
            oracle.factor(*row, scale)
            for row in zip(blocks.masked, blocks.rest, confidence, strict=True)
        ],
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@many
@given(strategies.blocks(length=LENGTH), strategies.sixteenths(), st.integers(0, 8))
def test_confidence_cluster(size: int, blocks: strategies.Blocks, limit: float, unmasked: int):
    rule = jax.jit(redundancy.confidence_cluster, static_argnums=2)
    got = rule(blocks.masked, blocks.confidence, size, limit, unmasked)
    each = [
        oracle.confidence_cluster(masked, confidence.astype(np.float32), size, limit, unmasked)
        for masked, confidence in zip(blocks.masked, blocks.confidence, strict=True)
    ]
    rows(got.positions, [positions for positions, _ in each])
    assert got.events.tolist() == [events for _, events in each]


@pytest.mark.parametrize("mode", ["confidence", "mid"])
@many
@given(strategies.blocks(length=LENGTH), strategies.sixteenths(0, 15), st.integers(1, 5))
def test_token_cluster(mode: str, blocks: strategies.Blocks, limit: float, size: int):
    rule = jax.jit(redundancy.token_cluster, static_argnums=5)
    got = rule(blocks.masked, blocks.tokens, blocks.confidence, limit, size, mode)
    each = [
        oracle.token_cluster(*row, limit, size, mode)
        for row in zip(blocks.masked, blocks.tokens, blocks.confidence, strict=True)
    ]
    rows(got.positions, [positions for positions, _ in each])
    assert got.events.tolist() == [events for _, events in each]


@many
@given(strategies.blocks(length=LENGTH), strategies.sixteenths(0, 15), st.integers(0, 2**31))
def test_random_token_cluster_picks_one_of_each_run(
    blocks: strategies.Blocks, limit: float, seed: int
):
    uniform = np.random.default_rng(seed).random((8, LENGTH)).astype(np.float32)
    rule = jax.jit(redundancy.token_cluster, static_argnums=5)
    arguments = (blocks.masked, blocks.tokens, blocks.confidence, limit, 2)
    got = rule(*arguments, "random", uniform)
    reference = rule(*arguments, "confidence")
    assert got.events.tolist() == reference.events.tolist()
    for row in range(8):
        masked, tokens = blocks.masked[row], blocks.tokens[row]
        run = np.cumsum([1, *((tokens[1:] != tokens[:-1]) | ~masked[1:] | ~masked[:-1])])
        ours = run[np.flatnonzero(got.positions[row])]
        theirs = run[np.flatnonzero(reference.positions[row])]
        assert ours.tolist() == theirs.tolist()


def test_random_token_cluster_reaches_the_whole_run():
    ones = jnp.ones((1, 4))
    masked, token = ones > 0, jnp.zeros((1, 4), jnp.int32)
    picks = [
        redundancy.token_cluster(masked, token, ones, 0.5, 2, "random", ones * u).positions
        for u in (0.0, 0.3, 0.6, 0.99999994)
    ]
    assert [int(jnp.argmax(pick)) for pick in picks] == [0, 1, 2, 3]


@pytest.mark.parametrize("evaluate", ["last", "ave", "max"])
@many
@given(strategies.histories(length=LENGTH), st.integers(1, 4), strategies.sixteenths())
def test_temporal(evaluate: str, history: strategies.History, steps: int, limit: float):
    rule = jax.jit(redundancy.temporal, static_argnums=6)
    streak = redundancy.Streak.start(8, LENGTH)
    reference = [oracle.Temporal(LENGTH) for _ in range(8)]
    before = history.masked
    for taken, tokens, confidence in zip(
        history.taken, history.tokens, history.confidence, strict=True
    ):
        active = before & ~taken
        fired, streak = rule(streak, active, tokens, confidence, steps, limit, evaluate)
        expected = [
            reference[i].update(
                active[i], before[i], tokens[i], confidence[i], steps, limit, evaluate
            )
            for i in range(8)
        ]
        rows(fired.positions, expected)
        assert fired.events.tolist() == [int(row.sum()) for row in expected]
        before = active & ~np.asarray(fired.positions)
