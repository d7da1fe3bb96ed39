"""The kernels on 8-bit weights, interpreted on the CPU, against NumPy and XLA's products."""

from __future__ import annotations

import dataclasses
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
from eval.random_model import random_model
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


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize(
    ("features", "parts"),
    [(512, 1), (448, 3), (64, 1)],  # 448: taken in seven pieces, as Dream-7B's 3584
)
def test_residual_norm(kind: Any, features: int, parts: int):
    x, weight = random(0, 2, 8, features), random(1, features)
    shape = (parts, 2, 8, features)
    branch = random(2, *shape, dtype=jnp.bfloat16 if parts == 1 else jnp.float32)
    total, y = narrow.residual_norm(x, branch, weight, 1e-5, DTYPES[kind])

    wide = np.asarray(branch, np.float32).sum(axis=0)
    rounded = np.asarray(jnp.asarray(wide).astype(jnp.bfloat16), np.float32)
    expected = np.asarray(x, np.float32) + rounded
    assert total.dtype == x.dtype and total.shape == x.shape
    np.testing.assert_allclose(np.asarray(total, np.float32), expected, rtol=BF16)
    expected = np.asarray(total, np.float32)
    expected /= np.sqrt((expected**2).mean(axis=-1, keepdims=True) + 1e-5)
    expected *= np.asarray(weight, np.float32)
    assert y.values.dtype == DTYPES[kind] and y.values.shape == x.shape
    check_narrow(y, expected.reshape(16, features), kind)


def check_narrow(found: Narrow, expected: np.ndarray, kind: Any) -> None:
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


def model(kind: Any, bias: bool) -> r2jax.Transformer:
    config = dataclasses.replace(CONFIG, num_layers=2, qkv_bias=bias)
    return random_model(config, jnp.bfloat16, quantize=kind, fused=True)


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


@pytest.mark.parametrize(("kind", "shift"), [("int8", False), ("fp8", True)])
def test_a_block_step_on_these_kernels(
    called: list[str], monkeypatch: pytest.MonkeyPatch, kind: Any, shift: bool
):
    """A refresh and a step of a whole model: as near to what wide weights give as XLA's products
    on the same 8-bit weights are. (Roundings differ, so the two are not closer to each other.)"""
    tokens = jnp.asarray(np.random.default_rng(4).integers(6, 128, (1, 80)))
    positions = jnp.broadcast_to(jnp.arange(80), tokens.shape)
    lengths = jnp.array([73])
    pick = (lambda x: jnp.concatenate([x[:, :1], x[:, :15]], axis=1)) if shift else None

    def step(network: r2jax.Transformer) -> np.ndarray:
        @jax.jit
        def run(network: r2jax.Transformer) -> Array:
            _, cache = network.hidden(tokens, positions, lengths)
            fed, at = tokens[:, 64:][:, ::-1], positions[:, 32:48]
            return network.hidden(fed, at, lengths, cache, jnp.asarray(32), wanted=pick)[0]

        return np.asarray(run(network), np.float32)

    ours = step(model(kind, shift))
    counts = {name: called.count(name) for name in set(called)}
    assert counts == {
        "block_attention": 2,
        "residual_norm": 4,
        "quantize_tokens": 4,  # in front of what attention and MLP project back
        "product": 6,
        "gated_mlp": 2,
    }
    monkeypatch.setattr(kernels, "available", lambda: False)
    theirs, wide = step(model(kind, shift)), step(model(None, shift))
    assert ours.shape == theirs.shape == wide.shape == (1, 16, 128)
    error, bound = (np.linalg.norm(y - wide) / np.linalg.norm(wide) for y in (ours, theirs))
    assert 0 < bound < {"int8": 0.1, "fp8": 0.4}[kind]
    assert error < 1.25 * bound


def test_what_they_are_not_for(called: list[str]):
    def run(
        rows: int = 1,
        dtype: Any = jnp.bfloat16,
        fused: bool = True,
        mesh: Any = None,
        wanted: int = 16,
        **changes: Any,
    ) -> list[str]:
        called.clear()
        config = dataclasses.replace(CONFIG, **{"num_layers": 1, **changes})
        network = nnx.eval_shape(
            lambda: r2jax.Transformer(
                config, dtype=dtype, fused=fused, quantize="int8", mesh=mesh, rngs=nnx.Rngs(0)
            )
        )
        tokens = jnp.zeros((rows, 16), jnp.int32)
        lengths = jnp.full(rows, 16)
        jax.eval_shape(
            lambda n: n.hidden(tokens, tokens, lengths, wanted=lambda x: x[:, :wanted]), network
        )
        return sorted(set(called))

    assert run() == ["gated_mlp", "product", "quantize_tokens", "residual_norm"]
    assert run(rows=3) == []  # 48 tokens: no power of two
    assert run(intermediate_size=192) == []
    assert run(hidden_size=192) == []
    assert run(dtype=jnp.float32) == []
    assert run(fused=False) == []  # laid out for training
    assert run(mesh=r2jax.make_mesh(data=1, tensor=1, devices=jax.devices()[:1])) == []
    # Where the last layer computes fewer tokens, it may be one that they are not for.
    run(num_layers=2, wanted=12)
    assert called.count("product") == 3 + 1  # q, k, v; not what follows
