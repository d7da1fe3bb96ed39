"""The kernels in and between products, interpreted on the CPU, against NumPy and the plain layer."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array
from jax.experimental import pallas

import r2jax
from r2jax import kernels, narrow
from r2jax.quantize import DTYPES, TOP, Narrow, quantize_rows
from tests.test_kernels import CONFIG

pytestmark = pytest.mark.skipif(kernels.plt is None, reason="this JAX has no Triton backend")

BF16 = 2.0**-7  # a step of the last bit of numbers below 2


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    run = functools.partial(pallas.pallas_call, interpret=True)
    monkeypatch.setattr(kernels.pl, "pallas_call", run)


def random(seed: int, *shape: int, dtype: Any = jnp.bfloat16) -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def widened(x: Narrow) -> np.ndarray:
    """[tokens, features]"""
    values = np.asarray(x.values, np.float32)
    return (values * np.asarray(x.scale)[..., None]).reshape(-1, values.shape[-1])


def weights(seed: int, *shape: int, kind: Any) -> tuple[Array, Array, np.ndarray]:
    """An 8-bit weight, its scales, and what they stand for."""
    values, scale = quantize_rows(random(seed, *shape, dtype=jnp.float32), DTYPES[kind])
    return values, scale, np.asarray(values, np.float32) * np.asarray(scale)[..., None]


@pytest.mark.parametrize("kind", [None, "int8", "fp8"])
@pytest.mark.parametrize(
    ("features", "parts"),
    [(512, 1), (448, 3), (64, 1)],  # 448: taken in seven pieces, as Dream-7B's 3584
)
def test_residual_norm(kind: Any, features: int, parts: int):
    x, weight = random(0, 2, 8, features), random(1, features)
    shape = (parts, 2, 8, features)
    branch = random(2, *shape, dtype=jnp.bfloat16 if parts == 1 else jnp.float32)
    dtype = DTYPES[kind] if kind else None
    total, y = narrow.residual_norm(x, branch, weight, 1e-5, dtype)

    wide = np.asarray(branch, np.float32).sum(axis=0)
    rounded = np.asarray(jnp.asarray(wide).astype(jnp.bfloat16), np.float32)
    expected = np.asarray(x, np.float32) + rounded
    assert total.dtype == x.dtype and total.shape == x.shape
    np.testing.assert_allclose(np.asarray(total, np.float32), expected, rtol=BF16)
    expected = np.asarray(total, np.float32)
    expected /= np.sqrt((expected**2).mean(axis=-1, keepdims=True) + 1e-5)
    expected *= np.asarray(weight, np.float32)
    if kind is None:
        assert isinstance(y, Array) and y.shape == x.shape and y.dtype == x.dtype
        np.testing.assert_allclose(np.asarray(y, np.float32), expected, rtol=2 * BF16)
    else:
        assert isinstance(y, Narrow) and y.values.dtype == dtype and y.values.shape == x.shape
        check_narrow(y, expected.reshape(16, features), kind)


def check_narrow(found: Narrow, expected: np.ndarray, kind: str) -> None:
    """Each token's largest number fills the range; the others are off by half a step."""
    top = abs(expected).max(axis=1, keepdims=True)
    np.testing.assert_allclose(found.scale.reshape(-1, 1), top / TOP[DTYPES[kind]], rtol=3 * BF16)
    error = abs(widened(found) - expected)
    limit = {"int8": 0.51 / 127 * top, "fp8": 2.0**-4 * abs(expected) + 2.0**-10 / 448 * top}[kind]
    assert (error <= 3 * BF16 * abs(expected) + limit).all()


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantize_tokens_is_quantize_rows(kind: Any):
    x = random(0, 2, 8, 448) * random(1, 2, 8, 1)
    x = x.at[1, 3].set(0)
    found, expected = narrow.quantize_tokens(x, DTYPES[kind]), quantize_rows(x, DTYPES[kind])
    assert found.values.dtype == DTYPES[kind] and found.scale.shape == (2, 8)
    np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-6)
    found, expected = (np.asarray(y.values, np.float32) for y in (found, expected))
    assert (found != expected).mean() < 0.01  # a half may go to either side
    np.testing.assert_allclose(found, expected, atol=1, rtol=0.13)
    assert (found[1, 3] == 0).all() and found.any(axis=2).sum() == 15


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize(
    ("rows", "features", "programs", "parts"),
    [(128, 256, 1, 1), (128, 512, 6, 4), (192, 384, 4, 1)],  # of three pieces there are no halves
)
def test_product(
    monkeypatch: pytest.MonkeyPatch, kind: Any, rows: int, features: int, programs: int, parts: int
):
    """Whole, and in parts that are left to the reader."""
    monkeypatch.setattr(narrow, "PROGRAMS", programs)
    x = quantize_rows(random(0, 2, 16, features), DTYPES[kind])
    weight, scale, wide = weights(1, rows, features, kind=kind)
    y = narrow.product(x, weight, scale, jnp.bfloat16)
    assert y.shape == (parts, 2, 16, rows)
    assert y.dtype == (jnp.bfloat16 if parts == 1 else jnp.float32)
    expected = widened(x) @ wide.T
    found = np.asarray(y, np.float32).sum(axis=0).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=BF16, atol=1e-3 * expected.std())


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_gated_mlp(kind: Any):
    x = quantize_rows(random(0, 1, 32, 128), DTYPES[kind])
    weight, scale, wide = weights(1, 256, 2, 128, kind=kind)
    y = narrow.gated_mlp(x, weight, scale, jnp.bfloat16)
    gate, up = (widened(x) @ wide[:, i].T for i in range(2))
    assert y.shape == (1, 32, 256) and y.dtype == jnp.bfloat16
    expected = gate / (1 + np.exp(-gate)) * up
    np.testing.assert_allclose(
        np.asarray(y[0], np.float32), expected, rtol=4 * BF16, atol=1e-3 * expected.std()
    )


def model(kind: Any, **changes: Any) -> r2jax.Transformer:
    config = r2jax.ModelConfig(**{**CONFIG.__dict__, **changes})
    return r2jax.Transformer(
        config, dtype=jnp.bfloat16, fused=True, quantize=kind, rngs=nnx.Rngs(0)
    )


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As on an H200; returns which kernels ran."""
    names: list[str] = []

    def noted(module: Any, name: str) -> None:
        kernel = getattr(module, name)

        @functools.wraps(kernel)
        def run(*args: Any, **options: Any) -> Any:
            names.append(name)
            return kernel(*args, **options)

        monkeypatch.setattr(module, name, run)

    for name in ("residual_norm", "quantize_tokens", "product", "gated_mlp"):
        noted(narrow, name)
    noted(kernels, "block_attention")
    monkeypatch.setattr(kernels, "available", lambda: True)
    return names


@pytest.mark.parametrize("kind", [None, "int8", "fp8"])
@pytest.mark.parametrize("shift", [False, True])
def test_a_block_step_on_these_kernels(
    called: list[str], monkeypatch: pytest.MonkeyPatch, kind: Any, shift: bool
):
    """A refresh and a step of a whole model, as on XLA up to rounding."""
    network = model(kind, num_layers=3)
    tokens = jnp.asarray(np.random.default_rng(4).integers(6, 128, (1, 80)))
    positions = jnp.broadcast_to(jnp.arange(80), tokens.shape)
    lengths = jnp.array([73])
    pick = (lambda x: jnp.concatenate([x[:, :1], x[:, :15]], axis=1)) if shift else None

    @jax.jit
    def step(network: r2jax.Transformer) -> Array:
        _, cache = network.hidden(tokens, positions, lengths)
        fed, at = tokens[:, 64:][:, ::-1], positions[:, 32:48]
        hidden, _ = network.hidden(fed, at, lengths, cache, jnp.asarray(32), wanted=pick)
        return hidden.astype(jnp.float32)

    ours = step(network)
    assert called.count("block_attention") == 3
    # The refresh's norms too; the first norm of a pass has nothing to add.
    assert called.count("residual_norm") == 2 * 5
    assert called.count("gated_mlp") == 3
    assert called.count("product") == (9 if kind else 0)
    assert called.count("quantize_tokens") == (7 if kind else 0)
    monkeypatch.setattr(kernels, "available", lambda: False)
    jax.clear_caches()
    theirs = step(network)
    assert ours.shape == theirs.shape == (1, 16, 128)
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert error < {None: 0.01, "int8": 0.02, "fp8": 0.06}[kind]


def test_what_they_are_not_for(called: list[str]):
    tokens = jnp.full((1, 16), 7)
    lengths = jnp.array([16])

    def run(network: r2jax.Transformer, rows: int = 1) -> list[str]:
        called.clear()
        fed = jnp.repeat(tokens, rows, axis=0)
        positions = jnp.broadcast_to(jnp.arange(16), fed.shape)
        network.hidden(fed, positions, jnp.repeat(lengths, rows))
        return sorted(set(called))

    narrow_pass = ["gated_mlp", "product", "quantize_tokens", "residual_norm"]
    assert run(model("int8")) == narrow_pass
    assert run(model("int8"), rows=3) == ["residual_norm"]  # 48 tokens: no power of two
    assert run(model("int8", intermediate_size=192)) == ["residual_norm"]
    assert run(model("int8", hidden_size=132)) == []
    plain = r2jax.Transformer(CONFIG, dtype=jnp.bfloat16, quantize="int8", rngs=nnx.Rngs(0))
    assert run(plain) == []  # laid out for training, which needs gradients
    whole = r2jax.Transformer(CONFIG, fused=True, quantize="int8", rngs=nnx.Rngs(0))
    assert run(whole) == []  # float32
