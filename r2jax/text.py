"""Text in, text out: tokenizers without remote code, chat templates, `generate_text`.

transformers is imported when a tokenizer is loaded, not with r2jax: it costs a second or two that
programs working on token ids should not pay.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from r2jax.checkpoint import resolve
from r2jax.config import ModelConfig
from r2jax.decode import DecodeOutput
from r2jax.decode_config import DecodeConfig
from r2jax.denoise import Counts
from r2jax.generate import generate
from r2jax.model import Transformer
from r2jax.safetensors_files import read_json
from r2jax.tensors import CheckpointError
from r2jax.trace import Trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# LLaDA-8B-Instruct's template, for tokenizers that come without one. The content alone is trimmed,
# and the assistant's header follows whether or not a generation prompt is asked for. It
# stands in an expression because Jinja drops a newline that ends a template.
LLADA_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first %}<|startoftext|>{% endif %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
# ChatML as Qwen2.5 and Dream-v0-Instruct use it: nothing is trimmed, and a chat that opens without
# a system turn gets one.
CHATML_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Chat(NamedTuple):
    """A way to write chats down, recognised by the tokens that it needs."""

    template: str
    tokens: tuple[str, ...]
    end_of_turn: str


CHATS = (
    Chat(
        LLADA_CHAT_TEMPLATE,
        ("<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
    ),
    Chat(CHATML_TEMPLATE, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
)

# Tokenizers that come as vocab.json and merges.txt, by their class in tokenizer_config.json: both
# are byte-level BPE with Qwen2's way of cutting words, and Dream's own class is remote code.
_QWEN_CLASSES = ("DreamTokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextOutput:
    """What `generate_text` returns: lists and arrays with one entry a prompt."""

    texts: list[str]
    """Answers, cut before the first end token, special tokens left out."""
    tokens: list[list[int]]
    """The same answers as token ids."""
    nfe: Int[np.ndarray, " B"]
    """Forwards that the row needed."""
    refreshes: Int[np.ndarray, " B"]
    """How many of them were full passes."""
    counts: Counts
    """Redundancy: `.actual` and `.potential`, each with `.confidence`, `.token`, `.temporal` and
    their sum `.total` (R_total), [B]."""
    prompt_lengths: list[int]
    """Tokens of each prompt, the chat template included."""
    output: DecodeOutput
    """The raw result of `r2jax.generate`; with `trace`, what every forward found too."""


def load_tokenizer(source: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint, read from tokenizer.json and tokenizer_config.json, or, as
    Dream has it, from Qwen's vocab.json and merges.txt.

    No code of the checkpoint is run. A tokenizer without a chat template, but with the special
    tokens of LLaDA's or of ChatML, gets that one, so that `tokenizer.apply_chat_template` works.

    Args:
      source: as for `r2jax.load`: a directory, the name of a bundled model, or a hub id.

    Raises:
      CheckpointError: not found, no tokenizer that is read without its code, or a damaged one.
    """
    directory = resolve(source, weights=False)
    whole = (directory / "tokenizer.json").is_file()
    added = {} if whole else _added_to_qwen(directory)
    name = "PreTrainedTokenizerFast" if whole else "Qwen2TokenizerFast"
    try:
        tokenizer = _tokenizer_class(name).from_pretrained(directory, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise CheckpointError(f"{directory}: the tokenizer cannot be read: {error}") from error
    vocabulary = tokenizer.get_vocab()
    for token, index in added.items():  # the library counts on from vocab.json's last
        if vocabulary.get(token) != index:
            raise CheckpointError(
                f"{directory}: {token} is token {index} in tokenizer_config.json, but follows "
                f"vocab.json as {vocabulary.get(token)}"
            )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _template(tokenizer)
    return tokenizer


def _added_to_qwen(directory: Path) -> dict[str, int]:
    """The tokens that tokenizer_config.json adds to a Qwen tokenizer's two files, with their ids.

    Raises:
      CheckpointError: it is no such tokenizer.
    """
    config = directory / "tokenizer_config.json"
    stored = read_json(config) if config.is_file() else {}
    name = stored.get("tokenizer_class")
    if name not in _QWEN_CLASSES:
        raise CheckpointError(
            f"{directory} has no tokenizer.json, and its tokenizer_class is {name!r}: without that "
            f"file only {', '.join(_QWEN_CLASSES)} are read (others need code that is not run)"
        )
    absent = [n for n in ("vocab.json", "merges.txt") if not (directory / n).is_file()]
    if absent:
        raise CheckpointError(f"{directory} has no tokenizer.json and no {', '.join(absent)}")
    added = stored.get("added_tokens_decoder", {})
    return {token["content"]: int(index) for index, token in added.items()}


def _tokenizer_class(name: str) -> type[PreTrainedTokenizerFast]:
    """A class of transformers."""
    with no_advice():
        import transformers
    return getattr(transformers, name)


@contextlib.contextmanager
def no_advice() -> Iterator[None]:
    """Import transformers without its notice that PyTorch, which tokenizers do not need, is
    missing."""
    switch = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before


def generation_defaults(source: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint's generation_config.json says, as arguments of `DecodeConfig`.

    Read are `gen_length`, `block_length` and Hugging Face's `eos_token_id` (an id or a list, as
    `eos_id`, unless it is config.json's, which is the default); other keys belong to other
    samplers. Without the file: nothing.

    Example: `DecodeConfig.r2(**generation_defaults("llada-gsm-6m"))`.

    Raises:
      CheckpointError: the checkpoint is not found, or the file is not as described.
    """
    directory = resolve(source, weights=False)
    path = directory / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError("it must be a JSON object")
        defaults = {key: stored[key] for key in ("gen_length", "block_length") if key in stored}
        eos = stored.get("eos_token_id")
        if eos not in (None, _eos_id(directory)):
            defaults["eos_id"] = tuple(eos) if isinstance(eos, list) else eos
        DecodeConfig(**defaults)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return defaults


def _eos_id(directory: Path) -> int | None:
    """What config.json calls the end of a text."""
    path = directory / "config.json"
    return read_json(path).get("eos_token_id") if path.is_file() else None


def generate_text(
    model: Transformer,
    tokenizer: PreTrainedTokenizerFast,
    prompts: str | Sequence[str],
    config: DecodeConfig | None = None,
    *,
    chat: bool = True,
    key: jax.Array | None = None,
    trace: bool = False,
) -> TextOutput:
    """Answer a batch of prompts.

    Args:
      model: from `r2jax.load`.
      tokenizer: from `r2jax.load_tokenizer`, or any fast tokenizer of transformers.
      prompts: one prompt or several, of any lengths.
      config: default R²-dLLM (`DecodeConfig()`). Where it stops at EOS without naming an `eos_id`,
        the model's EOS ends a row, and for chats the end of the turn too.
      chat: put each prompt into the chat template as the user's turn. False: the prompt as it is.
      key: a JAX random key, needed for temperature > 0 and random choices.
      trace: record in `.output` what every forward found, predicted and committed.

    Returns:
      `TextOutput`. Row i is what prompt i alone would give (in bfloat16 up to near-ties).

    Raises:
      ValueError: an empty prompt, a tokenizer that is not this model's or has no chat template, and
        whatever `r2jax.generate` refuses.
    """
    config = DecodeConfig() if config is None else config
    check_tokenizer(tokenizer, model.config)
    ids = encode(tokenizer, [prompts] if isinstance(prompts, str) else prompts, chat=chat)
    config, ends = with_ends(config, tokenizer, model.config, chat=chat)
    output = generate(model, ids, config, key=key, trace=trace)
    host = jax.device_get(output._replace(**dict.fromkeys(Trace._fields)))
    texts, tokens = decode_answers(tokenizer, host.tokens, ends)
    return TextOutput(
        texts=texts,
        tokens=tokens,
        nfe=host.nfe,
        refreshes=host.refreshes,
        counts=host.counts,
        prompt_lengths=[len(row) for row in ids],
        output=output,
    )


def with_ends(
    config: DecodeConfig, tokenizer: PreTrainedTokenizerFast, model: ModelConfig, *, chat: bool
) -> tuple[DecodeConfig, frozenset[int]]:
    """The configuration with the EOS that a text's end means, and all ids that end an answer."""
    vocabulary = tokenizer.get_vocab()
    turns = tuple(vocabulary[c.end_of_turn] for c in CHATS if c.end_of_turn in vocabulary)
    ends = {model.eos_id, *turns, *(config.eos_ids or ())}
    if config.stop_at_eos and config.eos_id is None and chat and turns:
        config = dataclasses.replace(config, eos_id=(model.eos_id, *turns))
    return config, frozenset(ends)


def decode_answers(
    tokenizer: PreTrainedTokenizerFast, tokens: Int[np.ndarray, "B G"], ends: Container[int]
) -> tuple[list[str], list[list[int]]]:
    """Texts and token ids of answers, cut before the first of `ends`."""
    cut = [_cut(row.tolist(), ends) for row in tokens]
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in cut], cut


def encode(
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    chat: bool = True,
    names: Sequence[str] | None = None,
) -> list[list[int]]:
    """Token ids of each prompt; arguments and errors are those of `generate_text`.

    `names` says what an error calls each prompt; default "prompt 0", "prompt 1", ...
    """
    for i, prompt in enumerate(prompts):
        name = names[i] if names else f"prompt {i}"
        if not isinstance(prompt, str):
            raise ValueError(
                f"{name} must be a string, got {type(prompt).__name__}; for token ids use "
                "r2jax.generate"
            )
        # The chat template trims, so blanks would ask nothing; as plain text they are tokens.
        if not (prompt.strip() if chat else prompt):
            raise ValueError(f"{name} is empty: there is nothing to answer")
    untyped: Any = tokenizer  # transformers' own types allow every form of result
    if not chat:
        return [untyped(prompt)["input_ids"] for prompt in prompts]
    template = None if tokenizer.chat_template else _template(tokenizer)
    if template is None and not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template, and its vocabulary lacks the tokens of LLaDA's "
            "and of ChatML; pass chat=False (command line: --raw) to continue plain text"
        )
    return [
        untyped.apply_chat_template(
            [{"role": "user", "content": prompt}],
            chat_template=template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        for prompt in prompts
    ]


def check_tokenizer(tokenizer: PreTrainedTokenizerFast, model: ModelConfig) -> None:
    """Refuse, with a ValueError, a tokenizer with ids that the model does not have."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= model.vocab_size:
        raise ValueError(
            f"the tokenizer has token ids up to {largest}, but the model's vocabulary has "
            f"{model.vocab_size}: use the tokenizer that belongs to the checkpoint"
        )


def _template(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """The built-in chat template whose tokens the vocabulary has."""
    vocabulary = tokenizer.get_vocab()
    return next((c.template for c in CHATS if all(t in vocabulary for t in c.tokens)), None)


def _cut(tokens: list[int], ends: Container[int]) -> list[int]:
    """The tokens before the first end token."""
    return tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]
