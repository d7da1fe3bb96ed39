"""Pictures and tables of results: made of what there is, legible on light and dark pages."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from eval import plots
from r2jax.cli import run

SETTINGS = {
    "model": "llada-8b", "weights": "random", "dtype": "bfloat16", "quantize": None, "mesh": None,
    "rules": "r2", "cache": "dual", "window_size": None, "gen_length": 256, "block_length": 32,
    "batch": 1, "prompt_length": 800, "shortest_prompt": None, "problems": None, "seed": 0,
    "target_nfe": None, "lock_step": False, "references": [],
}  # fmt: skip


def result(ms: float = 5.0, date: str = "2026-01-01", **settings: Any) -> dict[str, Any]:
    """What eval.bench writes of one configuration, as if a step took `ms`."""
    floor = {"bytes": 1.5e10, "flops": {"bfloat16": 4.5e11}, "ms": 4.0, "ratio": ms / 4}
    return {
        "settings": {**SETTINGS, **settings},
        "command": f"python -m eval.bench --batch {settings.get('batch', 1)}",
        "date": date,
        "device": {"kind": "NVIDIA H200", "platform": "gpu"},
        "versions": {"jax": "0.11.2"},
        "rates": {
            "copy_gb_per_s": 3800.0,
            "matmul_tflops": {"bfloat16": 700.0, "float8_e4m3fn": 1200.0},
        },
        "status": "ok",
        "seconds": 0.23 * ms,
        "nfe": [230],
        "nfe_mean": 230.0,
        "nfe_max": 230,
        "refreshes": 8,
        "ms_per_nfe": ms,
        "tokens": 256,
        "tokens_per_second": 1100 / ms,
        "ms_per_refresh": 5 * ms,
        "ms_per_step": ms,
        "floor_refresh": floor,
        "floor_step": floor,
        "floor_run": {"ms": 900.0, "ratio": 1.2},
        "columns": {"refresh_needed": 1056.0, "refresh_fed": 1088.0},
        "compile_seconds": 12.0,
        "program_memory_gb": 20.0,
    }


def drawn(rows: list[dict[str, Any]], directory: Path) -> set[str]:
    """Names of the pictures; each must be there in both formats and for both pages."""
    names = {path.name.removeprefix("performance-") for path in plots.draw(rows, directory)}
    pictures = {name.removesuffix(".png") for name in names if name.endswith(".png")}
    pictures = {name for name in pictures if not name.endswith("-dark")}
    expected = {f"{p}{dark}.{kind}" for p in pictures for dark in ("", "-dark")
                for kind in ("png", "svg")}  # fmt: skip
    assert names == expected
    return pictures


@pytest.mark.parametrize(
    ("more", "pictures"),
    [
        ([], set()),
        ([result(9.0, batch=4, shortest_prompt=600)], {"batches", "roofline"}),
        ([result(3.0, quantize="fp8")], {"quantised", "roofline"}),
        ([result(3.0, mesh="tensor=2")], {"meshes"}),
        ([result(5.5, gen_length=512)], {"lengths"}),
        ([result(4.0, rules="streaming")], set()),
        ([result(4.0, rules="streaming"), result(4.0, rules="streaming", gen_length=512)],
         {"lengths"}),
    ],
)  # fmt: skip
def test_a_picture_is_drawn_where_its_results_are_there(
    more: list[dict[str, Any]], pictures: set[str], tmp_path: Path
):
    assert drawn([result(), *more], tmp_path) == pictures


def test_other_programs_stand_beside_ours(tmp_path: Path):
    row = result(references=["original", "bonsai"])
    row["references"] = {"original": {"ms_per_nfe": 60.0}, "bonsai": {"error": "no torch"}}
    assert drawn([row], tmp_path) == {"programs"}
    # matplotlib draws letters as shapes and leaves the words in comments
    assert "60 ms" in (tmp_path / "performance-programs.svg").read_text()


def test_of_rules_timed_twice_the_latest_run_stands_beside_ours(tmp_path: Path):
    rows = [result(5.0, "2026-01-02", references=["original"], seed=1)]
    rows.append(result(6.0, references=["original"]))
    for row, ms in zip(rows, (50.0, 70.0), strict=True):
        row["references"] = {"original": {"ms_per_nfe": ms}}
    drawn(rows, tmp_path)
    said = (tmp_path / "performance-programs.svg").read_text()
    assert "50 ms" in said and "70 ms" not in said


def test_of_equal_settings_the_latest_counts(tmp_path: Path):
    rows = [
        result(3.0, "2026-01-03", quantize="fp8"),
        result(7.0, "2026-01-02", quantize="fp8"),
        result(),
    ]
    (chosen, *_) = plots.groups(rows, "quantize")
    assert [row["ms_per_step"] for row in chosen] == [5.0, 3.0]


def test_results_of_other_devices_or_versions_do_not_mix():
    rows = [result(), result(3.0, quantize="fp8"), result(2.0, quantize="int8")]
    rows[1]["device"] = {"kind": "NVIDIA H100", "platform": "gpu"}
    rows[2]["versions"] = {"jax": "0.10.2"}
    assert [len(group) for group in plots.groups(rows, "quantize")] == [1, 1, 1]


def test_both_pages_are_opaque_and_the_same_run_draws_the_same_bytes(tmp_path: Path):
    rows = [result(), result(3.0, quantize="fp8")]
    again = tmp_path / "again"
    again.mkdir()
    for path in plots.draw(rows, tmp_path):
        if path.suffix == ".png":
            corner = matplotlib.image.imread(path)[0, 0]
            assert corner.shape == (3,) or corner[3] == 1
            assert (corner[:3].mean() < 0.2) == ("-dark" in path.name)
    plots.draw(copy.deepcopy(rows), again)
    name = "performance-quantised.svg"
    assert (tmp_path / name).read_bytes() == (again / name).read_bytes()


def test_the_table_has_every_result_under_its_command(tmp_path: Path, capsys):
    failed = result(batch=64)
    failed |= {"status": "out of memory", "error": "RESOURCE_EXHAUSTED"}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"results": [result(), failed]}))
    plots.main([str(path), "--output", str(tmp_path)])
    out = capsys.readouterr().out
    assert "`python -m eval.bench --batch 1`" in out and "NVIDIA H200; jax 0.11.2" in out
    assert "| r2 | dual | 256 | 1 | bfloat16 | - | 230 | 1.150 | 5.00 | 25.00 (1.25x) |" in out
    assert "| r2 | dual | 256 | 64 | bfloat16 | - | out of memory |" in out


def test_what_was_only_compiled_is_a_table_of_its_own(tmp_path: Path, capsys):
    row = {
        "topology": "v5e-8", "devices": 8, "mesh": {"data": 1, "tensor": 8}, "batch": 1,
        "weight_bytes": 2**31, "total_bytes": 2**32, "hbm_bytes": 2**34, "fits": True,
        "compile_seconds": 132.4,
        "collectives": [
            {"where": "refresh", "kind": "all-reduce", "shapes": [], "bytes": 9e6, "count": 64},
            {"where": "block step", "kind": "all-reduce", "shapes": [], "bytes": 2e5, "count": 64},
            {"where": "block step", "kind": "all-gather", "shapes": [], "bytes": 1e3, "count": 2},
        ],
    }  # fmt: skip
    path = tmp_path / "compiled.json"
    content = {"command": "python -m eval.bench --compile-only", "versions": {"jax": "0.10.2"}}
    path.write_text(json.dumps({**content, "results": [row]}))
    plots.main([str(path), "--output", str(tmp_path)])
    out = capsys.readouterr().out
    assert "`python -m eval.bench --compile-only`" in out and "jax 0.10.2" in out
    assert (
        "| v5e-8 | data=1, tensor=8 | 1 | 2.0 GiB | 4.0 GiB | 16.0 GiB | yes | 576.0 MB "
        "| 12.8 MB | 132 |"
    ) in out


def test_mistakes_are_one_line(tmp_path: Path, capsys):
    path = tmp_path / "x.json"
    path.write_text("{}")
    for words in ([str(path), "-o", str(tmp_path)], [str(path), "-o", str(path)]):
        assert run("program", lambda words=words: plots.main(words)) == 2
        assert capsys.readouterr().err.count("\n") == 1
