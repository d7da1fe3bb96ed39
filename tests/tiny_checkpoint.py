"""A random LLaDA, or Dream, with a tokenizer, small enough for tests of all above the arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from r2jax.config import ModelConfig
from r2jax.hf import hf_names
from r2jax.model import Transformer
from r2jax.text import LLADA_CHAT_TEMPLATE

EOS, START, MASK = "<|endoftext|>", "<|startoftext|>", "<|mdm_mask|>"
SPECIAL = [EOS, START, MASK, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
# Dream's, after the words of vocab.json; its mask is not the last.
DREAM_SPECIAL = [EOS, "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>", "<|more|>"]
DREAM_WORDS = 290
TEXT = [
    "Anna has 3 apples and buys 4 more. How many apples does she have now?",
    "She has 3 + 4 = 7 apples.\n#### 7",
    "A box holds 12 eggs. How many eggs do 5 boxes hold?",
    "5 boxes hold 5 * 12 = 60 eggs.\n#### 60",
]
PROBLEMS = [
    {"question": TEXT[0], "answer": TEXT[1]},
    {"question": TEXT[2], "answer": TEXT[3]},
]


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def model_config(**changes: Any) -> ModelConfig:
    sizes: dict[str, Any] = dict(
        vocab_size=304,
        hidden_size=16,
        intermediate_size=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        max_sequence_length=256,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        mask_id=SPECIAL.index(MASK),
        eos_id=SPECIAL.index(EOS),
        pad_id=SPECIAL.index(EOS),
    )
    return ModelConfig(**{**sizes, **changes})


def write_tokenizer(directory: Path, *, template: bool = True) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save(str(directory / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START,
        "eos_token": EOS,
        "pad_token": EOS,
        "clean_up_tokenization_spaces": False,
    }
    if template:
        config["chat_template"] = LLADA_CHAT_TEMPLATE
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def write_dream_tokenizer(directory: Path, template: str | None = None) -> None:
    """As Dream-v0 has it: vocab.json and merges.txt, and its class is code that we do not run."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=DREAM_WORDS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.model.save(str(directory))
    options = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config: dict[str, Any] = {
        "add_bos_token": False,
        "added_tokens_decoder": {
            str(DREAM_WORDS + i): {"content": token, "special": True, **options}
            for i, token in enumerate(DREAM_SPECIAL)
        },
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "bos_token": "<|beginoftext|>",
        "eos_token": EOS,
        "mask_token": "<|mask|>",
        "pad_token": EOS,
        "tokenizer_class": "DreamTokenizer",
        "unk_token": None,
    }
    if template is not None:
        config["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def write_dream(directory: Path) -> Path:
    """A Dream as published: Hugging Face weights, Qwen's two tokenizer files, no template."""
    write_dream_tokenizer(directory)
    eos = DREAM_WORDS + DREAM_SPECIAL.index(EOS)
    config = model_config(
        model_type="Dream",
        num_kv_heads=1,
        qkv_bias=True,
        rope_full_precision=False,
        mask_id=DREAM_WORDS + DREAM_SPECIAL.index("<|mask|>"),
        eos_id=eos,
        pad_id=eos,
    )
    _write_model(directory, config)
    defaults = {"_from_model_config": True, "eos_token_id": eos, "alg": "origin", "steps": 512}
    (directory / "generation_config.json").write_text(json.dumps(defaults))
    return directory


def _write_model(directory: Path, config: ModelConfig) -> None:
    model = Transformer(config, dtype=jnp.dtype("bfloat16"), rngs=nnx.Rngs(0))
    flat = {
        ".".join(map(str, path)): param.get_value()
        for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }
    names = hf_names(config.model_type, flat)
    save_file(
        {names[name]: np.asarray(value, ml_dtypes.bfloat16) for name, value in flat.items()},
        str(directory / "model.safetensors"),
    )
    (directory / "config.json").write_text(json.dumps(config.to_hf(dtype="bfloat16")))


def write_checkpoint(directory: Path, **changes: Any) -> Path:
    """A Hugging Face directory with weights, tokenizer, generation defaults and problems."""
    write_tokenizer(directory)
    _write_model(directory, model_config(**changes))
    defaults = {"gen_length": 16, "block_length": 8, "eos_token_id": [0, 5], "temperature": 1.0}
    (directory / "generation_config.json").write_text(json.dumps(defaults))
    lines = [json.dumps(problem) for problem in PROBLEMS]
    (directory / "examples.jsonl").write_text("\n".join(lines) + "\n")
    return directory
