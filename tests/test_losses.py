"""Masks and weights of the training losses against NumPy, position by position."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r2jax.config import ModelConfig
from r2jax.model import Transformer
from r2jax.modules import embed
from train.config import LossConfig
from train.data import Batch
from train.losses import (
    block_corruption,
    corrupt,
    cross_entropy,
    draw_block,
    mask_probability,
    masked_loss,
    uniform_corruption,
)

ROWS, BLOCKS, LENGTH = 6, 4, 8
WIDTH = BLOCKS * LENGTH
MODEL = ModelConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=2,
    head_dim=8, max_sequence_length=64, rope_theta=1e4, rms_norm_eps=1e-5,
    mask_id=0, eos_id=1, pad_id=1,
)  # fmt: skip

draw = jax.jit(corrupt, static_argnums=(2, 3))


def draws(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    uniform = rng.random((ROWS, WIDTH), np.float32)
    p = rng.uniform(0.1, 0.9, ROWS).astype(np.float32)
    return uniform, p, rng.integers(0, BLOCKS, ROWS)


def test_uniform_masks_and_weights() -> None:
    uniform, p, _ = draws()
    masked, weight = uniform_corruption(jnp.asarray(uniform), jnp.asarray(p))
    for b in range(ROWS):
        for j in range(WIDTH):
            hidden = uniform[b, j] < p[b]
            assert masked[b, j] == hidden
            np.testing.assert_allclose(weight[b, j], hidden / p[b] / WIDTH, rtol=1e-6)


@pytest.mark.parametrize("complement", [False, True])
def test_block_masks_and_weights(complement: bool) -> None:
    uniform, p, block = draws()
    masked, weight = block_corruption(
        jnp.asarray(uniform), jnp.asarray(p), jnp.asarray(block), LENGTH, complement
    )
    for b in range(ROWS):
        for j in range(WIDTH):
            hidden = (uniform[b, j] < p[b]) != complement
            where = j // LENGTH
            want = where > block[b] or (where == block[b] and hidden)
            assert masked[b, j] == want
            chance = 1 - p[b] if complement else p[b]
            loss = hidden / chance / LENGTH if where == block[b] else 0.0
            np.testing.assert_allclose(weight[b, j], loss, rtol=1e-5)


def test_limit_of_the_weight() -> None:
    uniform, p, block = draws()
    p = jnp.full_like(p, 0.01)
    _, weight = block_corruption(jnp.asarray(uniform) / 100, p, jnp.asarray(block), LENGTH, limit=5)
    assert float(weight.max()) == pytest.approx(5 / LENGTH)


def test_two_views_cover_every_position_of_the_block_once() -> None:
    config = LossConfig(
        block_length=LENGTH, block_fraction=1.0, complementary=True, stratified=True
    )
    lengths = jnp.full((64,), WIDTH)
    masked, weight = jax.tree.map(np.asarray, draw(jax.random.key(0), lengths, WIDTH, config))
    asked = weight > 0
    times = asked[0::2].astype(int) + asked[1::2]
    assert set(np.unique(times)) == {0, 1}
    blocks = times.reshape(-1, BLOCKS, LENGTH).sum(-1)
    assert (np.sort(blocks, axis=-1) == [0, 0, 0, LENGTH]).all()
    assert (masked | ~asked).all()


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("complementary", [False, True])
@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_expected_weight_of_a_row_is_one(
    fraction: float, complementary: bool, stratified: bool
) -> None:
    """E[Σ_j weight_j] = 1 for either loss and either view: 1 / p undoes the masking probability."""
    config = LossConfig(
        block_length=LENGTH, block_fraction=fraction, complementary=complementary,
        stratified=stratified, eps=0.05,
    )  # fmt: skip
    keys = jax.random.split(jax.random.key(1), 64)
    lengths = jnp.full((256,), WIDTH)
    many = jax.jit(jax.vmap(lambda key: corrupt(key, lengths, WIDTH, config).weight))
    weight = many(keys)
    for view in range(2):
        assert float(weight.sum(-1)[:, view::2].mean()) == pytest.approx(1.0, abs=0.05)


def test_share_of_block_rows_is_exact_and_even() -> None:
    config = LossConfig(block_length=LENGTH, block_fraction=0.75, block_mask=0.5)
    masked, weight = draw(jax.random.key(0), jnp.full((32,), WIDTH), WIDTH, config)
    hidden, asked = np.asarray(masked), np.asarray(weight) > 0
    blocks = asked.reshape(32, BLOCKS, LENGTH).any(-1).sum(-1)
    uniform = np.arange(32) % 4 == 0
    assert (blocks[~uniform] <= 1).all()
    assert blocks[uniform].max() > 1
    assert (hidden == asked)[uniform].all()


def test_stratified_probabilities_cover_the_levels() -> None:
    p = np.sort(np.asarray(mask_probability(jax.random.key(3), 100, stratified=True, eps=1e-3)))
    assert np.abs(np.diff(p) - 0.01).max() < 1e-3
    assert p.min() >= 1e-3 and p.max() < 1


def test_blocks_of_padding_are_drawn_as_often_as_asked() -> None:
    lengths = jnp.repeat(jnp.asarray([1, LENGTH, LENGTH + 1, WIDTH]), 500)

    def drawn(padding: int | None) -> list[list[int]]:
        block = draw_block(jax.random.key(0), lengths, BLOCKS, LENGTH, padding)
        return [sorted(set(part.tolist())) for part in np.asarray(block).reshape(4, 500)]

    assert drawn(None) == [[0, 1, 2, 3]] * 4
    assert drawn(0) == [[0], [0], [0, 1], [0, 1, 2, 3]]
    assert drawn(1) == [[0, 1], [0, 1], [0, 1, 2], [0, 1, 2, 3]]


def test_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 3, 11)).astype(np.float32)
    target = rng.integers(0, 11, (2, 3))
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    want = -np.log(np.take_along_axis(p, target[..., None], -1))[..., 0]
    got = cross_entropy(jnp.asarray(z), jnp.asarray(target))
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize(("family", "shift"), [("llada", 0), ("Dream", 1)])
def test_loss_is_that_of_rows_in_natural_order(family: str, shift: int) -> None:
    """Summed in NumPy from the logits of [prompt | answer], row by row and without padding."""
    rng = np.random.default_rng(0)
    prompt_length = np.asarray([3, 9, 5])
    prompt = rng.integers(2, 32, (3, 10))
    answer = rng.integers(2, 32, (3, WIDTH))
    uniform, p, block = draws()
    corruption = block_corruption(
        jnp.asarray(uniform[:3]), jnp.asarray(p[:3]), jnp.asarray(block[:3]), LENGTH
    )
    model = Transformer(dataclasses.replace(MODEL, model_type=family), rngs=nnx.Rngs(0))
    batch = Batch(*map(jnp.asarray, (prompt, prompt_length, answer, np.full(3, WIDTH))))
    got = jax.jit(masked_loss)(model, batch, corruption)
    forward = jax.jit(lambda model, tokens: model(tokens))
    want = 0.0
    for b, length in enumerate(prompt_length):
        noisy = np.where(corruption.masked[b], MODEL.mask_id, answer[b])
        logits = np.asarray(forward(model, np.concatenate([prompt[b, :length], noisy])[None]))[0]
        z = logits[length - shift :][:WIDTH].astype(np.float64)
        nll = np.log(np.exp(z).sum(-1)) - z[np.arange(WIDTH), answer[b]]
        want += (nll * np.asarray(corruption.weight[b])).sum()
    assert float(got.weight) == 3
    np.testing.assert_allclose(float(got.total), want, rtol=1e-4)


def test_gradient_of_the_embedding_is_that_of_a_gather() -> None:
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(16, 8)).astype(np.float32))
    tokens = jnp.asarray(np.where(rng.random((4, 12)) < 0.5, 0, rng.integers(0, 16, (4, 12))))
    out = jnp.asarray(rng.normal(size=(4, 12, 8)).astype(np.float32))
    want = jax.grad(lambda t: jnp.sum(t[tokens] * out))(table)
    got = jax.grad(lambda t: jnp.vdot(embed(t, tokens, (0, 1)), out))(table)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
