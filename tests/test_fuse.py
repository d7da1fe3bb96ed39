"""Fused weights: the same numbers in another order, and the same model with them."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import r2jax
from r2jax.fuse import fuse, parts_of, separate
from r2jax.sharding import param_shardings
from r2jax.weights import apart, for_decoding
from tests import golden_cases as golden
from tests.test_model import GROUPED, TOKENS
from tests.test_model import model as grouped_model

PROMPTS = [[7, 8, 9], [20] * 11]
DECODE = r2jax.DecodeConfig(gen_length=32, block_length=8)


def parameters(rows: dict[str, int], width: tuple[int, ...]) -> dict[str, jax.Array]:
    """Every number differs."""
    start = 0
    out = {}
    for name, count in rows.items():
        size = count * int(np.prod(width))
        out[name] = jnp.arange(start, start + size, dtype=jnp.float32).reshape(count, *width)
        start += size
    return out


@pytest.mark.parametrize("leaf", ["weight", "bias", "scale"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_separate_is_the_inverse_of_fuse(leaf: str, kv_heads: int):
    config = dataclasses.replace(GROUPED, num_kv_heads=kv_heads)
    width = (5,) if leaf == "weight" else ()
    for fused, rows in (
        (f"layers.1.qkv_proj.{leaf}", (32, 8 * kv_heads, 8 * kv_heads)),
        (f"layers.1.gate_up_proj.{leaf}", (48, 48)),
        (f"layers.1.o_proj.{leaf}", (32,)),
    ):
        parts = parameters(dict(zip(parts_of(fused), rows, strict=True)), width)
        whole = fuse(fused, list(parts.values()), config)
        assert whole.shape == (sum(rows), *width)
        back = separate(fused, whole, config)
        assert list(back) == list(parts)
        for name, part in parts.items():
            np.testing.assert_array_equal(back[name], part)
        on_host = separate(fused, np.asarray(whole), config)
        assert all(isinstance(part, np.ndarray) for part in on_host.values())


def test_a_device_gets_whole_heads():
    """Rows of q, k, v by key head, gate and up alternating: an even split needs nobody else's."""
    names = ("layers.0.q_proj.bias", "layers.0.k_proj.bias", "layers.0.v_proj.bias")
    q, k, v = parameters(dict(zip(names, (32, 16, 16), strict=True)), ()).values()
    first, second = jnp.split(fuse("layers.0.qkv_proj.bias", [q, k, v], GROUPED), 2)
    np.testing.assert_array_equal(first, jnp.concatenate([q[:16], k[:8], v[:8]]))
    np.testing.assert_array_equal(second, jnp.concatenate([q[16:], k[8:], v[8:]]))
    gate, up = jnp.arange(48), 100 + jnp.arange(48)
    quarter = jnp.split(fuse("layers.0.gate_up_proj.bias", [gate, up], GROUPED), 4)[1]
    np.testing.assert_array_equal(quarter, jnp.stack([gate[12:24], up[12:24]], 1).ravel())


@functools.cache
def pair(name: str) -> tuple[r2jax.Transformer, r2jax.Transformer]:
    """A model with its weights apart and fused, in float32."""
    if name == "grouped, biased":
        model = grouped_model()
    else:
        model = r2jax.load(name, "float32", fused=False)
    return model, for_decoding(model)


MODELS = ("llada-gsm-6m", "grouped, biased")


@pytest.mark.parametrize("name", MODELS)
def test_a_fused_model_predicts_and_decodes_as_the_separate_one(name: str):
    model, fused = pair(name)
    assert not hasattr(model.layers[0], "qkv_proj") and not hasattr(fused.layers[0], "q_proj")
    np.testing.assert_allclose(fused(TOKENS), model(TOKENS), rtol=1e-4, atol=1e-4)
    theirs, ours = (r2jax.generate(m, PROMPTS, DECODE) for m in (model, fused))
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_array_equal(ours.nfe, theirs.nfe)
    jax.tree.map(np.testing.assert_array_equal, ours.counts, theirs.counts)


def test_fusing_copies_and_every_part_comes_back():
    model, fused = pair("grouped, biased")
    before, after = apart(model), apart(fused)
    assert set(before) == set(after) and "layers.1.k_proj.bias" in before
    for name, tensor in before.items():
        assert (tensor.shape, tensor.dtype) == (after[name].shape, after[name].dtype)
        assert tensor.read().tobytes() == after[name].read().tobytes(), name


@pytest.mark.parametrize(("name", "tensor"), [("llada-gsm-6m", 4), ("grouped, biased", 2)])
def test_on_several_devices_as_on_one(name: str, tensor: int):
    _, fused = pair(name)
    mesh = r2jax.make_mesh(tensor=tensor, devices=jax.devices()[:tensor])
    graph, state = nnx.split(fused)
    sharded = nnx.merge(graph, jax.device_put(state, param_shardings(state, mesh)))
    weight = sharded.layers[0].qkv_proj.weight[...]
    rows, width = weight.shape
    assert {s.data.shape for s in weight.addressable_shards} == {(rows // tensor, width)}
    ours, theirs = (r2jax.generate(m, PROMPTS, DECODE) for m in (sharded, fused))
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_array_equal(ours.nfe, theirs.nfe)


@pytest.mark.parametrize("case", ["tiny-a/r2/P17-G128-B32", "stream-a/stream-w8/P17-G128-B32"])
def test_goldens_through_a_fused_model(case: str, monkeypatch: pytest.MonkeyPatch):
    """On a CPU `load` leaves the weights apart; GPUs run this."""
    name = case.split("/")[0]
    fused = r2jax.load(golden.folder(name), fused=True)
    assert hasattr(fused.layers[0], "gate_up_proj")
    monkeypatch.setattr(golden, "model", lambda _: fused)
    (found,) = [c for c in golden.cases(name) if c["id"] == case]
    assert golden.run(name, [found]) == []
