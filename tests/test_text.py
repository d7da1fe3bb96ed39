"""Text level: tokenizers, the chat template, cutting at the end, refusals."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import r2jax
from r2jax import text
from tests import tiny_checkpoint as tiny

CONFIG = r2jax.DecodeConfig(gen_length=16, block_length=8)
EOS, MASK, EOT = 0, 2, 5
HEADER = (
    "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tokenizer(directory):
    return r2jax.load_tokenizer(directory)


@pytest.fixture(scope="module")
def model():
    """Large weights, so that predictions differ from position to position."""
    model = r2jax.Transformer(tiny.model_config(), rngs=nnx.Rngs(1))
    state = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda x: 30 * x if x.ndim == 2 else x, state))
    return model


def test_chat_template(tokenizer):
    (ids,) = text.encode(tokenizer, ["  How many eggs?\n"])
    assert tokenizer.decode(ids) == HEADER.format("How many eggs?")
    assert ids[0] == 1 and ids.count(EOT) == 1
    # LLaDA appends the assistant's header whether it is asked for or not, and knows every role.
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": " Yes "},
        {"role": "user", "content": "Eggs?"},
    ]
    shown = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
    assert shown == (
        "<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nEggs?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_template_of_the_checkpoint_wins(tmp_path):
    tiny.write_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}Q: {{ m['content'] }}{% endfor %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = r2jax.load_tokenizer(tmp_path)
    assert tokenizer.decode(text.encode(tokenizer, ["Eggs?"])[0]) == "Q: Eggs?"


def test_built_in_template(tmp_path):
    tiny.write_tokenizer(tmp_path, template=False)
    tokenizer = r2jax.load_tokenizer(tmp_path)
    assert tokenizer.decode(text.encode(tokenizer, ["Eggs?"])[0]) == HEADER.format("Eggs?")


def test_no_template(tmp_path):
    stored = json.loads(tiny.make_tokenizer().to_str().replace("header_id", "head"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    tokenizer = r2jax.load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"no chat template.*chat=False"):
        text.encode(tokenizer, ["Eggs?"])
    assert tokenizer.decode(text.encode(tokenizer, ["Eggs?"], chat=False)[0]) == "Eggs?"


def test_rows_are_those_of_generate(model, tokenizer):
    prompts = ["How many eggs?", "Anna has 3 apples and buys 4 more.\nHow many apples?"]
    out = r2jax.generate_text(model, tokenizer, prompts, CONFIG, trace=True)
    ids = text.encode(tokenizer, prompts)
    want = r2jax.generate(model, ids, CONFIG)
    np.testing.assert_array_equal(out.output.tokens, want.tokens)
    np.testing.assert_array_equal(out.nfe, want.nfe)
    np.testing.assert_array_equal(out.refreshes, want.refreshes)
    np.testing.assert_array_equal(out.counts.actual.total, want.counts.actual.total)
    assert out.prompt_lengths == [len(row) for row in ids]
    assert out.output.states is not None and want.states is None
    alone = r2jax.generate_text(model, tokenizer, prompts[1], CONFIG)
    assert alone.texts == out.texts[1:] and alone.tokens == out.tokens[1:]


def test_cut_at_first_end(model, tokenizer):
    (row,) = np.asarray(r2jax.generate_text(model, tokenizer, "Eggs?", CONFIG).output.tokens)
    end = int(row[5])
    first = row.tolist().index(end)
    out = r2jax.generate_text(
        model, tokenizer, "Eggs?", r2jax.DecodeConfig(gen_length=16, block_length=8, eos_id=end)
    )
    assert out.tokens == [row[:first].tolist()]
    assert out.texts == [tokenizer.decode(row[:first], skip_special_tokens=True)]
    assert text._cut([7, EOT, 8, EOS], {EOS, EOT}) == [7]
    assert text._cut([7, 8], {EOS, EOT}) == [7, 8]


@pytest.mark.parametrize(("chat", "ends"), [(True, (EOS, EOT)), (False, (EOS,))])
def test_stop_at_eos(model, tokenizer, monkeypatch, chat, ends):
    seen = []

    def generate(model, ids, config, **kwargs):
        seen.append(config)
        return r2jax.generate(model, ids, config, **kwargs)

    monkeypatch.setattr(text, "generate", generate)
    config = r2jax.DecodeConfig(gen_length=16, block_length=8, stop_at_eos=True)
    r2jax.generate_text(model, tokenizer, "Eggs?", config, chat=chat)
    static, _ = seen[0].split(model.config.eos_id)
    assert static.eos_ids == ends


def test_sampling_needs_a_key(model, tokenizer):
    config = r2jax.DecodeConfig(gen_length=16, block_length=8, temperature=1.0)
    with pytest.raises(ValueError, match="key"):
        r2jax.generate_text(model, tokenizer, "Eggs?", config)
    out = [
        r2jax.generate_text(model, tokenizer, "Eggs?", config, key=jax.random.key(seed)).tokens
        for seed in (0, 0, 1)
    ]
    assert out[0] == out[1] != out[2]


@pytest.mark.parametrize(
    ("prompts", "chat", "message"),
    [
        ("", True, "prompt 0 is empty"),
        (["Eggs?", " \n"], True, "prompt 1 is empty"),
        ("", False, "prompt 0 is empty"),
        ([], True, "prompts is empty"),
        ([[1, 2, 3]], True, "prompt 0 must be a string.*r2jax.generate"),
        ("a <|mdm_mask|> b", True, "mask token"),
        ("x " * 300, True, "leaves room for"),
    ],
)
def test_bad_prompts(model, tokenizer, prompts, chat, message):
    with pytest.raises(ValueError, match=message):
        r2jax.generate_text(model, tokenizer, prompts, CONFIG, chat=chat)


def test_wrong_tokenizer(tokenizer):
    model = r2jax.Transformer(tiny.model_config(vocab_size=100), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"ids up to 299.*vocabulary has 100"):
        r2jax.generate_text(model, tokenizer, "Eggs?", CONFIG)


def test_bad_tokenizer_files(tmp_path):
    with pytest.raises(r2jax.CheckpointError, match=r"no tokenizer\.json"):
        r2jax.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(r2jax.CheckpointError, match="the tokenizer cannot be read"):
        r2jax.load_tokenizer(tmp_path)


def test_no_code_of_the_checkpoint_runs(tmp_path):
    tiny.write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    remote = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | remote))
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    assert r2jax.load_tokenizer(tmp_path).decode([6]) is not None
    assert not marker.exists()


def test_generation_defaults(directory, tmp_path):
    defaults = r2jax.generation_defaults(directory)
    assert defaults == {"gen_length": 16, "block_length": 8, "eos_id": (EOS, EOT)}
    assert r2jax.generation_defaults(tmp_path) == {}
    path = tmp_path / "generation_config.json"
    path.write_text('{"eos_token_id": 7}')
    assert r2jax.generation_defaults(tmp_path) == {"eos_id": 7}
    for bad in ("[]", "{", '{"gen_length": "many"}', '{"gen_length": 33}'):
        path.write_text(bad)
        with pytest.raises(r2jax.CheckpointError, match=r"generation_config\.json: "):
            r2jax.generation_defaults(tmp_path)


def test_import_is_light():
    """Programs on token ids do not pay for transformers or matplotlib."""
    code = (
        "import sys, r2jax; print([m for m in ('transformers', 'matplotlib') if m in sys.modules])"
    )
    root = Path(r2jax.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_dtype_of_the_model_is_kept(directory, tokenizer):
    model = r2jax.load(directory)
    assert model.dtype == jnp.bfloat16
    out = r2jax.generate_text(model, tokenizer, ["Eggs?"], CONFIG)
    assert len(out.texts) == 1 and out.nfe[0] >= 2
