"""Collecting candidates and selecting training data, on a tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import r2jax
from r2jax.config import ModelConfig
from r2jax.trace import AFTER_EOS
from tests import tiny_checkpoint as tiny
from train import collect, prompts, select
from train.data import read_corpus, take

QUESTIONS = ["How many apples?", "How many eggs do 5 boxes hold?", "She has 3 apples and 4 eggs."]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [{"question": q, "answer": f"so #### {i}"} for i, q in enumerate(QUESTIONS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words(checkpoint: Path, questions: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--checkpoint", str(checkpoint), "--prompts", str(questions), "--dtype", "float32"),
        *("--answer-column", "answer", "--candidates", "2", "--gen-length", "16"),
        # A random model's probabilities are near 1 / 304: thresholds at which the rules fire.
        *("--spatial-threshold", "0.004", "--temporal-threshold", "0.004", "--temporal-steps", "2"),
        *("--block-length", "8", "--output", str(output), *more),
    ]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_candidates(checkpoint: Path, questions: Path, tmp_path: Path, monkeypatch: Any):
    """Whatever the batch size, and broken off in the middle or not, the same file."""
    whole = tmp_path / "whole.jsonl"
    collect.main(words(checkpoint, questions, whole, "--batch-size", "6", "--trajectory"))
    rows = read(whole)
    assert [(row["prompt_index"], row["candidate"]) for row in rows] == [
        (i, k) for i in range(3) for k in range(2)
    ]
    assert [row["prompt"] for row in rows[::2]] == QUESTIONS
    assert any(a["tokens"] != b["tokens"] for a, b in zip(rows[::2], rows[1::2], strict=True))
    for row in rows:
        actual = row["counts"]["actual"]
        assert row["r_spatial"] == actual["confidence"] + actual["token"]
        assert row["r_temporal"] == actual["temporal"]
        assert row["r_total"] == row["r_spatial"] + row["r_temporal"]
        assert row["correct"] is False and row["reference"].startswith("so ####")
        assert row["ended"] is (len(row["tokens"]) < 16)
        at = row["decoded_at"]
        assert len(at) == len(row["tokens"])
        assert not at or 0 <= min(at) <= max(at) < row["nfe"]

    assert any(row["r_spatial"] for row in rows) and any(row["r_temporal"] for row in rows)
    assert any(max(row["decoded_at"], default=0) > 0 for row in rows)
    three = tmp_path / "three.jsonl"
    collect.main(words(checkpoint, questions, three, "--candidates", "3", "--trajectory"))
    assert [row for row in read(three) if row["candidate"] < 2] == rows  # whatever K is

    cut = tmp_path / "cut.jsonl"
    append, appended = r2jax.Journal.append, []

    def breaks(self: r2jax.Journal, records: Any) -> None:
        append(self, records)
        appended.append(sorted(records))
        if len(appended) == 2:
            raise KeyboardInterrupt

    small = words(checkpoint, questions, cut, "--batch-size", "2", "--trajectory")
    monkeypatch.setattr(r2jax.Journal, "append", breaks)
    with pytest.raises(KeyboardInterrupt):
        collect.main(small)
    assert not cut.exists()
    with pytest.raises(ValueError, match="seed was 0, is now 1"):
        collect.main([*small, "--seed", "1"])
    collect.main(small)
    made = [index for indices in appended for index in indices]
    assert sorted(made) == list(range(6))  # none was lost, none made twice
    assert cut.read_bytes() == whole.read_bytes()


def test_when_a_token_was_decoded():
    """Of a traced batch made by hand: four positions, two forwards, an early end."""
    mask = 9
    states = np.full((1, 4, 4), -1)
    states[0, 0], states[0, 1] = [mask] * 4, [mask, 5, mask, mask]
    by = np.array([[0, 0, AFTER_EOS, 0]])
    output = SimpleNamespace(states=states, committed_by=by, nfe=np.array([2]))
    batch: Any = SimpleNamespace(output=output)
    assert collect.decoded_at(batch, 0, mask) == [1, 0, 1, 1]


def candidate(index: int, number: int, r_total: int, nfe: int, correct: bool | None) -> dict:
    tokens = [20 + number] * (3 + number)
    return {
        "prompt_index": index, "candidate": number, "prompt": QUESTIONS[index], "tokens": tokens,
        "text": TEXTS[number], "ended": True, "reference": "7", "r_total": r_total, "nfe": nfe,
        "correct": correct,
    }  # fmt: skip


TEXTS = [tiny.make_tokenizer().decode([20 + number] * (3 + number)) for number in range(4)]
CANDIDATES = [
    candidate(0, 0, 5, 9, True),
    candidate(1, 0, 3, 8, False),
    candidate(0, 1, 4, 9, False),
    candidate(0, 2, 5, 7, True),
    candidate(1, 1, 3, 7, False),
    candidate(0, 3, 5, 9, True),
]


@pytest.mark.parametrize(
    ("by", "correct_only", "wanted"),
    [
        ("min", False, [(0, 1), (1, 1)]),
        ("min", True, [(0, 2)]),  # the second prompt has no right answer
        ("max", False, [(0, 0), (1, 0)]),
        ("max", True, [(0, 0)]),
        ("reference", False, [(0, 0), (1, 0)]),
    ],
)
def test_selection(by: Any, correct_only: bool, wanted: list[tuple[int, int]]):
    chosen = select.select(CANDIDATES, by, correct_only=correct_only, seed=0)
    assert [(row["prompt_index"], row["candidate"]) for row in chosen] == wanted


def test_random_selection_is_of_the_prompt_alone():
    many = [candidate(i % 3, k, 0, 0, True) for i in range(3) for k in range(4)]
    runs = [
        [row["candidate"] for row in select.select(many, "random", correct_only=False, seed=s)]
        for s in range(30)
    ]
    assert {c for run in runs for c in run} == {0, 1, 2, 3}
    alone = select.select(many[4:8], "random", correct_only=False, seed=3)
    assert [row["candidate"] for row in alone] == runs[3][1:2]


def test_a_corpus_of_candidates(checkpoint: Path, tmp_path: Path, capsys: Any):
    """What train.sft reads: the prompt in its template, the chosen answer, the end of the turn."""
    path, out = tmp_path / "candidates.jsonl", tmp_path / "corpus"
    path.write_text("".join(json.dumps(row) + "\n" for row in CANDIDATES))
    options = ["--checkpoint", str(checkpoint), "--gen-length", "8", "--output", str(out)]
    select.main([str(path), "--by", "min", *options])
    assert "2 rows of 2 prompts (0 had no" in capsys.readouterr().out
    sizes: ModelConfig = tiny.model_config()
    corpus = read_corpus(out, sizes, 8)
    batch = take(corpus, np.arange(2))
    tokenizer = r2jax.load_tokenizer(checkpoint)
    end = tokenizer.get_vocab()["<|eot_id|>"]
    for i, (number, length) in enumerate([(1, 4), (1, 4)]):
        prompt = np.asarray(batch.prompt[i])[: int(batch.prompt_length[i])]
        assert QUESTIONS[i] in tokenizer.decode(prompt)
        wanted = [20 + number] * length + [end] + [sizes.pad_id] * (8 - length - 1)
        assert np.asarray(batch.answer[i]).tolist() == wanted
    assert [row["candidate"] for row in read(out / "selected.jsonl")] == [1, 1]

    select.main([str(path), "--by", "reference", *options])
    answer = np.asarray(take(read_corpus(out, sizes, 8), np.arange(2)).answer[0]).tolist()
    assert answer == [*tokenizer("7", add_special_tokens=False)["input_ids"], end, *[0] * 6]
    cut_off = [{**row, "ended": False} for row in CANDIDATES]
    path.write_text("".join(json.dumps(row) + "\n" for row in cut_off))
    select.main([str(path), *options[:2], "--gen-length", "4", "--output", str(out)])
    with pytest.raises(ValueError, match="is no corpus; it is not replaced"):
        select.main([str(path), *options[:2], "--output", str(tmp_path)])
    with pytest.raises(ValueError, match="are not of this tokenizer"):
        select.main([str(path), "--output", str(out)])
    assert (
        np.asarray(take(read_corpus(out, sizes, 4), np.arange(2)).answer).tolist() == [[21] * 4] * 2
    )
    with pytest.raises(ValueError, match="no prompt has a candidate"):
        select.main([str(path), *options[:2], "--gen-length", "3", "--output", str(out)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--prompt-column", "query"], "has no column 'query'; it has question, answer"),
        (["--answer-column", "reference"], "has no column 'reference'"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
        (["--candidates", "0"], "--candidates must be at least 1, got 0"),
        (["--output", "no/such/directory/x.jsonl"], "there is no such directory"),
        (["--gen-length", "10"], "gen_length"),
    ],
)
def test_refusals(
    checkpoint: Path, questions: Path, tmp_path: Path, changes: list[str], message: str
):
    output = tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match=message):
        collect.main(words(checkpoint, questions, output, *changes))
    assert not list(tmp_path.glob("out*"))


def test_prompts_of_files(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"q": "one"}\n{"q": "two"}\n')
    assert prompts.read_prompts(str(path), "q", None, split="train", limit=1) == [("one", None)]
    with pytest.raises(ValueError, match=r"row 1: q must be a text, got None"):
        path.write_text('{"q": "one"}\n{"q": null}\n')
        prompts.read_prompts(str(path), "q", None, split="train", limit=None)
    path.write_text("")
    with pytest.raises(ValueError, match=r"p\.jsonl"):
        prompts.read_prompts(str(path), "q", None, split="train", limit=None)


def test_references_are_tried_first(checkpoint: Path, questions: Path, tmp_path: Path):
    questions.write_text('{"question": "a", "answer": "none"}\n')
    with pytest.raises(ValueError, match=r"row 0: --grader number: answer must hold a number"):
        collect.main(words(checkpoint, questions, tmp_path / "out.jsonl"))
    with pytest.raises(ValueError, match="lacks candidate"):
        (tmp_path / "c.jsonl").write_text('{"prompt_index": 0}\n')
        select.read_candidates(tmp_path / "c.jsonl")
