"""What a model is: sizes and special tokens, read from a Hugging Face config.json.

Frozen, hashable and validated when made: a wrong value is named here, before any array exists.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeGuard


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and special tokens of a masked-diffusion transformer.

    One description serves every family: grouped-query attention, q/k/v bias and the rotary base are
    values, not classes. Read it from a checkpoint's config.json with `from_hf`.
    """

    model_type: str = "llada"
    vocab_size: int
    """Rows of the embedding and of the language-model head (Hugging Face's `embedding_size`)."""
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_sequence_length: int
    rope_theta: float
    rms_norm_eps: float
    qkv_bias: bool = False
    mask_id: int
    eos_id: int
    pad_id: int

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "max_sequence_length",
        ):
            value = getattr(self, name)
            if not is_int(value) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        for name in ("mask_id", "eos_id", "pad_id"):
            value = getattr(self, name)
            if not is_int(value) or not 0 <= value < self.vocab_size:
                raise ValueError(
                    f"{name} must be a token id in [0, {self.vocab_size}), got {value!r}"
                )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads "
                f"({self.num_kv_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embeddings, got {self.head_dim}")
        for name in ("rope_theta", "rms_norm_eps"):
            value = getattr(self, name)
            if not is_number(value) or not value > 0:
                raise ValueError(f"{name} must be a positive number, got {value!r}")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
        """The configuration that a Hugging Face config.json describes.

        Args:
          config: the parsed JSON object.
          source: the file's name, for messages.

        Raises:
          ValueError: an unknown architecture, a missing key, or a switch of the original program
            that no published checkpoint uses and that would change the result (all named).
        """
        model_type = config.get("model_type")
        if not isinstance(model_type, str) or model_type not in _FROM_HF:
            raise ValueError(
                f"{source}: model_type is {model_type!r}; r2jax knows {', '.join(_FROM_HF)}"
            )
        try:
            return cls(**_FROM_HF[model_type](config, source))
        except ValueError as error:
            message = str(error)
            raise ValueError(
                message if message.startswith(source) else f"{source}: {message}"
            ) from None

    def to_hf(self, dtype: str = "float32") -> dict[str, Any]:
        """A LLaDA config.json for a model made here (a converted one keeps its own file as it
        was)."""
        if self.qkv_bias or self.head_dim * self.num_heads != self.hidden_size:
            raise ValueError("a LLaDA config.json has no q/k/v bias and head_dim = hidden / heads")
        return {
            **_LLADA_FIXED,
            **{hf: getattr(self, ours) for ours, hf in _LLADA_KEYS.items()},
            "architectures": ["LLaDAModelLM"],
            "attention_dropout": 0.0,
            "dtype": dtype,
            "embedding_dropout": 0.0,
            "init_fn": "normal",
            "init_std": 0.02,
            "model_type": "llada",
            "residual_dropout": 0.0,
            "rope_theta": self.rope_theta,
            "use_cache": False,
            "vocab_size": self.vocab_size,
        }


def is_int(value: object) -> TypeGuard[int]:
    """Whether `value` is an integer and no boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a finite integer or float."""
    return is_int(value) or (isinstance(value, float) and math.isfinite(value))


_LLADA_KEYS = {
    "vocab_size": "embedding_size",
    "hidden_size": "d_model",
    "intermediate_size": "mlp_hidden_size",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "num_kv_heads": "n_kv_heads",
    "max_sequence_length": "max_sequence_length",
    "rms_norm_eps": "rms_norm_eps",
    "mask_id": "mask_token_id",
    "eos_id": "eos_token_id",
    "pad_id": "pad_token_id",
}
# Switches of the original LLaDA program that change what the network computes. Every published
# checkpoint has these values; anything else is refused rather than silently computed wrong.
_LLADA_FIXED = {
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
    "rope_full_precision": True,
    "scale_logits": False,
    "weight_tying": False,
}
# What the original class assumes when a key is absent (its configuration_llada.py).
_LLADA_DEFAULTS = {"rms_norm_eps": 1e-5, "rope_theta": 10000.0}


def _llada(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    config = {**_LLADA_DEFAULTS, **{key: v for key, v in config.items() if v is not None}}
    wrong = [
        f"{key} is {config[key]!r} (only {want!r} is supported)"
        for key, want in _LLADA_FIXED.items()
        if key in config and config[key] != want
    ]
    if wrong:
        raise ValueError(f"{source}: {'; '.join(wrong)}")
    if config.get("n_kv_heads") is None:
        config["n_kv_heads"] = 1 if config.get("multi_query_attention") else config.get("n_heads")
    if config.get("embedding_size") is None:
        config["embedding_size"] = config.get("vocab_size")
    if config.get("mlp_hidden_size") is None and "d_model" in config:
        config["mlp_hidden_size"] = config.get("mlp_ratio", 4) * config["d_model"]
    if config.get("pad_token_id") is None:
        config["pad_token_id"] = config.get("eos_token_id")
    missing = [hf for hf in _LLADA_KEYS.values() if config.get(hf) is None]
    if missing:
        raise ValueError(f"{source}: missing {', '.join(missing)}")
    for key in ("d_model", "n_heads"):
        if not is_int(config[key]) or config[key] < 1:
            raise ValueError(f"{source}: {key} must be a positive integer, got {config[key]!r}")
    if config["d_model"] % config["n_heads"]:
        raise ValueError(
            f"{source}: d_model ({config['d_model']}) must be a multiple of n_heads "
            f"({config['n_heads']})"
        )
    return {
        "model_type": "llada",
        **{ours: config[hf] for ours, hf in _LLADA_KEYS.items()},
        "head_dim": config["d_model"] // config["n_heads"],
        "rope_theta": config["rope_theta"],
    }


_FROM_HF = {"llada": _llada}

LLADA_8B = ModelConfig(
    vocab_size=126464,
    hidden_size=4096,
    intermediate_size=12288,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    max_sequence_length=4096,
    rope_theta=500000.0,
    rms_norm_eps=1e-5,
    mask_id=126336,
    eos_id=126081,
    pad_id=126081,
)
"""LLaDA-8B (Base, Instruct) and LLaDA-1.5, for programs that need the sizes and not the weights."""
