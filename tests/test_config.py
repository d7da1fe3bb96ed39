"""Configurations: what they read, and that a wrong value is named before anything starts."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from r2jax import DecodeConfig, ModelConfig
from r2jax.config import DREAM_7B, LLADA_8B
from tests import golden_cases as golden

TINY = json.loads((golden.ROOT / "tiny-a" / "config.json").read_text())
DREAM = json.loads((golden.ROOT.parent / "dream" / "dream-b" / "config.json").read_text())


def test_a_config_survives_the_round_trip():
    config = ModelConfig.from_hf(TINY)
    assert (config.num_layers, config.head_dim, config.mask_id) == (2, 16, 255)
    assert ModelConfig.from_hf(config.to_hf()) == config
    assert ModelConfig.from_hf(LLADA_8B.to_hf("bfloat16")) == LLADA_8B
    config = ModelConfig.from_hf(DREAM)
    assert (config.num_layers, config.num_kv_heads, config.mask_id, config.eos_id) == (
        3,
        2,
        150,
        151,
    )
    assert config.qkv_bias and not config.rope_full_precision
    assert ModelConfig.from_hf(config.to_hf()) == config
    assert ModelConfig.from_hf(DREAM_7B.to_hf("bfloat16")) == DREAM_7B


def test_the_published_dream_config():
    """config.json of Dream-v0-Instruct-7B, as far as it says anything."""
    published = {
        "architectures": ["DreamModel"],
        "attention_dropout": 0.0,
        "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "mask_token_id": 151666,
        "max_position_embeddings": 131072,
        "max_window_layers": 28,
        "model_type": "Dream",
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "pad_token_id": 151643,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 152064,
    }
    assert ModelConfig.from_hf(published) == DREAM_7B


def test_other_sizes_vocabularies_and_special_ids_are_the_configs_own():
    """LLaDA-1.5 and Dream's variants need no code: whatever their config.json says."""
    newer = {**LLADA_8B.to_hf("bfloat16"), "mask_token_id": 5, "n_kv_heads": 8, "n_layers": 40}
    config = ModelConfig.from_hf(newer)
    assert config == dataclasses.replace(LLADA_8B, mask_id=5, num_kv_heads=8, num_layers=40)
    assert ModelConfig.from_hf({**TINY, "rope_full_precision": False}).rope_full_precision is False
    other = {
        **DREAM,
        "vocab_size": 999,
        "mask_token_id": 5,
        "eos_token_id": 7,
        "pad_token_id": None,
        "num_key_value_heads": 1,
        "hidden_size": 96,
    }
    config = ModelConfig.from_hf(other)
    assert (config.vocab_size, config.mask_id, config.eos_id, config.pad_id) == (999, 5, 7, 7)
    assert (config.num_kv_heads, config.head_dim) == (1, 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling is {'rope_type': 'yarn'} (only No"),
        ({"rope_parameters": {"rope_theta": 1e6}}, "rope_parameters is {'rope_theta': 1000000.0}"),
        ({"use_sliding_window": True}, "use_sliding_window is True (only False is supported)"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True (only False is supported)"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu' (only 'silu' is supported)"),
        ({"use_mrope": True}, "use_mrope is True"),
        ({"architectures": ["DreamForCausalLM"]}, "architectures is ['DreamForCausalLM'] (only"),
        ({"mask_token_id": 320}, "mask_id must be a token id in [0, 320), got 320"),
        ({"hidden_size": 66}, "hidden_size (66) must be a multiple of num_attention_heads (4)"),
        ({"num_attention_heads": "4"}, "num_attention_heads must be a positive integer, got '4'"),
        # The original class has defaults for these, but of no published checkpoint.
        (
            {"rope_theta": None, "num_key_value_heads": None, "mask_token_id": None},
            "missing num_key_value_heads, rope_theta, mask_token_id",
        ),
    ],
)
def test_a_wrong_dream_config_names_file_field_and_value(change: dict, message: str):
    with pytest.raises(ValueError) as error:
        ModelConfig.from_hf({**DREAM, **change}, "there/config.json")
    assert str(error.value).startswith("there/config.json: ") and message in str(error.value)


def test_a_model_that_its_familys_config_cannot_describe_is_refused():
    for config, message in (
        (dataclasses.replace(DREAM_7B, qkv_bias=False), "means qkv_bias = True"),
        (dataclasses.replace(DREAM_7B, rope_full_precision=True), "rope_full_precision = False"),
        (dataclasses.replace(LLADA_8B, qkv_bias=True), "a llada config.json means qkv_bias = Fa"),
        (dataclasses.replace(LLADA_8B, head_dim=64), "means head_dim = hidden_size / num_heads"),
    ):
        with pytest.raises(ValueError, match=message):
            config.to_hf()
    with pytest.raises(ValueError, match="model_type must be one of llada, Dream, got 'dream'"):
        dataclasses.replace(DREAM_7B, model_type="dream")


def test_absent_keys_take_the_original_programs_defaults():
    absent = ("rms_norm_eps", "rope_theta", "n_kv_heads", "embedding_size", "pad_token_id")
    config = ModelConfig.from_hf({k: v for k, v in TINY.items() if k not in absent})
    assert (config.rms_norm_eps, config.rope_theta, config.num_kv_heads) == (1e-5, 10000.0, 4)
    assert (config.vocab_size, config.pad_id) == (256, 0)
    nulls = ModelConfig.from_hf({**TINY, **dict.fromkeys(absent)})
    assert nulls == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; r2jax knows llada, Dream"),
        ({"architectures": ["LLaDAMoEModelLM"]}, "architectures is ['LLaDAMoEModelLM'] (only"),
        ({"rope_full_precision": "no"}, "rope_full_precision must be true or false, got 'no'"),
        ({"model_type": ["llada"]}, "model_type is"),
        ({"d_model": "x"}, "d_model must be a positive integer, got 'x'"),
        ({"d_model": 62}, "d_model (62) must be a multiple of n_heads (4)"),
        ({"n_heads": 0}, "n_heads must be a positive integer, got 0"),
        ({"n_kv_heads": 3}, "num_heads (4) must be a multiple of num_kv_heads (3)"),
        ({"mask_token_id": 256}, "mask_id must be a token id in [0, 256), got 256"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a positive number, got '1e-5'"),
        ({"rope_theta": 0}, "rope_theta must be a positive number, got 0"),
        ({"alibi": True, "weight_tying": True}, "alibi is True (only False is supported); weight"),
        ({"n_layers": None, "mask_token_id": None}, "missing n_layers, mask_token_id"),
    ],
)
def test_a_wrong_config_names_file_field_and_value(change: dict, message: str):
    with pytest.raises(ValueError) as error:
        ModelConfig.from_hf({**TINY, **change}, "there/config.json")
    assert str(error.value).startswith("there/config.json: ") and message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gen_length": 100}, "gen_length must be a multiple of block_length, got 100 and 32"),
        ({"gen_length": 0}, "gen_length must be an integer of at least 1, got 0"),
        ({"steps": 100}, "must be a multiple of its 8 blocks (gen_length / block_length), got 100"),
        ({"cache": "both"}, "cache must be one of 'none', 'prefix', 'dual', got 'both'"),
        ({"token_cluster": "max"}, "token_cluster must be one of"),
        ({"temporal_eval": "mean"}, "temporal_eval must be one of"),
        ({"threshold": 1.5}, "threshold must be a number between 0 and 1, got 1.5"),
        ({"threshold": "0.9"}, "threshold must be a number between 0 and 1, got '0.9'"),
        ({"temperature": float("inf")}, "temperature must be a number at least 0, got inf"),
        ({"temperature": 1e39}, "temperature must be a number at least 0, got 1e+39"),
        ({"temperature": None}, "temperature must be a number (0 is greedy), got None"),
        ({"top_p": 0.0}, "top_p must be in (0, 1], got 0"),
        ({"temporal_steps": True}, "temporal_steps must be an integer of at least 1 or None"),
        ({"window_size": -1}, "window_size must be an integer of at least 0 or None, got -1"),
        ({"confidence_alpha": 1.5}, "confidence_alpha must be a number between 0 and 1, got 1.5"),
        ({"confidence_alpha": None}, "confidence_alpha must be a number (0 leaves the threshold"),
        ({"confidence_alpha": 0.3, "cache": "none"}, "moves the threshold of block calls, and"),
        ({"leap_radius": 0}, "leap_radius must be an integer of at least 1 or None, got 0"),
        ({"leap_radius": 4, "factor": 1.0}, "needs a threshold and factor=None; got threshold=0.9"),
        ({"leap_radius": 4, "threshold": None}, "needs a threshold and factor=None"),
        ({"leap_radius": 4, "threshold": 0.7}, "must be at most threshold (0.7), got 0.75"),
        ({"leap_threshold": None}, "leap_threshold must be a number (leap_radius=None switches"),
        ({"eos_id": ()}, "eos_id must be a token id or a tuple of them, got ()"),
        ({"eos_id": -1}, "eos_id must be a token id or a tuple of them, got -1"),
    ],
)
def test_a_wrong_option_is_named(options: dict, message: str):
    with pytest.raises(ValueError) as error:
        DecodeConfig(**options)
    assert message in str(error.value)


def test_presets_and_precedence():
    def static(config: DecodeConfig):
        return config.split(0)[0]

    assert DecodeConfig.r2() == DecodeConfig()
    assert DecodeConfig.fast_dllm(threshold=0.8) == DecodeConfig(threshold=0.8, apply_rules=False)
    vanilla = DecodeConfig.vanilla(gen_length=64)
    assert (static(vanilla).cache, static(vanilla).transfer) == ("none", "schedule")
    assert vanilla.split(0)[1].steps_per_block == 32
    streaming = DecodeConfig.streaming(window_size=96)
    assert (streaming.cache, streaming.window_size, streaming.confidence_alpha) == (
        "prefix",
        96,
        0.3,
    )
    assert streaming.stop_at_eos and streaming.threshold == 0.9 and not streaming.apply_rules
    assert DecodeConfig.streaming(apply_rules=True).apply_rules
    leap = DecodeConfig.local_leap()
    assert leap == DecodeConfig.fast_dllm(leap_radius=4, leap_threshold=0.75)
    assert static(leap).leap and not static(streaming).leap
    assert static(DecodeConfig(factor=1.0)).transfer == "factor"
    assert static(DecodeConfig(threshold=None)).transfer == "schedule"


def test_none_switches_rules_off_one_by_one():
    def rules(**options):
        static = DecodeConfig(**options).split(0)[0]
        return static.confidence_cluster_size, static.token_cluster, static.temporal

    assert rules() == (3, "confidence", True)
    assert rules(spatial_threshold=None) == (None, None, True)
    assert rules(confidence_cluster_size=None) == (None, "confidence", True)
    assert rules(confidence_cluster_size=33) == (None, "confidence", True)  # longer than a block
    assert rules(token_cluster=None) == (3, None, True)
    assert rules(temporal_steps=None) == rules(temporal_threshold=None) == (3, "confidence", False)


def test_only_what_shapes_the_program_is_static():
    a = DecodeConfig().split(0)
    b = DecodeConfig(threshold=0.5, temporal_threshold=0.1, steps=64, token_cluster_size=4).split(0)
    assert a[0] == b[0] and hash(a[0]) == hash(b[0]) and a[1] != b[1]
    assert DecodeConfig(cache="prefix").split(0)[0] != a[0]
    b = DecodeConfig(confidence_alpha=0.5, leap_threshold=0.1).split(0)
    assert a[0] == b[0] and a[1] != b[1]
    near = [DecodeConfig(leap_radius=radius).split(0) for radius in (1, 2)]
    assert near[0][0] == near[1][0] != a[0] and near[0][1] != near[1][1]
    # A window that never prunes is none: block 32, suffix 223, last position = 256.
    assert DecodeConfig(window_size=223).split(0)[0] == a[0]
    assert DecodeConfig(window_size=222).split(0)[0].window_size == 222
    assert DecodeConfig(stop_at_eos=True).split(7)[0].eos_ids == (7,)
    assert DecodeConfig(stop_at_eos=True, eos_id=(1, 2)).split(7)[0].eos_ids == (1, 2)


def test_scalars_of_numpy_and_jax_are_plain_numbers():
    options: dict[str, Any] = {
        "threshold": np.float32(0.5),
        "spatial_threshold": jnp.float32(0.25),
        "gen_length": np.int64(64),
    }
    config = DecodeConfig(**options)
    assert config == DecodeConfig(threshold=0.5, spatial_threshold=0.25, gen_length=64)
    assert hash(config) == hash(dataclasses.replace(config))
    json.dumps(dataclasses.asdict(config))
