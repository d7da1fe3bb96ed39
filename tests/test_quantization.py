"""The program that measures what 8-bit weights cost in predictions."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import r2jax
from eval import quantization
from eval.random_model import SIZES, random_model
from r2jax.cli import run
from tests import tiny_checkpoint as tiny

MASK = 7


def test_passes_end_where_their_row_does():
    """Prompts of 2 and 4 tokens, an answer of two blocks: the first with a mask is current."""
    prompts = [np.array([1, 2]), np.array([3, 4, 5, 6])]
    answers = np.array([[9, 9, 9, MASK, MASK, MASK], [9, MASK, 9, MASK, MASK, MASK]])
    config = tiny.model_config(mask_id=MASK, pad_id=0)
    given = quantization.passes(prompts, answers, 3, config)
    assert given.lengths.tolist() == [8, 10]
    assert given.tokens[0].tolist() == [1, 2, *answers[0], 0, 0]
    assert given.tokens[1].tolist() == [3, 4, 5, 6, *answers[1]]
    assert given.columns.tolist() == [[5, 6, 7], [4, 5, 6]]


def test_half_way_is_within_the_middle_block():
    """Of four blocks of 4, the third is half masked: 16 - 8 - 2 masks are left."""
    masked = [16, 12, 8, 7, 6, 3, 0]
    states = np.full((2, 9, 16), -1)
    for k, count in enumerate(masked):
        states[:, k] = 1
        states[0, k, 16 - count :] = MASK
        states[1, k, 16 - max(count - 1, 0) :] = MASK  # 15, 11, 7, 6, 5, 2, 0
    found = quantization.half_way(states, 4, MASK)
    assert ((found == MASK).sum(1) == [6, 6]).all()
    never = np.where(states[:, :1] == 1, 1, MASK)  # all at once: what there is
    assert (quantization.half_way(never, 4, MASK) == never[:, 0]).all()


def test_differences_count_masked_positions_and_are_those_of_the_softmax():
    rng = np.random.default_rng(0)
    own, narrow = rng.normal(size=(2, 1, 3, 5)).astype(np.float32)
    given = quantization.Passes(
        np.array([[1, MASK, 2, MASK]]), np.array([4]), np.array([[1, 2, 3]])
    )
    found = quantization.compare(own, narrow, given, MASK)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (own[:, ::2], narrow[:, ::2]))
    assert found["positions"] == 2
    np.testing.assert_allclose(found["mean_kl"], (p * np.log(p / q)).sum(-1).mean(), rtol=1e-4)
    assert found["top1_agreement"] == (p.argmax(-1) == q.argmax(-1)).mean()
    change = np.abs(p.max(-1) - q.max(-1)).mean()
    np.testing.assert_allclose(found["mean_confidence_change"], change, rtol=1e-4)
    same = quantization.compare(own, own, given, MASK)
    assert (same["mean_kl"], same["top1_agreement"]) == (0.0, 1.0)


@pytest.mark.parametrize(("size", "shift"), [("tiny", 0), ("tiny-dream", 1)])
def test_logits_are_those_of_the_model_alone(size: str, shift: int):
    """Of a row among longer ones, where its current block is predicted."""
    model = random_model(SIZES[size], "float32")
    mask = model.config.mask_id
    prompts = [np.arange(5), np.arange(30)]
    given = quantization.passes(prompts, np.full((2, 8), mask), 4, model.config)
    found = quantization._block_logits(model, given)
    for row, prompt in enumerate(prompts):
        tokens = np.concatenate([prompt, np.full(8, mask)])[None]
        alone = jax.jit(lambda model, tokens: model(tokens))(model, tokens)
        first = len(prompt) - shift
        np.testing.assert_allclose(found[row], alone[0, first : first + 4], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("source", ["size", "checkpoint"])
def test_both_kinds_on_both_inputs(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "result.json"
    if source == "size":
        words = ["--size", "tiny", "--dtype", "float32", "--prompt-length", "20"]
    else:
        directory = tiny.write_checkpoint(tmp_path / "tiny")
        words = ["--checkpoint", str(directory), "--problems", str(directory / "examples.jsonl")]
    words += ["--prompts", "2", "--gen-length", "32", "--output", str(path)]
    quantization.main(words)
    result = json.loads(path.read_text())
    rows = {(row["quantize"], row["input"]): row for row in result["results"]}
    assert list(rows) == [
        (kind, at) for kind in ("fp8", "int8") for at in ("first refresh", "half-way")
    ]
    masked = 2 * result["settings"]["config"]["block_length"]
    for (_, at), row in rows.items():
        assert row["positions"] == masked if at == "first refresh" else row["positions"] <= masked
        assert abs(row["mean_kl"]) < 1 and 0.5 < row["top1_agreement"] <= 1
        if source == "size":  # the other has hardly any preference among its tokens
            assert row["mean_kl"] > 1e-3 and 1e-3 < row["mean_confidence_change"] < 0.3
            assert rows["int8", at]["mean_kl"] < rows["fp8", at]["mean_kl"]
    dtype = "float32" if source == "size" else "bfloat16"
    assert result["settings"]["dtype"] == dtype and result["versions"]["r2jax"] == r2jax.__version__
    table = capsys.readouterr().out
    assert table.count("fp8") == 2 and table.count("half-way") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--size tiny --problems p.jsonl", "--problems needs --checkpoint"),
        ("--size tiny --prompts 0", "must be at least 1"),
        ("--size tiny --output /nowhere/r.json", "no such directory"),
        ("--size tiny --gen-length 33", "gen_length must be a multiple of block_length"),
    ],
)
def test_a_mistake_is_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]):
    assert run("program", lambda: quantization.main(words.split())) == 2
    error = capsys.readouterr().err
    assert error.startswith("program: error: ") and message in error and error.count("\n") == 1
