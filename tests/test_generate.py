"""`generate` refuses what it cannot decode, by name and value, before anything is compiled."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import r2jax
from tests import golden_cases as golden

SHORT = r2jax.DecodeConfig(gen_length=32, block_length=16)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "prompts is empty: give at least one prompt"),
        ([[1], []], "prompt 1 is empty"),
        (None, "prompts must be lists of token ids, got None"),
        (7, "prompts must be lists of token ids, got 7"),
        (["text"], "for text use r2jax.generate_text"),
        ([[1.5]], "prompt 0 must be a flat list of token ids, got shape (1,), float64"),
        ([1, 2, 3], "prompt 0 must be a flat list of token ids, got shape ()"),
        ([[3, 256]], "prompt 0 holds token id 256, outside the vocabulary [0, 256)"),
        ([[-1]], "prompt 0 holds token id -1, outside"),
        ([[1, 255]], "prompt 0 holds the mask token (255)"),
        (
            [[1] * 481],
            "prompt 0 has 481 tokens; with gen_length 32 the model's max_sequence_length",
        ),
    ],
)
def test_prompts_that_are_refused(prompts, message: str):
    with pytest.raises(ValueError) as error:
        r2jax.generate(golden.model("tiny-a"), prompts, SHORT)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ({"temperature": 1.0}, None, "need `key`"),
        ({"token_cluster": "random"}, None, "need `key`"),
        ({"temperature": 1.0}, 0, "key must be a JAX random key"),
        ({"temperature": 1.0}, jax.random.split(jax.random.key(0), 3), "one key or one a row (1)"),
        ({"eos_id": 255}, None, "eos_id 255 must be a token of the vocabulary"),
        ({"gen_length": 512}, None, "gen_length 512 leaves no room for a prompt"),
    ],
)
def test_options_that_do_not_fit(options: dict, key, message: str):
    config = r2jax.DecodeConfig(**{"gen_length": 32, "block_length": 16, **options})
    with pytest.raises(ValueError) as error:
        r2jax.generate(golden.model("tiny-a"), [[1, 2]], config, key=key)
    assert message in str(error.value)


def test_the_longest_prompt_fits_and_arrays_are_welcome():
    prompts = [np.arange(480) % 255, np.array([3], np.uint16), (1, 2, 3)]
    out = r2jax.generate(golden.model("tiny-a"), prompts, SHORT)
    assert out.tokens.shape == (3, 32) and (np.asarray(out.nfe) >= 2).all()
