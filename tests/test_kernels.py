"""The kernels for block steps, interpreted on the CPU, against what XLA runs elsewhere."""

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
from r2jax import kernels, model, narrow
from r2jax.attention import attend, rotary
from r2jax.cache import LayerCache
from r2jax.sharding import named_sharding, param_shardings
from r2jax.weights import for_decoding

pytestmark = pytest.mark.skipif(kernels.plt is None, reason="this JAX has no Triton backend")

COLUMNS = 200  # no multiple of what a program takes
LENGTHS = (200, 90, 133)
BF16 = 2.0**-7  # a step of the last bit of numbers below 2
CONFIG = r2jax.ModelConfig(
    vocab_size=128,
    hidden_size=128,
    intermediate_size=256,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=64,
    max_sequence_length=512,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    mask_id=5,
    eos_id=1,
    pad_id=1,
)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    run = functools.partial(pallas.pallas_call, interpret=True)
    monkeypatch.setattr(kernels.pl, "pallas_call", run)


@pytest.fixture
def as_on_nvidia(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The choices that are made on an NVIDIA GPU; returns which kernels were called."""
    called: list[str] = []

    def noted(module: Any, name: str) -> None:
        kernel = getattr(module, name)

        def run(*args: Any, **options: Any) -> Any:
            called.append(name)
            return kernel(*args, **options)

        monkeypatch.setattr(module, name, run)

    noted(kernels, "block_attention")
    noted(narrow, "gated_mlp")
    monkeypatch.setattr(kernels, "available", lambda: True)
    return called


def random(seed: int, *shape: int, dtype: Any = jnp.bfloat16) -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def block(
    length: int = 16, h: int = 64, dtype: Any = jnp.bfloat16, queries: int = 1
) -> tuple[Array, LayerCache]:
    """Queries, keys and values of a block [3, length, 2 key heads, queries + 2, h], and a full
    cache."""
    shape = (3, COLUMNS, 2, h)
    cache = LayerCache(random(1, *shape, dtype=dtype), random(2, *shape, dtype=dtype))
    return random(0, 3, length, 2, queries + 2, h, dtype=dtype), cache


def rope(length: int, start: int, h: int = 64) -> tuple[Array, Array]:
    return rotary(jnp.broadcast_to(start + jnp.arange(length), (3, length)), h, 1e4)


@pytest.mark.parametrize(
    ("start", "length", "h", "queries", "options"),
    [
        (0, 16, 64, 1, {}),
        (16, 16, 64, 1, {"PROGRAMS": 1}),  # a head's keys are one piece
        (74, 16, 64, 1, {"PROGRAMS": 18}),  # three pieces; the last ends beyond the columns
        (64, 16, 64, 1, {"PROGRAMS": 18, "KEYS": 16}),
        (32, 32, 128, 1, {}),
        (26, 64, 64, 1, {"PROGRAMS": 12}),  # up to the shortest row's end
        (32, 32, 128, 7, {}),  # Dream's: seven queries share a key
        (74, 16, 64, 2, {"PROGRAMS": 36}),
    ],
)
def test_block_attention(
    interpreted: None,
    monkeypatch: pytest.MonkeyPatch,
    start: int,
    length: int,
    h: int,
    queries: int,
    options: dict[str, int],
):
    for name, value in options.items():
        monkeypatch.setattr(kernels, name, value)
    qkv, cache = block(length, h, queries=queries)
    lengths = jnp.array(LENGTHS)
    no_turn = (jnp.ones((3, length, h)), jnp.zeros((3, length, h)))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (qkv, cache))
    expected, _ = attend(wide[0], no_turn, lengths, wide[1], start, 0, None)

    # A fresh function: jit would keep the program of other pieces.
    run = jax.jit(functools.partial(kernels.block_attention))
    y, k, v = run(qkv, *no_turn, cache.k, cache.v, jnp.asarray(start), lengths)
    assert y.dtype == jnp.bfloat16 and y.shape == (3, length, 2 * queries, h)
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=BF16)
    for new, old, part in ((k, cache.k, -2), (v, cache.v, -1)):
        written = np.array(old)
        written[:, start : start + length] = np.asarray(qkv[:, :, :, part])
        np.testing.assert_array_equal(np.asarray(new), written)


@pytest.mark.parametrize(
    ("dtype", "queries"), [(jnp.bfloat16, 1), (jnp.float16, 1), (jnp.bfloat16, 7)]
)
def test_attend_with_the_kernel_is_attend_without(
    as_on_nvidia: list[str], dtype: Any, queries: int
):
    """The rotary embedding around it too."""
    qkv, cache = block(dtype=dtype, queries=queries)
    lengths, turn = jnp.array(LENGTHS), rope(16, 48)
    y, new = attend(qkv, turn, lengths, cache, jnp.asarray(48), 0, None)
    assert as_on_nvidia == ["block_attention"]
    # An array as `keep` goes past the kernel.
    expected, written = attend(qkv, turn, lengths, cache, jnp.asarray(48), jnp.asarray(0), None)
    assert as_on_nvidia == ["block_attention"]
    for found, old in zip(new, written, strict=True):  # a sum may be rounded once instead of twice
        found, old = (x.astype(jnp.float32) for x in (found, old))
        np.testing.assert_allclose(found, old, rtol=BF16, atol=1e-5)
    np.testing.assert_allclose(
        y.astype(jnp.float32), expected.astype(jnp.float32), atol=2 * BF16, rtol=BF16
    )


def test_what_the_attention_kernel_is_not_for(as_on_nvidia: list[str]):
    qkv, cache = block()
    lengths = jnp.array(LENGTHS)
    attend(qkv, rope(16, 0), None, cache, 0, 0, None)
    attend(qkv, rope(16, 0), lengths[:3] * 0 + 16, None, 0, 0, None)  # a full pass
    attend(qkv[:, :8], rope(8, 0), lengths, cache, 0, 0, None)
    narrow_heads = jax.tree.map(lambda x: x[..., :32], (qkv, cache))
    attend(narrow_heads[0], rope(16, 0, 32), lengths, narrow_heads[1], 0, 0, None)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (qkv, cache))
    attend(wide[0], rope(16, 0), lengths, wide[1], 0, 0, None)
    assert as_on_nvidia == []


def layer(dtype: Any = jnp.bfloat16, **changes: Any) -> model.Layer:
    config = dataclasses.replace(CONFIG, num_layers=1, **changes)
    made = r2jax.Transformer(config, dtype=dtype, fused=True, rngs=nnx.Rngs(0))
    first = made.layers[0]
    weight = first.gate_up_proj.weight
    weight.set_value((weight[...] * 6).astype(dtype))  # products of about 1
    return first


@pytest.mark.parametrize(("rows", "length"), [(1, 16), (2, 16), (1, 64)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gated_mlp_is_the_plain_layer(
    as_on_nvidia: list[str], monkeypatch: pytest.MonkeyPatch, rows: int, length: int, dtype: Any
):
    mlp, y = layer(dtype), random(3, rows, length, 128, dtype=dtype)
    ours = mlp._gated(y)
    assert as_on_nvidia == ["gated_mlp"]
    monkeypatch.setattr(kernels, "available", lambda: False)
    plain = mlp._gated(y)
    assert as_on_nvidia == ["gated_mlp"]
    assert ours.shape == plain.shape == (rows, length, 256) and ours.dtype == plain.dtype
    ours, plain = np.asarray(ours, np.float32), np.asarray(plain, np.float32)
    assert plain.std() > 0.1
    np.testing.assert_allclose(ours, plain, rtol=3 * BF16, atol=BF16 / 8)


def test_what_the_mlp_kernel_is_not_for(as_on_nvidia: list[str]):
    layer()._gated(random(3, 3, 16, 128))  # 48 tokens: no power of two
    layer()._gated(random(3, 2, 64, 128))  # too many
    layer(jnp.float32)._gated(random(3, 1, 16, 128, dtype=jnp.float32))
    layer(intermediate_size=192)._gated(random(3, 1, 16, 128))
    layer(hidden_size=96)._gated(random(3, 1, 16, 96))
    assert as_on_nvidia == []


@pytest.mark.parametrize("mesh", [{}, {"tensor": 2}, {"data": 2}], ids=str)
def test_a_block_step_with_kernels_is_one_without(
    as_on_nvidia: list[str], monkeypatch: pytest.MonkeyPatch, mesh: dict[str, int]
):
    """The whole model with its cache: on one device, and each device on its part."""
    plain = for_decoding(r2jax.Transformer(CONFIG, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    tokens = jnp.asarray(np.random.default_rng(4).integers(6, 128, (2, 80)))
    positions = jnp.broadcast_to(jnp.arange(80), tokens.shape)
    lengths = jnp.array([80, 61])
    network = plain
    if mesh:
        places = r2jax.make_mesh(**mesh, devices=jax.devices()[:2])
        shape = nnx.eval_shape(
            lambda: r2jax.Transformer(
                CONFIG, dtype=jnp.bfloat16, fused=True, mesh=places, rngs=nnx.Rngs(0)
            )
        )
        state = jax.device_put(nnx.state(plain), param_shardings(nnx.state(plain), places))
        network = nnx.merge(nnx.graphdef(shape), state)
        row = named_sharding(places, ("batch",))
        tokens, positions, lengths = jax.device_put((tokens, positions, lengths), row)

    @jax.jit
    def step(network: r2jax.Transformer, start: Array) -> tuple[Array, Any]:
        _, cache = network.hidden(tokens, positions, lengths)
        fed = jax.lax.dynamic_slice_in_dim(tokens[:, ::-1], 0, 16, axis=1)
        at = jax.lax.dynamic_slice_in_dim(positions, start, 16, axis=1)
        hidden, cache = network.hidden(fed, at, lengths, cache, start)
        return network.logits(hidden), cache

    found = step(network, jnp.asarray(32))
    assert set(as_on_nvidia) == {"block_attention", "gated_mlp"}
    assert as_on_nvidia.count("block_attention") == CONFIG.num_layers
    as_on_nvidia.clear()
    jax.clear_caches()
    monkeypatch.setattr(kernels, "available", lambda: False)
    expected = step(plain, jnp.asarray(32))
    assert as_on_nvidia == []
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
        np.testing.assert_allclose(ours, theirs, atol=6 * BF16 * theirs.std())
