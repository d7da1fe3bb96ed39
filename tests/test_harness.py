"""The program that evaluates: result files, resuming, and what it refuses before any work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import r2jax
from eval import harness, lm_tasks, presets, records, results_file
from eval.lazy_model import LazyModel
from eval.local_data import read_problems, read_table
from r2jax.checkpoint import open_checkpoint, quantized, write
from r2jax.cli import run
from r2jax.decode_config import DecodeConfig
from tests import tiny_checkpoint as tiny

QUESTIONS = [f"What is {i} + {'1' * i}?" for i in range(1, 6)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint and problems."""
    directory = tiny.write_checkpoint(tmp_path_factory.mktemp("tiny"))
    rows = [{"question": text, "answer": f"#### {i}"} for i, text in enumerate(QUESTIONS)]
    lines = [json.dumps(row) for row in rows]
    (directory / "sums.jsonl").write_text("\n".join(lines) + "\n")
    return directory


@pytest.fixture
def evaluate(directory: Path, tmp_path: Path):
    """Run the program on the problems; returns its results by strategy."""

    def evaluate(*words: str, output: str = "out", strategies: str = "r2") -> dict[str, Any]:
        start = ["--checkpoint", str(directory), "--tasks", str(directory / "sums.jsonl")]
        start += ["--output-dir", str(tmp_path / output), "--strategies", *strategies.split()]
        harness.main([*start, *words])
        return {
            name: results_file.read(results_file.path_of(tmp_path / output, "sums", name))
            for name in strategies.split()
        }

    return evaluate


def but_speed(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if k not in ("speed", "environment")}


def test_results_are_generate_texts(evaluate, directory: Path, monkeypatch, capsys):
    """Side by side, each with all that it depends on; graded and counted problem by problem."""
    monkeypatch.setattr(lm_tasks, "is_correct", lambda text, answer: answer == "#### 3")
    found = evaluate("--dtype", "float32", strategies="fast_dllm r2")
    model = r2jax.load(directory, "float32")
    tokenizer = r2jax.load_tokenizer(directory)
    defaults = r2jax.generation_defaults(directory)
    for name, result in found.items():
        config = getattr(DecodeConfig, name)(**defaults)
        out = r2jax.generate_text(model, tokenizer, QUESTIONS, config)
        samples = result["samples"]
        assert [sample["text"] for sample in samples] == out.texts
        assert [sample["tokens"] for sample in samples] == [len(row) for row in out.tokens]
        assert [sample["nfe"] for sample in samples] == out.nfe.tolist()
        assert [sample["refreshes"] for sample in samples] == out.refreshes.tolist()
        potential = [sum(sample["potential"].values()) for sample in samples]
        assert potential == out.counts.potential.total.tolist()
        assert [sample["correct"] for sample in samples] == [0, 0, 0, 1, 0]
        assert [sample["answer"] for sample in samples] == [f"#### {i}" for i in range(5)]
        assert result["metrics"]["accuracy"]["value"] == 0.2
        assert result["strategy"] == name and result["seed"] == 0
        assert DecodeConfig(**result["decode"]) == config
        assert result["prompt"]["chat_template"] is True
        assert result["prompt"]["longest"] == max(out.prompt_lengths)
        assert result["model"]["dtype"] == "float32" and result["model"]["quantize"] is None
        assert (
            result["task"]["name"] == "sums" and "sums.jsonl (sha256 " in result["task"]["source"]
        )
        assert result["environment"]["device"] == {"kind": "cpu", "platform": "cpu", "count": 1}
        assert "--strategies fast_dllm r2" in result["environment"]["command"]
        assert str(directory) not in json.dumps(result)
    table = capsys.readouterr().out
    assert "fast_dllm" in table and "sums: 5 problems, 0 examples, chat template, float32" in table


def test_a_killed_run_goes_on(evaluate, tmp_path: Path, monkeypatch, capsys):
    """What was kept is not made again, and the result is that of a run in one go."""
    words = ("--dtype", "float32", "--batch-size", "2")
    whole = evaluate(*words, output="whole")["r2"]
    keep, decoded = records._records, []

    def interrupted(batch: Any) -> Any:
        if len(decoded) == 1:
            raise KeyboardInterrupt
        decoded.append(batch.indices)
        return keep(batch)

    monkeypatch.setattr(records, "_records", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(*words)
    partial = tmp_path / "out" / "sums-r2.json.partial"
    assert f"2 of 5 answers are kept in {partial}; the same command" in capsys.readouterr().err
    assert not (tmp_path / "out" / "sums-r2.json").exists()
    with pytest.raises(
        ValueError, match=r"other settings: decode\.threshold was 0\.9, is now 0\.8"
    ):
        evaluate(*words, "--threshold", "0.8")
    with pytest.raises(ValueError, match=r"other settings: batch_size was 2, is now 3"):
        evaluate(*words[:2], "--batch-size", "3")

    (first,) = decoded
    decoded.clear()
    monkeypatch.setattr(
        records, "_records", lambda batch: decoded.append(batch.indices) or keep(batch)
    )
    resumed = evaluate(*words)["r2"]
    assert sorted(sum(decoded, first)) == list(range(5))
    assert but_speed(resumed) == but_speed(whole) and resumed["speed"]["seconds"] > 0
    assert not partial.exists()
    assert "(2 are done)" in capsys.readouterr().err


def test_what_is_there_is_not_made_again(evaluate, tmp_path: Path, monkeypatch, capsys):
    first = evaluate()["r2"]
    (tmp_path / "out" / "sums-r2.json.partial").write_text("left over")
    monkeypatch.setattr(LazyModel, "model", property(lambda self: pytest.fail("it was loaded")))
    capsys.readouterr()
    assert evaluate()["r2"] == first
    assert "sums-r2.json is there already" in capsys.readouterr().err
    assert not (tmp_path / "out" / "sums-r2.json.partial").exists()
    for words, message in (
        (["--seed", "1"], "seed was 0, is now 1"),
        (["--raw"], r"prompt\.chat_template was true, is now false"),
        (["--limit", "2"], r"task\.problems was 5, is now 2"),
        (["--gen-length", "8"], r"decode\.gen_length was 16, is now 8"),
    ):
        with pytest.raises(
            ValueError, match=rf"sums-r2\.json holds the result of other .*{message}"
        ):
            evaluate(*words)


def test_data_that_changed_unseen(evaluate, tmp_path: Path):
    """Data from the hub have no hash: the prompts themselves are compared."""
    evaluate()
    path = tmp_path / "out" / "sums-r2.json"
    result = json.loads(path.read_text())
    result["samples"][2]["prompt_sha256"] = "0" * 64
    path.write_text(json.dumps(result))
    with pytest.raises(ValueError, match=r"other settings: the prompts were others\. Choose"):
        evaluate()


def test_given_answers_are_scored(directory: Path, tmp_path: Path, capsys):
    """Any task of lm-eval: four answers to choose from, one result whatever the strategies."""
    rows = [
        {"id": str(i), "question": f"{i} + 1?", "answerKey": "B"}
        | {"choices": {"text": [str(i), str(i + 1), "ten", "no"], "label": list("ABCD")}}
        for i in range(3)
    ]
    (tmp_path / "arc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--checkpoint", str(directory), "--tasks", "arc_easy", "--mc-num", "3", "--raw"]
    words += ["--data", f"arc_easy={tmp_path / 'arc.jsonl'}", "--output-dir", str(tmp_path / "out")]
    harness.main(words)
    (path,) = (tmp_path / "out").iterdir()
    result = results_file.read(path)
    assert path.name == "arc_easy-likelihood.json" and result["decode"] is None
    assert [sample["nfe"] for sample in result["samples"]] == [4 * 3] * 3
    assert result["task"]["problems"] == 3
    for sample in result["samples"]:
        values = [float(value) for value in sample["text"].split()]
        assert len(values) == 4 and sample["answer"] == "1"
        assert sample["correct"] == (max(values) == values[1])
    harness.main(words)
    assert "arc_easy-likelihood.json is there already" in capsys.readouterr().err


def test_nothing_kept_leaves_nothing(evaluate, tmp_path: Path, monkeypatch):
    """A run that fails before its first answer (no memory, say) can be begun otherwise."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(records, "generate_many", fail)
    with pytest.raises(MemoryError):
        evaluate()
    assert list((tmp_path / "out").iterdir()) == []


def test_eight_bits_by_the_flag_or_as_stored(directory: Path, tmp_path: Path):
    narrow = tmp_path / "narrow"
    write(quantized(open_checkpoint(directory), "int8"), "converted", narrow)
    for source in (LazyModel(str(directory), quantize="int8"), LazyModel(str(narrow))):
        assert (source.quantize, source.dtype) == ("int8", "bfloat16")
        assert source.model.layers[0].o_proj.weight[...].dtype == "int8"
    assert LazyModel(str(directory)).quantize is None


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--tasks gsm9k", "unknown task 'gsm9k'; known are gsm8k, minerva_math, math500"),
        ("--tasks gsm8k --strategies r2 r3", "unknown strategy 'r3'; known are vanilla, fast_dllm"),
        ("--tasks humaneval", "humaneval runs the programs that the model writes: allow it"),
        ("--tasks no.jsonl", "--tasks no.jsonl: there is no such file"),
        ("--tasks gsm8k gsm8k", "--tasks names gsm8k twice"),
        ("--tasks gsm8k --limit 0", "--limit must be at least 1, got 0"),
        ("--tasks gsm8k --seed -1", "--seed must be between"),
        ("--tasks gsm8k --output-dir /nowhere/out", "there can be no such directory"),
        ("--tasks gsm8k --data math500={}", "--tasks does not name 'math500'"),
        ("--tasks gsm8k --data gsm8k=/no.jsonl", "there is no such file"),
        ("--tasks gsm8k --data gsm8k", "must be TASK=FILE or TASK:SPLIT=FILE"),
        ("--tasks gsm8k --data gsm8k={}", "gsm8k draws its examples from the split train: add"),
        ("--tasks gsm8k --data gsm8k:dev={}", "its splits are test, train"),
        ("--tasks math500 --data math500={}", "problem 1: it has no problem, solution"),
        (
            "--tasks gsm8k --cache none --strategies streaming",
            "strategy streaming: confidence_alpha",
        ),
        ("--tasks gsm8k --data gsm8k={} --num-fewshot 0", "gen_length 256 leaves no room"),
        ("--tasks wikitext", "wikitext needs the likelihood of whole texts"),
        ("--tasks {} --num-fewshot 2", "no --data and no examples for it"),
        ("--tasks {} --mesh data=3", "mesh data=3 x fsdp=1 x tensor=1 has 3 places"),
    ],
)
def test_a_mistake_is_one_line(words: str, message: str, directory: Path, tmp_path: Path, capsys):
    """Before the weights are read."""
    start = ["--checkpoint", str(directory), "--output-dir", str(tmp_path / "out")]
    start += [] if "leaves" in message else ["--gen-length", "32"]
    given = words.replace("{}", str(directory / "sums.jsonl")).split()
    assert run("program", lambda: harness.main([*start, *given])) == 2
    error = capsys.readouterr().err
    assert error.startswith("program: error: ") and error.count("\n") == 1
    assert message in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "b"}', "problem 2: must be"),
        ('{"question": " ", "answer": "1"}', "problem 2: the question is empty"),
        ('{"question": "b", "answer": "none"}', "problem 2: the answer must hold a number"),
        ("[1]", "line 2: must be a JSON object, got '[1]"),
    ],
)
def test_a_bad_problem_is_named(line: str, message: str, tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "a", "answer": "1"}\n' + line + "\n")
    with pytest.raises(ValueError) as error:
        harness.load_task(str(path), {})
    assert f"{path}, {message}" in str(error.value)


def test_problems_from_files(tmp_path: Path):
    (tmp_path / "p.jsonl").write_text('{"question": "a", "answer": 1}\n\n')
    assert read_problems(tmp_path / "p.jsonl") == [{"question": "a", "answer": "1"}]
    (tmp_path / "p.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"p\.jsonl\.gz is not \(gzipped\)"):
        read_table(tmp_path / "p.jsonl.gz")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no problems"):
        read_table(tmp_path / "empty.jsonl")


# ---- presets and files ---------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", presets.STRATEGIES)
@pytest.mark.parametrize(
    ("family", "task", "temporal", "spatial"),
    [
        ("llada", "gsm8k", 0.7, 0.8),
        ("llada", "humaneval", 0.85, 0.85),
        ("Dream", "math", 0.8, 0.85),
        ("Dream", "mbpp", 0.8, 0.8),
    ],
)
def test_thresholds_are_the_papers(strategy, family, task, temporal, spatial):
    """Of every strategy: those without the rules count what they would do."""
    options = {"task": task, "model_type": family, "defaults": presets.LENGTHS}
    config = presets.decode_config(strategy, **options)
    assert (config.temporal_threshold, config.spatial_threshold) == (temporal, spatial)
    assert config.apply_rules == (strategy == "r2")
    # Dream's own sampler takes the whole answer at once, the least uncertain tokens first.
    own = (strategy, family) == ("vanilla", "Dream")
    assert (config.gen_length, config.block_length) == (256, None if own else 32)
    assert config.alg == ("entropy" if own else "confidence")
    released = presets.decode_config(strategy, thresholds="released", **options)
    assert (released.temporal_threshold, released.spatial_threshold) == (0.8, 0.8)
    asked = presets.decode_config(strategy, overrides={"spatial_threshold": 0.5}, **options)
    assert (asked.temporal_threshold, asked.spatial_threshold) == (temporal, 0.5)


def test_streaming_is_the_scripts():
    def found(family: str, task: Any, **overrides: Any) -> tuple[int | None, float]:
        config = presets.decode_config(
            "streaming", task=task, model_type=family, defaults=presets.LENGTHS, overrides=overrides
        )
        return config.window_size, config.confidence_alpha

    assert found("llada", "gsm8k") == (96, 0.4)
    assert found("llada", "gsm8k", gen_length=512) == (128, 0.6)
    assert found("llada", "gsm8k", gen_length=512, window_size=64) == (64, 0.6)
    assert found("Dream", "math") == (32, 0.1)
    assert found("Dream", "humaneval") == (32, 0.3)  # no script: the strategy's own
    assert found("llada", "gsm8k", gen_length=128) == (32, 0.3)


def a_result() -> dict[str, Any]:
    zero = dict.fromkeys(results_file.RULES, 0)
    samples = [
        {"id": str(i), "prompt_sha256": "a", "text": "t", "answer": "1", "correct": float(i > 0)}
        | {"nfe": 10 + i, "refreshes": 4, "tokens": 7, "actual": zero, "potential": zero}
        for i in range(4)
    ]
    return {
        results_file.MARK: 1,
        "task": {"name": "t", "num_fewshot": 0, "source": "", "problems": 4, "limit": None},
        "model": {"checkpoint": "c", "digest": "d", "model_type": "llada"}
        | {"dtype": "float32", "quantize": None},
        "prompt": {"chat_template": True, "truncated": 0, "longest": 3},
        "strategy": "r2",
        "decode": dataclasses.asdict(DecodeConfig()),
        "seed": 0,
        "counting": {"tokens": "", "nfe": ""},
        "metrics": {"accuracy": results_file.metric([s["correct"] for s in samples])},
        "means": results_file.means(samples),
        "speed": {"seconds": 1.0, "compile_seconds": 0.0, "batch_size": 1}
        | {"tokens_per_second": 28.0},
        "environment": {"device": {"kind": "cpu", "platform": "cpu", "count": 1}}
        | {"versions": {"jax": "0"}, "date": "", "command": ""},
        "samples": samples,
    }


def test_a_result_file_is_what_was_written(tmp_path: Path):
    result = a_result()
    assert result["metrics"]["accuracy"]["standard_error"] == pytest.approx(
        (0.75 * 0.25 / 4) ** 0.5
    )
    assert (result["means"]["nfe"], result["means"]["block_steps"]) == (11.5, 7.5)
    path = results_file.path_of(tmp_path, "t", "r2")
    results_file.write(path, result)
    assert results_file.read(path) == result and path.name == "t-r2.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"t-r2\.json is no JSON file"):
        results_file.read(path)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ([results_file.MARK], 2, "has format 2, this r2jax reads 1"),
        (["means", "nfe"], "many", r"means\.nfe: 'many' is not of type 'number'"),
        (["means", "nfe"], 12.0, r"means\.nfe is 12\.0, but its samples say 11\.5"),
        (["metrics", "accuracy", "value"], 0.5, "but its samples say 0.75"),
        (["samples", 2, "nfe"], -1, r"samples\[2\]\.nfe: -1 is less than the minimum"),
        (["samples", 1, "id"], "0", "an id stands twice"),
        (["task", "problems"], 5, r"task\.problems is 5, but there are 4 samples"),
        (["decode", "threshold"], 2, "decode: threshold must be a number between 0 and 1"),
        (["decode", "cash"], 2, "decode: .*cash"),
        (["strategy"], "", "strategy: "),
    ],
)
def test_a_damaged_result_is_refused_by_field(where: list[Any], value: Any, message: str):
    result = a_result()
    inner = result
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    with pytest.raises(ValueError, match=f"^a file.*{message}"):
        results_file.validate(result, "a file")
    del inner[where[-1]]
    if isinstance(inner, dict) and where[0] != "decode":
        with pytest.raises(ValueError, match=r"^a file"):
            results_file.validate(result, "a file")
