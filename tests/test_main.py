"""The command line, run in this process on a random checkpoint."""

import dataclasses
import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import r2jax
from r2jax import answer, clock, options
from r2jax.__main__ import main
from r2jax.checkpoint import load, open_checkpoint, quantized, write
from r2jax.journal import Journal
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


def test_quantised(run, directory, tmp_path, monkeypatch):
    """By the flag, or as the checkpoint is stored; another kind than that is refused."""
    models = []
    monkeypatch.setattr(answer, "load", lambda *a, **k: models.append(load(*a, **k)) or models[-1])
    narrow = tmp_path / "narrow"
    write(quantized(open_checkpoint(directory), "int8"), "converted", narrow)
    command = ["--json", "--gen-length", "8", PROMPT]
    texts = []
    for words in (["--quantize", "int8"], ["--checkpoint", str(narrow)]):
        status, out, err = run("generate", *words, *command)
        assert status == 0, err
        texts.append(json.loads(out)["text"])
    assert texts[0] == texts[1]
    assert [model.layers[0].o_proj.weight[...].dtype for model in models] == ["int8", "int8"]
    status, _, err = run("generate", "--checkpoint", str(narrow), "--quantize", "fp8", *command)
    assert status == 2 and "is quantised to int8 already; load the original to have fp8" in err


def test_prompts_of_all_kinds(run, tmp_path, monkeypatch):
    lines = tmp_path / "lines.txt"
    lines.write_text('One egg\n\n{"question": "Two\\neggs", "answer": [2]}\n')
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"prompt": "Three"}\nFour\n'))
    command = ["--json", "--gen-length", "8", "--prompts-file", str(lines)]
    status, out, err = run("generate", *command, "Zero", "-")
    assert status == 0, err
    records = [json.loads(line) for line in out.splitlines()]
    prompts = [record["prompt"] for record in records]
    assert prompts == ["Zero", "Three", "Four", "One egg", "Two\neggs"]
    assert records[-1]["question"] == "Two\neggs" and records[-1]["answer"] == [2]


LONG = [f"{i} eggs?" for i in range(7)]


@pytest.fixture
def long_list(tmp_path):
    """The options that decode LONG, and what an uninterrupted run writes."""
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "id": i}) + "\n" for i, p in enumerate(LONG)))
    return ["--prompts-file", str(path), "--dtype", "float32", "--temperature", "1"]


def test_output_is_what_json_prints_without_times(run, long_list, tmp_path):
    out = tmp_path / "out.jsonl"
    status, printed, _ = run("generate", "--json", *long_list, "--batch-size", "2")
    printed = [json.loads(line) for line in printed.splitlines()]
    assert status == 0 and [record["id"] for record in printed] == list(range(7))
    assert {record["batch"] for record in printed} == {1, 2}
    for record in printed:
        for name in ("batch", "seconds", "compile_seconds"):
            del record[name]
    status, nothing, err = run("generate", *long_list, "--output", str(out), "--batch-size", "3")
    assert (status, nothing) == (0, "")
    assert "decoding 7 prompts" in err and "prompts/s" in err and f"wrote {out}" in err
    assert [json.loads(line) for line in out.read_text().splitlines()] == printed
    status, _, err = run("generate", *long_list, "--output", str(out))
    assert status == 2 and f"{out} exists already; remove it or choose another name" in err


def test_a_run_that_breaks_off_goes_on(run, long_list, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    assert run("generate", *long_list, "--output", str(whole))[0] == 0
    append, left = Journal.append, [1]

    def interrupted(self, records):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        append(self, records)

    monkeypatch.setattr(Journal, "append", interrupted)
    command = ["generate", *long_list, "--output", str(broken)]
    status, _, err = run(*command, "--batch-size", "2")
    assert status == 130 and not broken.exists()
    assert f"2 of 7 prompts are kept in {broken}.partial; the same command goes on" in err
    monkeypatch.setattr(Journal, "append", append)

    status, _, err = run(*command, "--gen-length", "8", "--seed", "1", "--raw")
    assert status == 2 and "loading" in err and "decoding" not in err
    for change in ("decode.gen_length was 16, is now 8", "seed was 0, is now 1", "raw was false"):
        assert change in err
    status, _, err = run(*command, "--quantize", "int8")
    assert status == 2 and "quantize was null, is now" in err
    status, _, err = run(*command, "--batch-size", "7")
    assert status == 0 and "decoding 7 prompts (2 are done)" in err
    assert broken.read_bytes() == whole.read_bytes()


def test_kill_at_any_moment(run, directory, long_list, tmp_path):
    """kill -9 in the middle of loading, compiling, decoding; then the same command again."""
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert run("generate", *long_list, "--output", str(whole))[0] == 0
    command = [
        *[sys.executable, "-m", "r2jax", "generate", "--checkpoint", str(directory), *long_list],
        *["--batch-size", "1", "--output", str(killed)],
    ]
    journal = Path(f"{killed}.partial")
    kept = 0
    for wanted in (0, 3):  # lines of the journal, its header among them, when the axe falls
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None:
                lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
                if lines > wanted:
                    process.kill()
                time.sleep(0.01)
        assert process.returncode == -signal.SIGKILL and not killed.exists()
        assert kept <= journal.read_bytes().count(b"\n") - 1 < len(LONG)
        kept = journal.read_bytes().count(b"\n") - 1
    assert kept >= 3
    status, _, err = run("generate", *long_list, "--output", str(killed))
    assert status == 0 and f"({kept} are done)" in err
    assert killed.read_bytes() == whole.read_bytes() and not journal.exists()


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
        (["--prompts-file", "/no/such/file"], "No such file"),
        (["--output", "/no/such/directory/out.jsonl", "x"], "there is no such directory"),
        ([], "no prompt"),
        (["good", ""], "prompt 2 is empty"),
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
        (b'{"prompt": "x"}\n{"prompt": " "}\n', 'line 2, field "prompt" is empty'),
        (b'{"question": "%s"}' % (b"word " * 300), 'line 1, field "question" has'),
        (b"<|mdm_mask|>\n", "line 1 holds the mask token"),
    ],
)
def test_bad_prompt_files(run, tmp_path, content, message):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    status, out, err = run("generate", "--prompts-file", str(path))
    assert (status, out) == (2, "") and f"{path}, {message}" in err


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


def test_view(run, tmp_path):
    page = tmp_path / "page.html"
    words = ["--output", str(page), "--strategies", "vanilla", "r2", "--threshold", "0.9"]
    status, out, err = run("view", PROMPT, *words, "--task", "gsm8k", "--temperature", "1")
    assert status == 0, err
    assert "loading" in err and "decoding with R²" in err
    assert out.splitlines()[1:] == [
        "R²: NFE 16, refreshes 2",
        f"wrote {page}: open it in a browser",
    ]
    data = page.read_text().split('id="data">')[1].split("</script>")[0]
    data = json.loads(data)
    assert data["prompt"] == PROMPT
    vanilla, r2 = data["strategies"]
    assert (vanilla["name"], r2["name"]) == ("vanilla", "R²")
    assert vanilla["options"]["threshold"] == r2["options"]["threshold"] == 0.9
    assert (vanilla["options"]["cache"], r2["options"]["cache"]) == ("none", "dual")
    assert vanilla["options"]["temporal_threshold"] == 0.8
    assert r2["options"]["temporal_threshold"] == 0.7, "the paper's for the task"
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "--output", "page.png"], "--output must end in .html, got 'page.png'"),
        (["x", "--output", "no/such/page.html"], "there is no such directory"),
        (["x", "--gen-length", "33"], "gen_length must be a multiple of block_length"),
        (["x", "--seed", "-1"], "--seed must be between 0 and 2^32 - 1, got -1"),
        (["x", "--mesh", "expert=2"], "--mesh must be AXIS=N"),
        (["x", "--checkpoint", "nowhere"], "'nowhere' is not a directory"),
        (["word " * 300], "leaves room for"),
        (["<|mdm_mask|>"], "mask token"),
        ([" "], "prompt 1 is empty"),
    ],
)
def test_view_refusals(run, monkeypatch, words, message):
    monkeypatch.setattr("r2jax.view.load", None)  # all of them before the model is loaded
    status, out, err = run("view", *words)
    assert (status, out) == (2, "") and message in err.splitlines()[-1]


def test_view_shows_one_prompt(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("One\nTwo\n"))
    status, out, err = run("view", "-")
    assert (status, out) == (2, "") and "one prompt; standard input holds 2" in err


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
    page = picture.with_suffix(".html")
    assert str(page) in out and page.read_text().startswith("<!doctype html>")


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


def test_meter(capsys, monkeypatch):
    monkeypatch.setattr(clock, "_EVERY", 0.0)
    with clock.Meter("decoding 8 prompts (2 are done)", total=8, done=2) as meter:
        meter.add(prompts=2, tokens=100, nfe=30, seconds=4.0, compiling=1.5)
        with meter.hidden():
            print("result")
        meter.add(prompts=4, tokens=500, nfe=30, seconds=2.0, compiling=0.0)
    out, err = capsys.readouterr()
    first, middle, last = err.splitlines()
    assert out == "result\n" and first == "decoding 8 prompts (2 are done) ..."
    assert middle == (
        "4 of 8 prompts, 8 s left, 0.5 prompts/s, 25 tokens/s, mean NFE 15.0, 1.5 s compiling"
    )
    assert re.fullmatch(
        r"decoding 8 prompts \(2 are done\): [\d.]+ s, 1 prompts/s, 100 tokens/s, "
        r"mean NFE 10.0, 1.5 s compiling",
        last,
    )
    assert [clock.duration(s) for s in (0.4, 59.6, 185, 7385)] == [
        "0 s",
        "1:00",
        "3:05",
        "2:03:05",
    ]
