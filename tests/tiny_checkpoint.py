"""A random LLaDA with a tokenizer, small enough for tests of everything above the arrays."""

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


def write_checkpoint(directory: Path, **changes: Any) -> Path:
    """A Hugging Face directory with weights, tokenizer, generation defaults and problems."""
    write_tokenizer(directory)
    config = model_config(**changes)
    model = Transformer(config, dtype=jnp.dtype("bfloat16"), rngs=nnx.Rngs(0))
    flat = {
        ".".join(map(str, path)): param.get_value()
        for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }
    names = hf_names("llada", flat)
    save_file(
        {names[name]: np.asarray(value, ml_dtypes.bfloat16) for name, value in flat.items()},
        str(directory / "model.safetensors"),
    )
    (directory / "config.json").write_text(json.dumps(config.to_hf(dtype="bfloat16")))
    defaults = {"gen_length": 16, "block_length": 8, "eos_token_id": [0, 5], "temperature": 1.0}
    (directory / "generation_config.json").write_text(json.dumps(defaults))
    lines = [json.dumps(problem) for problem in PROBLEMS]
    (directory / "examples.jsonl").write_text("\n".join(lines) + "\n")
    return directory
