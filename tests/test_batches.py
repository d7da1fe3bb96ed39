"""Long lists: few programs, few batches, and rows that do not see their batch."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import r2jax
from r2jax import batches
from r2jax.batches import generate_many, plan_batches
from tests import tiny_checkpoint as tiny
from tests.trajectories import assert_same

SHORT = r2jax.DecodeConfig(gen_length=16, block_length=8)
SAMPLED = r2jax.DecodeConfig(gen_length=16, block_length=8, temperature=1.0)
LENGTHS = [3, 130, 70, 1, 64, 65, 7, 129]


@pytest.fixture(scope="module")
def model():
    """Large weights, so that predictions differ from position to position."""
    model = r2jax.Transformer(tiny.model_config(), rngs=nnx.Rngs(1))
    state = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda x: 30 * x if x.ndim == 2 else x, state))
    return model


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(6, 300, length) for length in LENGTHS]


def in_order(found, count):
    """Each row of the batches as one tree of arrays, by its place in the list."""
    rows = {}
    for batch in found:
        assert batch.seconds > 0 and batch.compile_seconds >= 0
        for i, index in enumerate(batch.indices):
            assert index not in rows
            rows[index] = jax.tree.map(lambda x, i=i: x[i], batch.output)
    return [rows[i] for i in range(count)]


def test_rows_do_not_see_their_batch(model, prompts):
    key, prompts = jax.random.key(3), prompts[2:7]
    want = r2jax.generate(model, prompts, SAMPLED, key=key, trace=True)
    for size in (1, 3):
        found = generate_many(model, prompts, SAMPLED, batch_size=size, key=key, trace=True)
        for i, row in enumerate(in_order(found, len(prompts))):
            assert_same(jax.tree.map(lambda x, i=i: x[i], want), row)
    assert len(np.unique(np.asarray(want.tokens), axis=0)) == len(prompts)


def test_done_rows_are_skipped_and_the_rest_keep_their_keys(model, prompts):
    key = jax.random.key(0)
    want = r2jax.generate(model, prompts, SAMPLED, key=key)
    done = {0, 1, 2, 5, 6, 7}
    (batch,) = generate_many(model, prompts, SAMPLED, batch_size=4, key=key, skip=done)
    assert batch.indices == [3, 4]
    np.testing.assert_array_equal(batch.output.tokens, want.tokens[np.array([3, 4])])
    assert not list(generate_many(model, prompts, SHORT, batch_size=4, skip=range(8)))


def test_a_program_for_each_width(model, prompts):
    decode: Any = r2jax.decode  # pyright does not see the jitted function's attributes
    decode.clear_cache()
    found = list(generate_many(model, prompts, SHORT, batch_size=2))
    assert [batch.indices for batch in found] == [[1, 7], [2, 5], [0, 3], [4, 6]]
    assert decode._cache_size() == 3  # 192, 128 and 64 tokens
    assert [batch.compile_seconds > 0.05 for batch in found] == [True, True, True, False]
    list(generate_many(model, prompts[:7], SHORT, batch_size=2))  # the last batch is filled up
    assert decode._cache_size() == 3


def test_plan():
    plan = plan_batches(LENGTHS, range(8), 3, gen_length=16)
    assert plan == [([1, 7, 2], 192), ([5, 0, 3], 128), ([4, 6], 64)]
    # No plan needs fewer batches; rows are there once; every row fits.
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 2000, 1000).tolist()
    plan = plan_batches(lengths, range(1000), 64, gen_length=256)
    assert len(plan) == -(-1000 // 64)
    assert sorted(i for rows, _ in plan for i in rows) == list(range(1000))
    for rows, width in plan:
        needed = max(lengths[i] for i in rows)
        assert needed <= width and width % 64 == 0
        assert 256 + width <= (256 + needed + 63) * (1 + batches.SLACK)
    widths = [width for _, width in plan]
    assert widths == sorted(widths, reverse=True) and len(set(widths)) < len(widths)


def test_one_batch_ahead(model, prompts, monkeypatch):
    started = []

    def dispatch(model, rows, *args, **kwargs):
        started.append([len(row) for row in rows])
        return real(model, rows, *args, **kwargs)

    real = batches.dispatch
    monkeypatch.setattr(batches, "dispatch", dispatch)
    found = generate_many(model, prompts, SHORT, batch_size=3)
    assert not started
    next(found)
    assert len(started) == 2
    next(found)
    assert len(started) == 3 and started[2] == [64, 7, 7]  # filled up with its last row
    assert next(found).output.tokens.shape == (2, 16)
    with pytest.raises(StopIteration):
        next(found)


@pytest.mark.parametrize(
    ("prompts", "changes", "size", "message"),
    [
        ([[1]], {}, 0, "batch_size must be at least 1, got 0"),
        ([], {}, 2, "prompts is empty"),
        ([[1], [7, 2]], {}, 2, "prompt 1 holds the mask token"),
        ([[1]], {"temperature": 1.0}, 2, "need `key`"),
        ([[1]], {"gen_length": 512}, 2, "leaves no room for a prompt"),
    ],
)
def test_refusals_come_before_the_work(model, prompts, changes, size, message):
    config = r2jax.DecodeConfig(**{"gen_length": 16, "block_length": 8, **changes})
    with pytest.raises(ValueError) as error:
        generate_many(model, prompts, config, batch_size=size)
    assert message in str(error.value)
