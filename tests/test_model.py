"""The transformer beyond what the goldens hold: grouped queries, biases, precision, its cache."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import r2jax
from r2jax.decode import decode
from r2jax.modules import Linear

GROUPED = r2jax.ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_sequence_length=128,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    qkv_bias=True,
    mask_id=5,  # not the last id
    eos_id=1,
    pad_id=1,
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(6, 64, (2, 12)))


def model(config: r2jax.ModelConfig = GROUPED, dtype=jnp.float32) -> r2jax.Transformer:
    """Random weights with everything that is zero at first, the biases, drawn too."""
    made = r2jax.Transformer(config, dtype=dtype, rngs=nnx.Rngs(0))
    for i, layer in enumerate(made.layers):
        for j, part in enumerate((layer.q_proj, layer.k_proj, layer.v_proj)):
            if part.bias is not None:
                key = jax.random.key(10 * i + j)
                part.bias.set_value(jax.random.normal(key, part.bias.shape, dtype))
    return made


def test_grouped_queries_are_shared_consecutive_heads():
    grouped = model()
    full = model(dataclasses.replace(GROUPED, num_kv_heads=4))
    nnx.update(full, nnx.state(grouped, lambda path, _: not {"k_proj", "v_proj"} & set(path)))
    for ours, theirs in zip(grouped.layers, full.layers, strict=True):
        for name in ("k_proj", "v_proj"):
            for leaf in ("weight", "bias"):
                value = getattr(getattr(ours, name), leaf)[...]
                heads = value.reshape(2, 8, *value.shape[1:])  # both kv heads, each for two queries
                repeated = jnp.repeat(heads, 2, axis=0).reshape(32, *value.shape[1:])
                getattr(getattr(theirs, name), leaf).set_value(repeated)
    np.testing.assert_allclose(full(TOKENS), grouped(TOKENS), rtol=1e-5, atol=1e-6)


def test_biases_are_added_where_the_config_says():
    linear = Linear(3, 2, ("mlp", "embed"), bias=True, std=1.0, dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert linear.bias is not None
    linear.bias.set_value(jnp.array([10.0, 20.0]))
    x = np.arange(6.0).reshape(2, 3)
    expected = x @ np.asarray(linear.weight[...]).T + [10, 20]
    np.testing.assert_allclose(linear(jnp.asarray(x, jnp.float32)), expected, rtol=1e-6)
    layer, plain = model().layers[0], model(dataclasses.replace(GROUPED, qkv_bias=False)).layers[0]
    assert all(p.bias is not None for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    assert all(p.bias is None for p in (layer.o_proj, layer.up_proj, plain.q_proj, plain.v_proj))


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_such_a_model_decodes_rows_as_it_does_alone(cache):
    config = r2jax.DecodeConfig(gen_length=16, block_length=8, cache=cache)
    prompts = [[7, 8, 9], [20] * 11]
    batch = r2jax.generate(model(), prompts, config)
    assert (np.asarray(batch.tokens) != GROUPED.mask_id).all()
    for i, prompt in enumerate(prompts):
        alone = r2jax.generate(model(), [prompt], config)
        np.testing.assert_array_equal(batch.tokens[i], alone.tokens[0])
        assert int(batch.nfe[i]) == int(alone.nfe[0])


def test_padding_changes_nothing():
    padded = jnp.pad(TOKENS, ((0, 0), (0, 5)), constant_values=33)
    logits = model()(padded, jnp.full((2,), 12))[:, :12]
    np.testing.assert_allclose(logits, model()(TOKENS), rtol=1e-5, atol=1e-6)


def test_float32_asks_for_full_precision_in_every_product():
    """Attention included: a GPU's default may be TF32, a TPU's bfloat16."""
    static, scalars = r2jax.DecodeConfig(gen_length=16, block_length=8).split(1)
    for dtype in (jnp.float32, jnp.bfloat16):
        text = decode.lower(model(dtype=dtype), TOKENS, jnp.full((2,), 12), static, scalars)
        products = [line for line in text.as_text().splitlines() if "dot_general" in line]
        assert len(products) >= 2 * (
            2 * 9 + 1
        )  # refresh and block step: nine a layer, and the head
        highest = ["HIGHEST, HIGHEST" in line for line in products]
        assert all(highest) if dtype == jnp.float32 else not any(highest)


def test_weights_that_were_cast_compute_in_their_dtype():
    """As training casts its float32 masters: no product falls back to the dtype of the making."""
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model())
    program = jax.make_jaxpr(lambda network, tokens: network(tokens))(half, TOKENS)
    found = [
        v.aval.dtype for e in program.eqns if e.primitive.name == "dot_general" for v in e.invars
    ]
    assert half(TOKENS).dtype == jnp.bfloat16
    assert found and set(found) == {jnp.dtype(jnp.bfloat16)}
