"""Dream's tokenizer and chats: Qwen's two files, ChatML, both ends of an answer."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import r2jax
from convert.__main__ import main as convert
from r2jax import text
from r2jax.__main__ import main
from r2jax.checkpoint import open_checkpoint
from tests import tiny_checkpoint as tiny

EOS, START, END, BEGIN, MASK = range(tiny.DREAM_WORDS, tiny.DREAM_WORDS + 5)
CONFIG = r2jax.DecodeConfig(gen_length=16, block_length=8)
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_dream(tmp_path_factory.mktemp("dream"))


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Any:
    return r2jax.load_tokenizer(directory)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_two_files_make_a_qwen_tokenizer(directory: Path, tokenizer: Any):
    words = json.loads((directory / "vocab.json").read_text())
    assert tokenizer("12 + 3")["input_ids"] == [words[c] for c in ("1", "2", "Ġ", "+", "Ġ", "3")]
    composed = tokenizer("caf\u00e9")["input_ids"]
    assert tokenizer("cafe\u0301")["input_ids"] == composed  # NFC
    for sample in (*tiny.TEXT, "It's 1,200.50\r\n  und 日本語 \t…"):
        assert tokenizer.decode(tokenizer(sample)["input_ids"]) == sample
    assert tokenizer("<|im_start|>a<|im_end|>")["input_ids"] == [START, words["a"], END]
    assert (tokenizer.bos_token_id, tokenizer.mask_token_id) == (BEGIN, MASK)
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == EOS
    assert tokenizer.decode([START, words["a"], END, EOS], skip_special_tokens=True) == "a"


def test_common_words_are_one_token(tokenizer: Any):
    """The merges are used, and no word is cut from its blank."""
    assert tokenizer.convert_ids_to_tokens(tokenizer("3 boxes")["input_ids"])[1].startswith("Ġ")
    assert len(tokenizer("apples apples")["input_ids"]) < len("apples apples")


def test_built_in_chatml(tokenizer: Any):
    (ids,) = text.encode(tokenizer, [" How many eggs?"])
    assert tokenizer.decode(ids) == CHAT.format(" How many eggs?")
    assert ids[0] == START and ids.count(START) == 3 and ids.count(END) == 2
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "Eggs?"},
    ]
    shown = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>user\nEggs?<|im_end|>\n"
    )
    assert tokenizer.apply_chat_template(turns, tokenize=False) == shown
    asked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert asked == shown + "<|im_start|>assistant\n"


@pytest.mark.parametrize("where", ["tokenizer_config.json", "chat_template.jinja"])
def test_the_checkpoints_template_wins(tmp_path: Path, where: str):
    template = "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}"
    inside = where == "tokenizer_config.json"
    tiny.write_dream_tokenizer(tmp_path, template if inside else None)
    if not inside:
        (tmp_path / where).write_text(template)
    tokenizer: Any = r2jax.load_tokenizer(tmp_path)
    assert tokenizer.decode(text.encode(tokenizer, ["Eggs?"])[0]) == "<|im_start|>Eggs?"


def test_a_tokenizer_json_is_read_where_there_is_one(directory: Path, tmp_path: Path):
    """As transformers writes it back; its ids are those of the two files."""
    two: Any = r2jax.load_tokenizer(directory)
    two.save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    one: Any = r2jax.load_tokenizer(tmp_path)
    for sample in (*tiny.TEXT, "cafe\u0301 <|im_start|>user\n1234<|im_end|>"):
        assert one(sample)["input_ids"] == two(sample)["input_ids"]
    assert text.encode(one, ["Eggs?"]) == text.encode(two, ["Eggs?"])


def test_a_damaged_tokenizer_is_named(tmp_path: Path):
    tiny.write_dream_tokenizer(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    words = json.loads((tmp_path / "vocab.json").read_text())
    edit(tmp_path / "vocab.json", more=len(words))  # the added tokens move up by one
    with pytest.raises(r2jax.CheckpointError, match=r"<\|endoftext\|> is token 290 in .* as 291"):
        r2jax.load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(r2jax.CheckpointError, match=r"no tokenizer\.json and no merges\.txt"):
        r2jax.load_tokenizer(tmp_path)
    edit(config, tokenizer_class="GPT2Tokenizer")
    with pytest.raises(r2jax.CheckpointError, match="tokenizer_class is 'GPT2Tokenizer'"):
        r2jax.load_tokenizer(tmp_path)
    config.unlink()
    with pytest.raises(r2jax.CheckpointError, match="tokenizer_class is None"):
        r2jax.load_tokenizer(tmp_path)


def test_its_code_is_not_run(tmp_path: Path):
    tiny.write_dream_tokenizer(tmp_path)
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w')\nclass DreamTokenizer: pass\n"
    (tmp_path / "tokenization_dream.py").write_text(code)
    assert len(r2jax.load_tokenizer(tmp_path)) == MASK + 2
    assert not marker.exists()


@pytest.mark.parametrize(("chat", "ends"), [(True, (EOS, END)), (False, (EOS,))])
def test_an_answer_stops_at_eos_and_a_chat_at_the_turns_end(
    directory: Path, tokenizer: Any, chat: bool, ends: tuple[int, ...]
):
    """Even with the published generation_config.json, which names the EOS alone."""
    model = open_checkpoint(directory).config
    defaults = r2jax.generation_defaults(directory)
    config = r2jax.DecodeConfig(stop_at_eos=True, **defaults)
    config, cut = text.with_ends(config, tokenizer, model, chat=chat)
    assert config.split(model.eos_id)[0].eos_ids == ends
    assert cut == {EOS, END}


def test_generate_text(directory: Path, tokenizer: Any):
    model = r2jax.load(directory)
    prompts = ["How many eggs?", "Anna has 3 apples and buys 4 more.\nHow many apples?"]
    out = r2jax.generate_text(model, tokenizer, prompts, CONFIG)
    ids = text.encode(tokenizer, prompts)
    tokens = r2jax.generate(model, ids, CONFIG).tokens
    want, cut = text.decode_answers(tokenizer, np.asarray(tokens), {EOS, END})
    assert (out.texts, out.tokens) == (want, cut)
    assert out.prompt_lengths == [len(row) for row in ids]
    with pytest.raises(ValueError, match="mask token"):
        r2jax.generate_text(model, tokenizer, "a <|mask|> b", CONFIG)


def test_the_command_line(
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """From the published layout and from the converted one: the tokenizer's files go along."""
    assert convert(["from-hf", str(directory), str(tmp_path / "converted")]) == 0
    assert convert(["verify", str(directory), str(tmp_path / "converted"), "--text", "2 eggs"]) == 0
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO())
    answers = []
    for source in (directory, tmp_path / "converted"):
        options = ["--json", "--gen-length", "16", "--block-length", "8", "--stop-at-eos"]
        status = main(["generate", "--checkpoint", str(source), *options, "Eggs?"])
        out, err = capsys.readouterr()
        assert status == 0, err
        answers.append(json.loads(out))
    tokenizer: Any = r2jax.load_tokenizer(directory)
    model = r2jax.load(directory)
    config = r2jax.DecodeConfig(gen_length=16, block_length=8, stop_at_eos=True)
    want = r2jax.generate_text(model, tokenizer, "Eggs?", config)
    for answer in answers:
        assert (answer["text"], answer["tokens"]) == (want.texts[0], want.tokens[0])
        assert answer["prompt_length"] == len(text.encode(tokenizer, ["Eggs?"])[0])
