"""The program that grades strategies: what it writes, and what it refuses before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval import strategies
from r2jax.checkpoint import open_checkpoint, quantized, write
from r2jax.cli import run
from tests import tiny_checkpoint as tiny


def test_strategies_grades_every_problem_once(tmp_path: Path):
    checkpoint = tiny.write_checkpoint(tmp_path / "tiny")
    problems = tmp_path / "problems.jsonl"
    rows = [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(3)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "result.json"
    words = ["--checkpoint", str(checkpoint), "--problems", str(problems), "--output", str(path)]
    strategies.main([*words, "--batch", "2", "--strategies", "r2", "fast_dllm"])
    result = json.loads(path.read_text())
    assert list(result["strategies"]) == ["r2", "fast_dllm"]
    for each in result["strategies"].values():
        assert [row["question"] for row in each["answers"]] == [row["question"] for row in rows]
        nfe = [row["nfe"] for row in each["answers"]]
        assert each["problems"] == 3 and each["nfe"] == pytest.approx(sum(nfe) / 3)
        assert each["accuracy"] == sum(row["correct"] for row in each["answers"]) / 3
    assert result["strategies"]["fast_dllm"]["r_total_actual"] == 0


def test_strategies_of_quantised_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By the flag or as stored: the model is one in 8 bits, and the result says so."""
    models = []
    generate_text = strategies.r2jax.generate_text
    monkeypatch.setattr(
        strategies.r2jax,
        "generate_text",
        lambda model, *rest: (models.append(model), generate_text(model, *rest))[1],
    )
    checkpoint = tiny.write_checkpoint(tmp_path / "tiny")
    narrow = tmp_path / "narrow"
    write(quantized(open_checkpoint(checkpoint), "int8"), "converted", narrow)
    path = tmp_path / "result.json"
    answers = []
    for source, kind in ((checkpoint, "int8"), (narrow, "none"), (checkpoint, "none")):
        words = ["--checkpoint", str(source), "--problems", str(checkpoint / "examples.jsonl")]
        words += ["--strategies", "r2", "--output", str(path), "--quantize", kind]
        strategies.main(words)
        result = json.loads(path.read_text())
        answers.append(result["strategies"]["r2"]["answers"])
        assert result["quantize"] == (None if source == checkpoint and kind == "none" else "int8")
    assert [model.layers[0].o_proj.weight[...].dtype for model in models] == [
        "int8",
        "int8",
        "bfloat16",
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--problems /nowhere.jsonl", "/nowhere.jsonl"),
        ("--problems x --limit 0", "must be at least 1"),
        ("--problems x --output /nowhere/r.json", "no such directory"),
    ],
)
def test_a_mistake_is_one_line(words: str, message: str, capsys):
    assert run("program", lambda: strategies.main(words.split())) == 2
    error = capsys.readouterr().err
    assert error.startswith("program: error: ") and message in error and error.count("\n") == 1


def test_a_bad_problem_names_its_line(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "a", "answer": "1"}\n{"question": "b"}\n')
    with pytest.raises(ValueError, match=r"p\.jsonl, line 2: must be"):
        strategies.read_problems(str(path))
