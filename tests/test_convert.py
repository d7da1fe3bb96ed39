"""The conversion programs: bytes kept both ways, nothing half-written, verify."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from convert.__main__ import main
from convert.verify import compare, verify
from r2jax import atomic, safetensors_files
from r2jax.checkpoint import CheckpointError, load, open_checkpoint
from r2jax.quantize import DTYPES, Quantization
from tests.test_checkpoint import GOLDEN, copy_of, rewrite


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint with every kind of file that may stand beside the weights."""
    directory = copy_of(GOLDEN / "tiny-b", tmp_path / "source")
    words = {"[UNK]": 0, "one": 1, "two": 2}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_bytes(b'{ "odd":   "spacing" }\r\n')
    (directory / "chat_template.jinja").write_bytes(b"{{ messages }}")
    (directory / "pytorch_model.bin").write_bytes(b"a pickle beside safetensors is left alone")
    return directory


def digests(directory: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in directory.iterdir()
        if file.is_file()
    }


def test_there_and_back_keeps_every_byte(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    converted, back = source.with_name("converted"), source.with_name("back")
    assert main(["from-hf", str(source), str(converted)]) == 0
    assert "30 tensors, 829,184 bytes" in capsys.readouterr().out
    assert main(["to-hf", str(converted), str(back), "--max-shard-size", "200KB"]) == 0
    before, middle, after = digests(source), digests(converted), digests(back)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert before[name] == middle[name] == after[name]
    assert "pytorch_model.bin" not in middle | after
    index = json.loads((back / "model.safetensors.index.json").read_bytes())
    tensors = {}
    for file in back.glob("*.safetensors"):
        tensors |= load_file(file)
        assert file.stat().st_size < 200_000 + 10_000
    assert {name: back / file for name, file in index["weight_map"].items()}.keys() == set(tensors)
    assert index["metadata"]["total_size"] == 829_184
    stored = load_file(source / "model.safetensors")
    assert tensors.keys() == stored.keys()
    assert all(tensors[name].tobytes() == stored[name].tobytes() for name in stored)


def test_bfloat16_and_mixed_files_keep_their_bytes(source: Path) -> None:
    stored = load_file(source / "model.safetensors")
    for i, name in enumerate(sorted(stored)):
        kinds = (np.float32, np.float16, safetensors_files.DTYPES["BF16"])
        stored[name] = stored[name].astype(kinds[i % 3])
    stored["model.transformer.ln_f.weight"][:2] = (np.nan, -0.0)
    save_file(stored, source / "model.safetensors")
    assert main(["from-hf", str(source), str(source.with_name("converted"))]) == 0
    assert main(["to-hf", str(source.with_name("converted")), str(source.with_name("back"))]) == 0
    back = load_file(source.with_name("back") / "model.safetensors")
    for name in stored:
        assert back[name].dtype == stored[name].dtype
        assert back[name].tobytes() == stored[name].tobytes()


def test_an_existing_directory_is_kept_unless_forced(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = source.with_name("target")
    target.mkdir()
    (target / "precious").write_text("do not touch")
    call = ["from-hf", str(source), str(target)]
    assert main(call) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*call, "--force"]) == 2
    assert "is not a checkpoint (no config.json)" in capsys.readouterr().err
    assert [file.name for file in target.iterdir()] == ["precious"]
    (target / "config.json").write_text("an older checkpoint")
    assert main([*call, "--force"]) == 0
    assert not (target / "precious").exists()
    assert main(["to-hf", str(target), str(target), "--force"]) == 0
    assert digests(target)["model.safetensors"] == digests(source)["model.safetensors"]
    assert {entry.name for entry in source.parent.iterdir()} == {"source", "target"}


@pytest.mark.parametrize("failure", ["space", "full", "words"])
@pytest.mark.parametrize("command", ["from-hf", "to-hf"])
def test_a_full_disk_is_one_error_and_leaves_nothing(
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failure: str,
    command: str,
) -> None:
    if command == "to-hf":
        assert main(["from-hf", str(source), str(source.with_name("converted"))]) == 0
        source = source.with_name("converted")
    before = {entry.name for entry in source.parent.iterdir()}

    def full(*_: Any) -> None:
        if failure == "words":  # as tensorstore says it
            raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device")
        raise OSError(errno.ENOSPC, "No space left on device")

    if failure == "space":
        usage = type("Usage", (), {"free": 1234})
        monkeypatch.setattr(atomic.shutil, "disk_usage", lambda path: usage)
    else:
        monkeypatch.setattr("r2jax.orbax_files.write_tensors", full)
        monkeypatch.setattr("r2jax.safetensors_files.write_tensors", full)
    assert main([command, str(source), str(source.with_name("target"))]) == 2
    message = capsys.readouterr().err
    assert message.startswith("python -m convert: error: ") and message.count("\n") == 1
    assert ("but only 1,234 are free" if failure == "space" else "is full") in message
    assert {entry.name for entry in source.parent.iterdir()} == before


def test_an_error_while_reading_leaves_nothing(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def damaged(path: Path, name: str) -> np.ndarray:
        raise CheckpointError(f"{path} is truncated")

    monkeypatch.setattr(safetensors_files, "_read", damaged)
    assert main(["from-hf", str(source), str(source.with_name("target"))]) == 2
    assert "is truncated" in capsys.readouterr().err
    assert [entry.name for entry in source.parent.iterdir()] == ["source"]


def test_each_command_wants_its_own_layout(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["to-hf", str(source), str(source.with_name("target"))]) == 2
    assert "is a Hugging Face checkpoint already" in capsys.readouterr().err
    assert not source.with_name("target").exists()


def test_buffers_that_are_left_out_are_named(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(source, model__blocks__0__rotary_emb__inv_freq=np.zeros(8, np.float32))
    assert main(["from-hf", str(source), str(source.with_name("target"))]) == 0
    assert "left out model.blocks.0.rotary_emb.inv_freq" in capsys.readouterr().err


def test_verify_finds_a_difference(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = copy_of(source, source.with_name("other"))
    assert main(["verify", str(source), str(other), "--text", "one two one"]) == 0
    assert "3 positions in float32: max |d logit| 0," in capsys.readouterr().out
    head = load_file(source / "model.safetensors")["model.transformer.ff_out.weight"]
    rewrite(other, model__transformer__ff_out__weight=head + np.float32(1e-3))
    result = verify(str(source), str(other))
    assert result.positions == 128 and result.max_difference > 1e-4
    assert main(["verify", str(source), str(other), "--tolerance", "1e-6"]) == 1
    assert main(["verify", str(source), str(other), "--tolerance", "1"]) == 0


def test_verify_refuses_what_cannot_be_compared(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(source), str(GOLDEN / "tiny-a")]) == 2
    assert "vocabulary of 512" in capsys.readouterr().err
    assert main(["verify", str(GOLDEN / "tiny-b"), str(source), "--text", "x"]) == 2
    assert "no tokenizer.json" in capsys.readouterr().err
    assert main(["verify", str(source), str(source), "--text", " "]) == 2
    assert "no token" in capsys.readouterr().err


def test_a_nan_is_beyond_any_tolerance(source: Path) -> None:
    norm = np.full(64, np.nan, np.float32)
    rewrite(source, model__transformer__ln_f__weight=norm)
    assert main(["verify", str(source), str(source), "--tolerance", "1e9"]) == 1


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_a_quantised_checkpoint(
    source: Path, kind: Quantization, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fewer bytes, its files kept; `verify` says what it costs; no way back."""
    target = source.with_name("narrow")
    assert main(["from-hf", str(source), str(target), "--quantize", kind]) == 0
    assert "51 tensors, 412,928 bytes" in capsys.readouterr().out
    found = open_checkpoint(target)
    assert found.quantized == kind and load(target).layers[0].o_proj.weight.dtype == DTYPES[kind]
    kept, narrow = (
        {n: t for n, t in c.tensors.items() if n in ("embed.weight", "norm.weight", "head.weight")}
        for c in (open_checkpoint(source), found)
    )
    assert all(narrow[name].read().tobytes() == t.read().tobytes() for name, t in kept.items())
    before, after = digests(source), digests(target)
    assert all(after[name] == before[name] for name in ("config.json", "tokenizer.json"))

    assert main(["verify", str(source), str(target)]) == 0
    said = capsys.readouterr().out
    assert f"(B is in {kind})" in said and "arg-max agrees on" in said
    result = verify(str(source), str(target))
    assert 1e-3 < result.mean_kl < {"fp8": 1, "int8": 0.1}[kind] and result.agreement > 0.5
    assert main(["verify", str(target), str(source)]) == 0
    assert f"(A is in {kind})" in capsys.readouterr().out
    assert main(["verify", str(source), str(target), "--tolerance", "1e-6"]) == 1

    assert main(["to-hf", str(target), str(source.with_name("back"))]) == 2
    assert f"is quantised to {kind}, which Hugging Face's layout" in capsys.readouterr().err
    assert not source.with_name("back").exists()


def test_compare_is_the_kl_of_the_softmax() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 7)).astype(np.float32)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (a, b))
    result = compare(a, b, "float32")
    np.testing.assert_allclose(result.mean_kl, (p * np.log(p / q)).sum(-1).mean(), rtol=1e-5)
    assert result.max_difference == np.abs(a - b).max()


@pytest.mark.parametrize("command", ["from-hf", "to-hf", "verify"])
def test_help_explains_and_shows_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"python -m convert {command} " in capsys.readouterr().out
