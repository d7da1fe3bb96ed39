"""Sweeps: the right configurations, each decoded once, kept when killed, and drawn as measured."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from eval import results_file
from eval.drawing import direct_labels
from eval.presets import STRATEGIES
from eval.results_file import RULES
from eval.sweeps import __main__ as sweeps
from eval.sweeps import parts, pictures, points, summary
from r2jax import DecodeConfig
from r2jax.cli import run as run_program
from r2jax.journal import Journal
from tests import tiny_checkpoint as tiny


def make(strategy: str, /, **changes: Any) -> DecodeConfig:
    return getattr(DecodeConfig, strategy)(**{"gen_length": 64, "block_length": 32, **changes})


OPTIONS = points.Options(make, STRATEGIES, None)


def changes(config: DecodeConfig, other: DecodeConfig) -> dict[str, Any]:
    """Options in which the second differs from the first."""
    first, second = dataclasses.asdict(config), dataclasses.asdict(other)
    return {name: value for name, value in second.items() if value != first[name]}


def test_thresholds_change_one_number_each():
    found = points.thresholds(dataclasses.replace(OPTIONS, values=[0.7, 0.3]))
    r2, fast = make("r2"), make("fast_dllm")
    assert [(p.name, changes(fast if i < 2 else r2, p.config)) for i, p in enumerate(found)] == [
        ("Fast-dLLM, threshold 0.3", {"threshold": 0.3}),
        ("Fast-dLLM, threshold 0.7", {"threshold": 0.7}),
        ("R², τ_s 0.3", {"spatial_threshold": 0.3}),
        ("R², τ_s 0.7", {"spatial_threshold": 0.7}),
        ("R², τ_t 0.3", {"temporal_threshold": 0.3}),
        ("R², τ_t 0.7", {"temporal_threshold": 0.7}),
    ]


def test_ablation_switches_rule_by_rule():
    found = points.ablation(OPTIONS)
    r2 = make("r2")
    no_window, no_runs, no_streaks = (
        {"confidence_cluster_size": None}, {"token_cluster": None}, {"temporal_steps": None}
    )  # fmt: skip
    assert [changes(r2, p.config) for p in found] == [
        {"apply_rules": False},
        no_runs | no_streaks,
        no_window | no_streaks,
        no_window | no_runs,
        {},
        no_window | no_streaks | {"token_cluster": "mid"},
        no_window | no_streaks | {"token_cluster": "random"},
        no_window | no_streaks,
        no_window | no_runs | {"temporal_eval": "ave"},
        no_window | no_runs | {"temporal_eval": "max"},
        no_window | no_runs,
    ]


def test_lengths_are_half_once_and_twice_the_checkpoints():
    found = points.lengths(dataclasses.replace(OPTIONS, strategies=["r2", "vanilla"]))
    assert [(p.series, p.x, p.config.gen_length) for p in found] == [
        *(("R²", n, n) for n in (32, 64, 128)),
        *(("vanilla", n, n) for n in (32, 64, 128)),
    ]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A checkpoint, and three problems for batches of two."""
    directory = tmp_path_factory.mktemp("inputs")
    checkpoint = tiny.write_checkpoint(directory / "tiny")
    problems = directory / "problems.jsonl"
    rows = [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(3)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--checkpoint", str(checkpoint), "--problems", str(problems), "--batch-size", "2"]


VALUES = ["--values", "0.0", "0.9", "--output-dir"]


def measured(path: Path) -> dict[str, Any]:
    """A sweep's numbers without times and dates."""
    content = json.loads(path.read_text())
    for row in content["points"]:
        del row["seconds"], row["compile_seconds"]
    del content["environment"]["date"], content["environment"]["command"]
    return content


class Compiled(logging.Handler):
    """Names of the programs that JAX says it compiles."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if found := re.match(r"Compiling jit\((.*?)\)", record.getMessage()):
            self.names.append(found[1])


@pytest.fixture(scope="module")
def compiled() -> Iterator[Compiled]:
    """From here to the module's end."""
    handler = Compiled()
    logging.getLogger("jax").addHandler(handler)
    jax.clear_caches()  # other modules decode the same shapes
    with jax.log_compiles():
        yield handler
    logging.getLogger("jax").removeHandler(handler)


@pytest.fixture(scope="module")
def swept(
    inputs: list[str], compiled: Compiled, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """A finished sweep over thresholds, and the programs it compiled."""
    directory = tmp_path_factory.mktemp("swept") / "out"
    sweeps.main(["thresholds", *inputs, *VALUES, str(directory)])
    return directory, list(compiled.names)


@pytest.fixture
def finished(swept: tuple[Path, list[str]]) -> Path:
    """Of the sweep its directory."""
    return swept[0]


def test_a_sweep_over_thresholds_compiles_two_programs(swept: tuple[Path, list[str]]):
    directory, programs = swept
    assert programs.count("decode") == 2  # R²'s, Fast-dLLM's
    assert len(list((directory / "points").iterdir())) == 6


def test_every_number_of_a_sweep_follows_from_its_result_files(finished: Path):
    content = json.loads((finished / "thresholds.json").read_text())
    assert [row["name"] for row in content["points"]][:3] == [
        "Fast-dLLM, threshold 0", "Fast-dLLM, threshold 0.9", "R², τ_s 0"
    ]  # fmt: skip
    for row in content["points"]:
        result = results_file.read(finished / "points" / row["file"])
        samples = result["samples"]
        assert [s["id"] for s in samples] == ["0", "1", "2"] and row["problems"] == 3
        nfe = np.array([s["nfe"] for s in samples])
        assert row["nfe"] == pytest.approx(nfe.mean())
        assert row["nfe_standard_error"] == pytest.approx(nfe.std(ddof=1) / 3**0.5)
        assert row["accuracy"] == np.mean([s["correct"] for s in samples])
        assert row["nfe"] == pytest.approx(row["refreshes"] + row["block_steps"])
        assert row["actual"]["total"] == sum(row["actual"][rule] for rule in RULES)
        assert row["decode"] == result["decode"] and DecodeConfig(**row["decode"])
        assert row["decode"]["eos_id"] == [0, 5] and row["decode"]["gen_length"] == 16
        if row["strategy"] == "fast_dllm":
            assert row["actual"]["total"] == 0
    fast = [row["nfe"] for row in content["points"] if row["strategy"] == "fast_dllm"]
    assert fast[0] == 2 < fast[1]  # at threshold 0 the refresh of each of two blocks does it all


def test_the_csv_holds_what_the_json_holds(finished: Path):
    content = json.loads((finished / "thresholds.json").read_text())
    with (finished / "thresholds.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6
    for line, row in zip(lines, content["points"], strict=True):
        assert line == {k: "" if v is None else str(v) for k, v in summary.flat(row).items()}
        assert line["decode.threshold"] == str(row["decode"]["threshold"])


def test_a_killed_sweep_goes_on_where_it_was(
    inputs: list[str], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """Killed in the middle of the second configuration, after one of its two batches."""
    append = Journal.append
    calls = itertools.count(1)

    def killed(journal: Any, records: Any) -> None:
        append(journal, records)
        if next(calls) == 3:
            raise KeyboardInterrupt

    words = ["thresholds", *inputs, *VALUES, str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", killed)
        assert run_program("program", lambda: sweeps.main(words)) == 130
    assert "2 of 3 answers are kept" in capsys.readouterr().err
    assert not (tmp_path / "out/thresholds.json").exists()

    kept: list[int] = []
    monkeypatch.setattr(
        Journal,
        "append",
        lambda journal, records: (kept.append(len(records)), append(journal, records))[1],
    )
    sweeps.main(words)
    assert kept == [1] + 4 * [2, 1]
    assert measured(tmp_path / "out/thresholds.json") == measured(finished / "thresholds.json")
    names = sorted(p.name for p in (finished / "points").iterdir())
    assert sorted(p.name for p in (tmp_path / "out/points").iterdir()) == names


def test_what_another_sweep_has_measured_is_not_decoded_again(
    inputs: list[str], finished: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*args: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(Journal, "append", fail)
    words = [*inputs, "--output-dir", str(finished)]
    sweeps.main(["strategies", *words, "--strategies", "fast_dllm"])
    (row,) = json.loads((finished / "strategies.json").read_text())["points"]
    others = json.loads((finished / "thresholds.json").read_text())["points"]
    assert row["file"] == others[1]["file"]
    with pytest.raises(AssertionError, match="decoded again"):
        sweeps.main(["strategies", *words, "--strategies", "vanilla"])


def test_strategies_are_drawn_from_result_files_of_the_harness(
    inputs: list[str], finished: Path, tmp_path: Path, capsys
):
    rows = json.loads((finished / "thresholds.json").read_text())["points"]
    files = [str(finished / "points" / rows[i]["file"]) for i in (1, 3)]  # Fast-dLLM, R²
    words = ["--output-dir", str(tmp_path / "out"), "--results"]
    sweeps.main(["strategies", *words, *files])
    content = json.loads((tmp_path / "out/strategies.json").read_text())
    assert [row["name"] for row in content["points"]] == ["Fast-dLLM", "R²"]
    assert [row["nfe"] for row in content["points"]] == [rows[1]["nfe"], rows[3]["nfe"]]
    assert content["points"][1]["against_first"]["nfe"]["value"] == rows[3]["nfe"] - rows[1]["nfe"]

    other = json.loads(Path(files[1]).read_text())
    other["model"]["digest"] = "another"
    (tmp_path / "other.json").write_text(json.dumps(other))
    for kind, results, message in (
        ("strategies", [files[0], str(tmp_path / "other.json")], "model.digest"),
        ("strategies", [files[0], files[0]], "two files are of the strategy fast_dllm"),
        ("strategies", [str(tmp_path / "other.json")], "model.digest was"),  # than the last
        ("lengths", files, "not lengths"),
    ):
        call = [kind, *words, *results]
        assert run_program("program", lambda call=call: sweeps.main(call)) == 2
        assert message in capsys.readouterr().err


def test_another_models_sweep_is_not_overwritten(inputs: list[str], finished: Path, capsys):
    words = ["thresholds", *inputs, *VALUES, str(finished), "--raw", "--limit", "2"]
    before = (finished / "thresholds.json").read_bytes()
    assert run_program("program", lambda: sweeps.main(words)) == 2
    error = capsys.readouterr().err
    assert "prompt.chat_template was true, is now false" in error
    assert "task.problems was 3, is now 2" in error
    assert (finished / "thresholds.json").read_bytes() == before


def test_pictures_are_drawn_again_from_the_numbers_alone(finished: Path, tmp_path: Path):
    (tmp_path / "thresholds.json").write_bytes((finished / "thresholds.json").read_bytes())
    sweeps.main(["thresholds", "--output-dir", str(tmp_path), "--plot-only"])
    names = {p.name for p in tmp_path.iterdir()} - {"thresholds.json"}
    assert names == {
        f"evaluation-thresholds{part}{dark}.{kind}"
        for part in ("", "-tradeoff") for dark in ("", "-dark") for kind in ("png", "svg")
    }  # fmt: skip
    for name in names:
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
        if name.endswith(".png"):
            corner = matplotlib.image.imread(tmp_path / name)[0, 0]
            assert (corner[:3].mean() < 0.2) == ("-dark" in name)


def made_up(kind: str) -> dict[str, Any]:
    """A summary of a sweep with different numbers everywhere."""
    rng = np.random.default_rng(0)
    rows = []
    for point in points.KINDS[kind](OPTIONS):
        names = (*RULES, "total")
        counts = {name: float(x) for name, x in zip(names, rng.uniform(1, 50, 4), strict=True)}
        rows.append({
            "name": point.name, "series": point.series, "label": point.label, "x": point.x,
            "strategy": point.strategy, "accuracy": float(rng.uniform(0.3, 0.9)),
            "accuracy_standard_error": float(rng.uniform(0.01, 0.03)),
            "nfe": float(rng.uniform(20, 128)), "nfe_standard_error": float(rng.uniform(0.5, 2)),
            "actual": counts, "potential": {name: 2 * x for name, x in counts.items()},
            "actual_standard_error": counts, "potential_standard_error": counts,
            "decode": vars(point.config),
            "against_first": {"accuracy": {"value": float(rng.uniform(-0.1, 0.1)), "low": -0.2,
                                           "high": 0.3}},
        })  # fmt: skip
    return {
        "kind": kind,
        "task": {"name": "gsm", "problems": 500},
        "model": {"checkpoint": "llada-gsm-6m"},
        "points": rows,
    }


def painted(kind: str, picture: int = 0) -> tuple[dict[str, Any], Figure]:
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    content = made_up(kind)
    pictures.PICTURES[kind][picture](content, figure)
    return content, figure


def curves(axes: Any) -> dict[tuple[float, ...], tuple[tuple[float, ...], Any]]:
    """What error bars a panel holds: x -> (y, half lengths of the vertical bars)."""
    found = {}
    for container in axes.containers:
        line, _, bars = container.lines
        half = [float(np.ptp([p[1] for p in part])) / 2 for part in bars[-1].get_segments()]
        found[tuple(line.get_xdata())] = (tuple(line.get_ydata()), half)
    return found


def widths(axes: Any) -> list[float]:
    return [bar.get_width() for bar in axes.patches]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_picture_of_strategies_shows_each_with_its_errors():
    content, figure = painted("strategies")
    drawn = curves(figure.axes[0])
    for row in content["points"]:
        (y,), (half,) = drawn[(row["nfe"],)]
        assert y == pytest.approx(100 * row["accuracy"])
        assert half == pytest.approx(100 * row["accuracy_standard_error"])
        assert any(t.startswith(row["label"]) and f"{y:.1f}" in t for t in texts(figure))


@pytest.mark.parametrize(("kind", "field"), [("thresholds", "accuracy"), ("lengths", "nfe")])
def test_the_panels_show_every_series(kind: str, field: str):
    content, figure = painted(kind)
    drawn: Any = figure.axes[field == "nfe"].containers
    for container, rows in zip(drawn, parts.series(content).values(), strict=True):
        scale = 100 if field == "accuracy" else 1
        x, y = (np.asarray(data, float) for data in container.lines[0].get_data())
        np.testing.assert_allclose(x, [row["x"] for row in rows])
        np.testing.assert_allclose(y, [scale * row[field] for row in rows])


def test_along_each_threshold_every_point_has_its_value():
    content, figure = painted("thresholds", 1)
    assert set(curves(figure.axes[0])) == {
        tuple(row["nfe"] for row in rows) for rows in parts.series(content).values()
    }
    shown = [text for text in texts(figure) if text in {f"{v:g}" for v in points.VALUES}]
    assert sorted(shown) == sorted(row["label"] for row in content["points"])


def test_the_ablation_shows_nfe_and_paired_differences():
    content, figure = painted("ablation")
    assert widths(figure.axes[0]) == pytest.approx([row["nfe"] for row in content["points"]])
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == [row["name"] for row in content["points"]]
    said = texts(figure)
    for row in content["points"][1:]:
        value = f"{100 * row['against_first']['accuracy']['value']:+.1f}".replace("-", "−")
        assert value in said


def test_the_events_are_all_there():
    content, figure = painted("events")
    for axes, rule in zip(figure.axes, (*RULES, "total"), strict=True):
        wanted = [row["potential"][rule] for row in content["points"]]
        wanted += [content["points"][-1]["actual"][rule]]  # R² alone applies its rules
        assert widths(axes) == pytest.approx(wanted)


def test_labels_of_near_points_do_not_cover_each_other():
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    labels = [
        (x, y, "strategy\n71.8 % at 67.7", "C0") for x in (1.0, 1.05) for y in (1.0, 1.04, 1.08)
    ]
    axes.scatter(*zip(*[label[:2] for label in labels], strict=True))
    axes.set(xlim=(0, 2), ylim=(0.5, 1.6))
    direct_labels(axes, labels)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without its line
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lengths --problems {problems} --values 32.5", "not 32.5"),
        ("lengths --problems {problems} --values 12", "multiple of block_length"),
        ("thresholds --problems {problems} --values 1.5", "threshold must be a number between"),
        ("strategies --problems {problems} --limit 0", "must be at least 1"),
        ("strategies --problems {problems} --limit 1", "a sweep needs two problems"),
        ("strategies --problems {bad}", "bad.jsonl, problem 2: the answer must hold a number"),
        ("strategies --problems {problems} --gen-length 256", "no room for a prompt"),
        ("strategies", "--task (or --problems) is needed"),
        ("strategies --plot-only", "strategies.json"),
    ],
)
def test_a_mistake_is_one_line(words: str, message: str, inputs: list[str], tmp_path: Path, capsys):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "a", "answer": "1"}\n{"question": "b", "answer": "none"}\n')
    filled = words.format(problems=inputs[3], bad=bad).split()
    filled += ["--checkpoint", inputs[1], "--output-dir", str(tmp_path / "out")]
    assert run_program("program", lambda: sweeps.main(filled)) == 2
    error = capsys.readouterr().err
    assert error.startswith("program: error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
