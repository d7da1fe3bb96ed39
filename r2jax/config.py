"""What a model is: sizes and special tokens, read from a Hugging Face config.json.

Frozen, hashable and validated when made: a wrong value is named here, before any array exists.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from r2jax.hf import FORMATS, Format


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and special tokens of a masked-diffusion transformer.

    One description serves every family: grouped-query attention, q/k/v bias and the rotary base are
    values, not classes. Read it from a checkpoint's config.json with `from_hf`.
    """

    model_type: str = "llada"
    """The family, as config.json spells it: "llada" or "Dream"."""
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
    rope_full_precision: bool = True
    """Rotate in float32 (LLaDA); False: in the model's dtype (Dream)."""
    rms_norm_eps: float
    qkv_bias: bool = False
    mask_id: int
    eos_id: int
    pad_id: int

    def __post_init__(self) -> None:
        if self.model_type not in FORMATS:
            raise ValueError(
                f"model_type must be one of {', '.join(FORMATS)}, got {self.model_type!r}"
            )
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
        for name in ("rope_full_precision", "qkv_bias"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
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
          ValueError: an unknown family or architecture, a missing key, or a switch of the original
            program that no published checkpoint uses and that would change the result (all named).
        """
        model_type = config.get("model_type")
        if not isinstance(model_type, str) or model_type not in FORMATS:
            raise ValueError(
                f"{source}: model_type is {model_type!r}; r2jax knows {', '.join(FORMATS)}"
            )
        try:
            return cls(model_type=model_type, **_fields(FORMATS[model_type], config))
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None

    def to_hf(self, dtype: str = "float32") -> dict[str, Any]:
        """A config.json for a model made here (a converted one keeps its own file as it was).

        Raises:
          ValueError: the family's config.json has no key for something this model has.
        """
        family = FORMATS[self.model_type]
        for name, value in family.same.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"a {self.model_type} config.json means {name} = {value}, and this model has "
                    f"{getattr(self, name)}"
                )
        if self.head_dim * self.num_heads != self.hidden_size:
            raise ValueError(
                f"a {self.model_type} config.json means head_dim = hidden_size / num_heads, and "
                f"this model has {self.head_dim}, not {self.hidden_size} / {self.num_heads}"
            )
        keys = {hf: getattr(self, ours) for ours, hf in family.keys.items()}
        return {
            **{key: value for key, value in family.fixed.items() if value is not None},
            **keys,
            **family.written(keys, dtype),
            "architectures": [family.architecture],
            "model_type": self.model_type,
        }


def _fields(family: Format, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ModelConfig` that a config.json of the family gives."""
    config = {key: value for key, value in config.items() if value is not None}
    wrong = [
        f"{key} is {config[key]!r} (only {want!r} is supported)"
        for key, want in {"architectures": [family.architecture], **family.fixed}.items()
        if key in config and config[key] != want
    ]
    if wrong:
        raise ValueError("; ".join(wrong))
    config = {**family.absent(config), **config}
    missing = [hf for hf in family.keys.values() if config.get(hf) is None]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}")
    width, heads = family.keys["hidden_size"], family.keys["num_heads"]
    for key in (width, heads):
        if not is_int(config[key]) or config[key] < 1:
            raise ValueError(f"{key} must be a positive integer, got {config[key]!r}")
    if config[width] % config[heads]:
        raise ValueError(
            f"{width} ({config[width]}) must be a multiple of {heads} ({config[heads]})"
        )
    return {
        **family.same,
        **{ours: config[hf] for ours, hf in family.keys.items()},
        "head_dim": config[width] // config[heads],
    }


def is_int(value: object) -> TypeGuard[int]:
    """Whether `value` is an integer and no boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a finite integer or float."""
    return is_int(value) or (isinstance(value, float) and math.isfinite(value))


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

DREAM_7B = ModelConfig(
    model_type="Dream",
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    max_sequence_length=131072,
    rope_theta=1000000.0,
    rope_full_precision=False,
    rms_norm_eps=1e-6,
    qkv_bias=True,
    mask_id=151666,
    eos_id=151643,
    pad_id=151643,
)
"""Dream-v0-7B (Base, Instruct): the body of Qwen2.5-7B."""
