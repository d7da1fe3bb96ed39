"""The command line, run in this process on a random checkpoint."""

import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import r2jax
from r2jax import clock, options
from r2jax.__main__ import main
from tests import tiny_checkpoint as tiny

PROMPT = tiny.PROBLEMS[0]["question"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny"))


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def run(directory, monkeypatch, capsys):
    """Run a command; returns exit status, standard output and standard error."""
    monkeypatch.setattr(sys, "stdin", Terminal())

    def run(command, *words):
        status = main([command, "--checkpoint", str(directory), *words])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def parse(*words):
    """The DecodeConfig that options ask for."""
    parser = options.argparse.ArgumentParser()
    options.add_decode_options(parser)
    return options.decode_config(parser.parse_args(options.dashes(words)), {})


def test_text(run):
    status, out, err = run("generate", PROMPT)
    assert status == 0
    assert "[NFE 16, refreshes 2, answer tokens " in out and "R_total 0" in out
    assert "loading" in err and "decoding" in err and "loading" not in out


def test_json(run, directory):
    status, out, _ = run("generate", "--json", "--gen-length", "8", PROMPT, "Eggs?")
    assert status == 0
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["prompt"] for record in records] == [PROMPT, "Eggs?"]
    config = r2jax.DecodeConfig(gen_length=8, block_length=8, eos_id=(0, 5))
    want = r2jax.generate_text(
        r2jax.load(directory), r2jax.load_tokenizer(directory), [PROMPT, "Eggs?"], config
    )
    for i, record in enumerate(records):
        assert record["text"] == want.texts[i]
        assert record["tokens"] == want.tokens[i]
        assert record["nfe"] == want.nfe[i] and record["refreshes"] == want.refreshes[i]
        assert record["prompt_length"] == want.prompt_lengths[i]
        assert record["counts"]["actual"] == {"confidence": 0, "token": 0, "temporal": 0}
        assert record["batch"] == 2 and record["seconds"] > 0
        assert record["config"] == {**dataclasses.asdict(config), "eos_id": [0, 5]}


def test_prompts_of_all_kinds(run, tmp_path, monkeypatch):
    lines = tmp_path / "lines.txt"
    lines.write_text('One egg\n\n{"question": "Two\\neggs"}\n')
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"prompt": "Three"}\nFour\n'))
    command = ["--json", "--gen-length", "8", "--prompt-file", str(lines)]
    status, out, err = run("generate", *command, "Zero", "-")
    assert status == 0, err
    prompts = [json.loads(line)["prompt"] for line in out.splitlines()]
    assert prompts == ["Zero", "Three", "Four", "One egg", "Two\neggs"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Piped\n"))
    assert options.read_prompts([], [], sys.stdin) == ["Piped"]


def test_sampling_does_not_depend_on_the_batch(run):
    def tokens(*words):
        status, out, err = run(
            "generate", "--json", "--raw", "--temperature", "1", "--dtype", "float32",
            *words, PROMPT, "Eggs?"
        )  # fmt: skip
        assert status == 0, err
        return [json.loads(line)["tokens"] for line in out.splitlines()]

    assert tokens() == tokens("--batch-size", "1") != tokens("--seed", "1")


def test_mesh(run):
    words = ["generate", "--json", "--dtype", "float32", PROMPT]
    alone, split = (json.loads(run(*words, *mesh)[1]) for mesh in ([], ["--mesh", _whole_mesh()]))
    assert alone["tokens"] == split["tokens"]


def _whole_mesh():
    devices = len(jax.devices())
    return f"data={devices // 2},tensor=2" if devices > 1 else "data=1"


def test_every_field_is_an_option(capsys):
    assert parse() == r2jax.DecodeConfig()
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    text = capsys.readouterr().out
    for field in dataclasses.fields(r2jax.DecodeConfig):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "R² temporal rule" in text  # the fields' docstrings


@pytest.mark.parametrize(
    ("words", "want"),
    [
        (["--gen-length", "64"], {"gen_length": 64}),
        (["--gen_length=64"], {"gen_length": 64}),
        (["--block-length", "none"], {"block_length": None}),
        (["--cache", "none"], {"cache": "none"}),
        (["--token-cluster", "none"], {"token_cluster": None}),
        (["--token-cluster", "mid"], {"token_cluster": "mid"}),
        (["--threshold", "0.5", "--factor", "1"], {"threshold": 0.5, "factor": 1}),
        (["--no-apply-rules", "--stop-at-eos"], {"apply_rules": False, "stop_at_eos": True}),
        (["--eos-id", "3"], {"eos_id": 3}),
        (["--eos-id", "3,4"], {"eos_id": (3, 4)}),
        (["--preset", "vanilla"], dataclasses.asdict(r2jax.DecodeConfig.vanilla())),
        (["--preset", "fast_dllm", "--cache", "prefix"], {"apply_rules": False, "cache": "prefix"}),
    ],
)
def test_options(words, want):
    assert parse(*words) == r2jax.DecodeConfig(**want)


def test_options_beat_the_checkpoint():
    parser = options.argparse.ArgumentParser()
    options.add_decode_options(parser)
    args = parser.parse_args(["--block-length", "4"])
    config = options.decode_config(args, {"gen_length": 16, "block_length": 8})
    assert (config.gen_length, config.block_length) == (16, 4)


def test_prompts_keep_their_underscores():
    words = ["--gen_length", "8", "snake_case", "--not_an option", "--", "--snake_case"]
    assert options.dashes(words) == ["--gen-length", *words[1:]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--gen-length", "33", "x"],
            "gen_length must be a multiple of block_length, got 33 and 8",
        ),
        (["--gen-length", "many", "x"], "gen_length must be an integer"),
        (["--cache", "tripple", "x"], "cache must be one of 'none', 'prefix', 'dual'"),
        (["--threshold", "2", "x"], "threshold must be a number between 0 and 1, got 2"),
        (["--gen-length", "256", "x"], "leaves no room for a prompt"),
        (["--eos-id", "304", "x"], "eos_id 304 must be a token of the vocabulary"),
        (["--batch-size", "0", "x"], "--batch-size must be at least 1, got 0"),
        (["--mesh", "expert=2", "x"], "--mesh must be AXIS=N"),
        (["--mesh", "data=3,tensor=5", "x"], "must hold all 8 devices"),
        (["--checkpoint", "nowhere", "x"], "'nowhere' is not a directory"),
        (["--prompt-file", "/no/such/file"], "No such file"),
        ([], "no prompt"),
        (["good", ""], "prompt 1 is empty"),
        (["word " * 300], "leaves room for"),
        (["<|mdm_mask|>"], "mask token"),
    ],
)
def test_bad_input_is_one_line(run, words, message):
    status, out, err = run("generate", *words)
    assert (status, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("r2jax: error: ") and message in last
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"fine\n{broken\n", "line 2 starts with a brace"),
        (b'{"text": "x"}\n', 'line 1 needs a text in the field "prompt" or "question"'),
        (b"\xff\xfe\n", "is not UTF-8"),
        (b"\n", "no prompt"),
    ],
)
def test_bad_prompt_files(run, tmp_path, content, message):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    status, out, err = run("generate", "--prompt-file", str(path))
    assert (status, out) == (2, "") and message in err


def test_unknown_options_are_refused(capsys):
    for words in (["generate", "--temporal-stepz", "3", "x"], ["generate", "--gen", "3", "x"], []):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        error = capsys.readouterr().err
        assert error.startswith("r2jax") and ": error: " in error and error.count("\n") == 1


def test_as_a_module():
    root = Path(r2jax.__file__).parents[1]
    command = [sys.executable, "-m", "r2jax", "--help"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0 and "demo" in run.stdout and run.stderr == ""


def test_demo(run, tmp_path):
    picture = tmp_path / "picture.svg"
    status, out, err = run("demo", "--problems", "2", "--output", str(picture))
    assert status == 0, err
    assert tiny.PROBLEMS[1]["question"] in " ".join(out.split())
    for name in ("vanilla", "Fast-dLLM", "R²"):
        (row,) = [line for line in out.splitlines() if re.match(rf" *{name} +\d", line)]
        assert "16.0" in row and "0 of 2" in row
    assert "Expected 60" in out
    assert picture.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--problems", "3"], "--problems must be between 1 and 2, got 3"),
        (["--output", "picture.txt"], "--output must end in .png, .svg or .pdf"),
        (["--output", "no/such/directory.png"], "no such directory"),
    ],
)
def test_demo_refusals(run, words, message):
    status, out, err = run("demo", *words)
    assert (status, out) == (2, "") and message in err


def test_demo_without_problems(run, tmp_path):
    tiny.write_tokenizer(tmp_path)
    status, out, err = run("demo", "--checkpoint", str(tmp_path))
    assert (status, out) == (2, "") and "has no examples.jsonl" in err


def test_clock_keeps_compiling_apart():
    @jax.jit
    def inner(x):
        return jnp.sin(x) @ x

    @jax.jit
    def outer(x):
        return inner(x) + inner(x.T)

    x = jnp.ones((64, 64))
    with clock.Clock() as first:
        outer(x).block_until_ready()
    with clock.Clock() as second:
        outer(x).block_until_ready()
    assert 0 < first.compiling <= first.total
    assert second.compiling == 0 < second.running == second.total
