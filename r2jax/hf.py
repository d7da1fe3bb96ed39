"""What Hugging Face's files of each family look like: one `Format` a `model_type`.

It says how a config.json spells our `ModelConfig` and how a checkpoint names its tensors; both are
read in both directions. A new model family starts with a new format here. Weights are stored in
Hugging Face's orientation, [out, in], so a name is all that differs: no tensor is transposed,
split or joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple


class Format(NamedTuple):
    """How one family writes its checkpoints."""

    architecture: str
    """The class that `architectures` names. Other classes share a model_type and are not this
    network: mixtures of experts, models without Dream's shift."""
    keys: Mapping[str, str]
    """Field of `ModelConfig` -> key of config.json."""
    same: Mapping[str, Any]
    """Fields of `ModelConfig` that are the same in every model of the family, and have no key."""
    fixed: Mapping[str, Any]
    """Switches of the original program that change what the network computes. Every published
    checkpoint has these values; anything else is refused rather than silently computed wrong."""
    absent: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    """What the original program takes for keys that are absent; None: there is nothing to take."""
    written: Callable[[Mapping[str, Any], str], Mapping[str, Any]]
    """Further keys of a config.json that we write, of those above and the dtype: what its readers
    expect, and we do not need."""
    tensors: Mapping[str, str]
    """Our parameter path -> Hugging Face's name; "{i}" is the layer."""


def _llada_absent(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The defaults of its configuration_llada.py."""
    width, ratio = config.get("d_model"), config.get("mlp_ratio", 4)
    return {
        "embedding_size": config.get("vocab_size"),
        "mlp_hidden_size": ratio * width if isinstance(width, int) else None,
        "n_kv_heads": 1 if config.get("multi_query_attention") else config.get("n_heads"),
        "pad_token_id": config.get("eos_token_id"),
        "rms_norm_eps": 1e-5,
        "rope_full_precision": True,
        "rope_theta": 10000.0,
    }


_LLADA = Format(
    architecture="LLaDAModelLM",
    keys={
        "vocab_size": "embedding_size",
        "hidden_size": "d_model",
        "intermediate_size": "mlp_hidden_size",
        "num_layers": "n_layers",
        "num_heads": "n_heads",
        "num_kv_heads": "n_kv_heads",
        "max_sequence_length": "max_sequence_length",
        "rope_theta": "rope_theta",
        "rope_full_precision": "rope_full_precision",
        "rms_norm_eps": "rms_norm_eps",
        "mask_id": "mask_token_id",
        "eos_id": "eos_token_id",
        "pad_id": "pad_token_id",
    },
    same={"qkv_bias": False},
    fixed={
        "activation_type": "silu",
        "alibi": False,
        "attention_layer_norm": False,
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "include_bias": False,
        "include_qkv_bias": False,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "rope": True,
        "scale_logits": False,
        "weight_tying": False,
    },
    absent=_llada_absent,
    written=lambda keys, dtype: {
        "attention_dropout": 0.0,
        "dtype": dtype,
        "embedding_dropout": 0.0,
        "init_fn": "normal",
        "init_std": 0.02,
        "residual_dropout": 0.0,
        "use_cache": False,
        "vocab_size": keys["embedding_size"],
    },
    tensors={
        "embed.weight": "model.transformer.wte.weight",
        "layers.{i}.attn_norm.weight": "model.transformer.blocks.{i}.attn_norm.weight",
        "layers.{i}.q_proj.weight": "model.transformer.blocks.{i}.q_proj.weight",
        "layers.{i}.k_proj.weight": "model.transformer.blocks.{i}.k_proj.weight",
        "layers.{i}.v_proj.weight": "model.transformer.blocks.{i}.v_proj.weight",
        "layers.{i}.o_proj.weight": "model.transformer.blocks.{i}.attn_out.weight",
        "layers.{i}.mlp_norm.weight": "model.transformer.blocks.{i}.ff_norm.weight",
        "layers.{i}.gate_proj.weight": "model.transformer.blocks.{i}.ff_proj.weight",
        "layers.{i}.up_proj.weight": "model.transformer.blocks.{i}.up_proj.weight",
        "layers.{i}.down_proj.weight": "model.transformer.blocks.{i}.ff_out.weight",
        "norm.weight": "model.transformer.ln_f.weight",
        "head.weight": "model.transformer.ff_out.weight",
    },
)


def _dream_absent(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Its configuration_dream.py has other defaults, but they are no published checkpoint's: a
    config.json that leaves a size out is damaged."""
    return {"pad_token_id": config.get("eos_token_id")}


_DREAM = Format(
    architecture="DreamModel",
    keys={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "max_sequence_length": "max_position_embeddings",
        "rope_theta": "rope_theta",
        "rms_norm_eps": "rms_norm_eps",
        "mask_id": "mask_token_id",
        "eos_id": "eos_token_id",
        "pad_id": "pad_token_id",
    },
    same={"qkv_bias": True, "rope_full_precision": False},
    fixed={
        "hidden_act": "silu",
        "rope_parameters": None,  # where newer programs write rope_theta and rope_scaling
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "use_mrope": False,
        "use_sliding_window": False,
    },
    absent=_dream_absent,
    written=lambda keys, dtype: {
        "attention_dropout": 0.0,
        "bos_token_id": keys["eos_token_id"],
        "initializer_range": 0.02,
        "torch_dtype": dtype,
        "use_cache": False,
    },
    tensors={
        "embed.weight": "model.embed_tokens.weight",
        "layers.{i}.attn_norm.weight": "model.layers.{i}.input_layernorm.weight",
        "layers.{i}.q_proj.weight": "model.layers.{i}.self_attn.q_proj.weight",
        "layers.{i}.q_proj.bias": "model.layers.{i}.self_attn.q_proj.bias",
        "layers.{i}.k_proj.weight": "model.layers.{i}.self_attn.k_proj.weight",
        "layers.{i}.k_proj.bias": "model.layers.{i}.self_attn.k_proj.bias",
        "layers.{i}.v_proj.weight": "model.layers.{i}.self_attn.v_proj.weight",
        "layers.{i}.v_proj.bias": "model.layers.{i}.self_attn.v_proj.bias",
        "layers.{i}.o_proj.weight": "model.layers.{i}.self_attn.o_proj.weight",
        "layers.{i}.mlp_norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
        "layers.{i}.gate_proj.weight": "model.layers.{i}.mlp.gate_proj.weight",
        "layers.{i}.up_proj.weight": "model.layers.{i}.mlp.up_proj.weight",
        "layers.{i}.down_proj.weight": "model.layers.{i}.mlp.down_proj.weight",
        "norm.weight": "model.norm.weight",
        "head.weight": "lm_head.weight",
    },
)

FORMATS: Mapping[str, Format] = {"llada": _LLADA, "Dream": _DREAM}
"""By `model_type`, spelled as config.json spells it."""

# Buffers, not parameters: old exports hold the rotary frequencies, which follow from rope_theta.
_BUFFERS = ("rotary_emb.inv_freq",)


def hf_names(model_type: str, parameters: Iterable[str]) -> dict[str, str]:
    """The Hugging Face name of each of our parameter paths (such as "layers.3.q_proj.weight").

    Raises:
      KeyError: a model_type without a format, or a parameter that it lacks.
    """
    table = FORMATS[model_type].tensors
    names = {}
    for ours in parameters:
        layer = next((part for part in ours.split(".") if part.isdigit()), "")
        template = ours.replace(f".{layer}.", ".{i}.") if layer else ours
        names[ours] = table[template].replace("{i}", layer)
    return names


def is_buffer(name: str) -> bool:
    """Whether a tensor is a derived buffer, which we compute and neither read nor write."""
    return name.endswith(_BUFFERS)
