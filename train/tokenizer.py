"""`python -m train.tokenizer OUT`: a byte-level BPE with LLaDA's special tokens.

Trained on our problems. Any text round-trips; every digit is a token of its own, so that a model
sees places, not chunks. OUT gets tokenizer.json and tokenizer_config.json (chat template included),
readable by transformers.PreTrainedTokenizerFast and by r2jax without remote code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from r2jax.cli import Parser, run
from train.problems import problem
from train.wording import solution

VOCABULARY = 2048
START, END = "<|startoftext|>", "<|endoftext|>"
MASK = "<|mdm_mask|>"
HEADER, HEADER_END, TURN_END = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
SPECIAL = (START, END, "[CLS]", "[gMASK]", MASK, HEADER, HEADER_END, TURN_END)
"""LLaDA's special tokens; END is both end of text and padding."""

# LLaDA's template: the assistant's header follows whatever add_generation_prompt says.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}"
    "{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)

# GPT-2's word pattern with single digits, a space before one being part of it.
_WORDS = Regex(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def chat_prompt(question: str) -> str:
    """One user turn in LLaDA's chat template."""
    return (
        f"{START}{HEADER}user{HEADER_END}\n\n{question.strip()}{TURN_END}"
        f"{HEADER}assistant{HEADER_END}\n\n"
    )


def train_tokenizer(texts: Iterator[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """A byte-level BPE of at most `vocabulary` entries; the special tokens come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def sample_texts(rows: int, seed: int, others: list[tuple[str, str]]) -> Iterator[str]:
    """Questions and answers in about the corpus's proportions."""
    rng = Random(seed)
    for _ in range(rows):
        found = problem(rng)
        yield found.question
        yield solution(found, rng)
    for question, answer in others:
        yield question
        yield answer


def write(tokenizer: Tokenizer, directory: Path) -> None:
    """tokenizer.json and tokenizer_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "cls_token": "[CLS]",
        "mask_token": MASK,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(settings, indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(text)


def main() -> None:
    """The command line."""
    from train.gsm8k import read_gsm8k

    parser = Parser(prog="python -m train.tokenizer", description=__doc__)
    parser.add_argument("out", type=Path, help="directory for the two files")
    parser.add_argument("--rows", type=int, default=20_000, help="generated problems to read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gsm8k", type=Path, help="gsm8k train, jsonl or jsonl.gz (optional)")
    arguments = parser.parse_args()
    others = read_gsm8k(arguments.gsm8k) if arguments.gsm8k else []
    tokenizer = train_tokenizer(sample_texts(arguments.rows, arguments.seed, others[:2000]))
    write(tokenizer, arguments.out)
    print(f"{arguments.out}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    sys.exit(run("python -m train.tokenizer", main))
