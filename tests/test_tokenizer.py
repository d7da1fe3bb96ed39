"""The bundled model's tokenizer, and the program that trains such a one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from train.tokenizer import END, SPECIAL, chat_prompt, sample_texts, train_tokenizer, write

BUNDLED = Path(__file__).parents[1] / "r2jax" / "models" / "llada-gsm-6m"


@pytest.fixture(scope="module")
def bundled() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(BUNDLED)


def test_special_tokens_come_first_and_the_vocabulary_is_small(
    bundled: PreTrainedTokenizerFast,
) -> None:
    assert bundled.convert_tokens_to_ids(list(SPECIAL)) == list(range(len(SPECIAL)))
    assert len(bundled) <= 2048
    assert bundled.eos_token == bundled.pad_token == END


@pytest.mark.parametrize("generation_prompt", [False, True])
def test_chat_template_is_that_of_llada(
    bundled: PreTrainedTokenizerFast, *, generation_prompt: bool
) -> None:
    messages = [{"role": "user", "content": "  What is 2 + 3?\n"}]
    text = bundled.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=generation_prompt
    )
    assert text == chat_prompt("What is 2 + 3?")
    turns = [*messages, {"role": "assistant", "content": "5"}, {"role": "user", "content": "x"}]
    many = bundled.apply_chat_template(turns, tokenize=False)
    assert isinstance(many, str)
    assert many.count("<|startoftext|>") == 1
    assert many.endswith("x<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")


def test_every_digit_is_a_token(bundled: PreTrainedTokenizerFast) -> None:
    tokens = bundled.tokenize("12345 and 1,200.50")
    assert all(sum(character.isdigit() for character in token) <= 1 for token in tokens)


_TOKENIZER = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))


@given(st.text(max_size=60))
def test_any_text_comes_back(text: str) -> None:
    ids = _TOKENIZER.encode(text, add_special_tokens=False).ids
    assert _TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_training_is_reproducible_and_loads(tmp_path: Path) -> None:
    made = [train_tokenizer(sample_texts(50, 3, [("q 1", "a 2")]), 400) for _ in range(2)]
    assert made[0].to_str() == made[1].to_str()
    write(made[0], tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert loaded.decode(loaded.encode("The number is 12.")) == "The number is 12."
