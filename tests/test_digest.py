"""Digests tell checkpoints and prompts apart by what shapes an answer."""

import shutil

from r2jax import digest
from tests import tiny_checkpoint as tiny


def test_of_checkpoint(tmp_path):
    first = tiny.write_checkpoint(tmp_path / "first")
    second = tmp_path / "second"
    shutil.copytree(first, second)
    (second / "README.md").write_text("says nothing to the model")
    same = digest.of_checkpoint(first)
    assert len(same) == 64 and digest.of_checkpoint(second) == same
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        path = second / name
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert digest.of_checkpoint(second) != same
        path.write_bytes(before)
    params = second / "params" / "d"
    params.mkdir(parents=True)
    (params / "array").write_bytes(b"weights of a converted checkpoint")
    assert digest.of_checkpoint(second) != same


def test_of_json():
    assert digest.of_json({"a": 1, "b": "é"}) == digest.of_json({"b": "é", "a": 1})
    assert digest.of_json(["a", "b"]) != digest.of_json(["b", "a"])
