"""The benchmark program: what it counts, what it writes, and what it refuses before any work."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import r2jax
from eval import bench, bench_cases, device, floors, layers, measure, profile_summary
from eval.bench_cases import random_prompts
from eval.random_model import SIZES, random_model
from r2jax.cache import LayerCache
from r2jax.cli import run
from r2jax.layout import layout
from tests import tiny_checkpoint as tiny
from tests.test_plots import result

WORDS = [
    *("--size", "tiny", "--dtype", "float32", "--prompt-length", "70"),
    *("--gen-length", "32", "--block-length", "16"),
]


@pytest.fixture(scope="module")
def model() -> r2jax.Transformer:
    return random_model(SIZES["tiny"], jnp.float32)


@functools.cache
def measured() -> floors.Rates:
    """This machine's: two seconds of work."""
    return device.measure_rates({"float32"})


@pytest.fixture(autouse=True)
def measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def rates(dtypes: set[str]) -> floors.Rates:
        assert dtypes == {"float32"}
        return measured()

    monkeypatch.setattr(bench, "measure_rates", rates)


def read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["results"]


def test_bench_writes_what_it_measured_and_does_not_measure_it_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "bench.json"
    words = [*WORDS, "--repeats", "1", "--batch", "1", "2", "--unequal", "20"]
    words += ["--target-nfe", "12", "--lock-step", "--output", str(path)]
    bench.main(words)
    one, two = read(path)
    assert "tokens/s" in capsys.readouterr().out
    for row in (one, two):
        assert row["status"] == "ok" and row["refreshes"] == 2 and 2 < row["nfe_max"] <= 32
        assert row["ms_per_refresh"] > 0 and row["compile_seconds"] > 0
        assert row["ms_per_nfe"] == pytest.approx(1e3 * row["seconds"] / row["nfe_max"])
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
        ratio = row["ms_per_step"] / row["floor_step"]["ms"]
        assert row["floor_step"]["ratio"] == pytest.approx(ratio)
        assert row["columns"]["refresh_needed"] == 32 + np.mean(row["prompt_lengths"])
        assert row["columns"]["refresh_fed"] == 32 + 128 and row["columns"]["step_fed"] == 16
    composed = 2 * one["ms_per_refresh"] + 10 * one["ms_per_step"]
    assert one["composed_at_target_nfe"]["seconds"] == pytest.approx(composed / 1e3)
    assert abs(one["run_at_target_nfe"]["nfe_max"] - 12) < abs(one["nfe_max"] - 12)
    assert "composed_at_target_nfe" not in two and "lock_step" not in one
    assert two["lock_step"]["forwards_in_lock_step"] >= two["nfe_max"]
    assert two["lock_step"]["forwards_if_independent"] == two["nfe_max"]
    assert two["lock_step"]["mean_forwards_of_a_row"] == two["nfe_mean"]
    assert two["lock_step"]["bound_on_gain_of_independent_rows"] >= 1
    assert str(tmp_path) not in one["command"] and "--output bench.json" in one["command"]
    assert one["load"]["seconds"] > 0 and one["load"]["weights_gb"] == two["load"]["weights_gb"]
    assert two["prompt_lengths"][0] == 70 and 20 <= two["prompt_lengths"][1] <= 70
    assert one["nfe"] == two["nfe"][:1]  # a row is the same in any batch

    def not_again(*_: Any) -> None:
        raise AssertionError("weights were drawn for what is in the file already")

    monkeypatch.setattr(bench, "_model", not_again)
    bench.main(words)
    assert read(path) == [one, two]


def test_our_numbers_are_kept_before_other_programs_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "bench.json"
    seen: list[dict[str, Any]] = []

    def cut(*_: Any) -> None:
        seen.extend(read(path))
        raise KeyboardInterrupt

    checkout = tmp_path / "checkout"
    monkeypatch.setattr(bench, "parse_reference", lambda word: tuple(word.split("=")))
    monkeypatch.setattr(bench_cases, "check_reference", lambda *_: None)
    monkeypatch.setattr(bench, "_references", cut)
    others = ("settings", "device", "versions", "date", "command")
    said = {k: v for k, v in result().items() if k not in others}
    monkeypatch.setattr(bench, "measure", lambda *_, **__: (None, said))
    words = [*WORDS, "--reference", f"original={checkout}", "--output", str(path)]
    assert run("program", lambda: bench.main(words)) == 130
    assert [row["status"] for row in seen] == ["ok"] and "references" not in seen[0]
    monkeypatch.setattr(bench, "_references", lambda *_: {"original": {"error": "no torch"}})
    bench.main(words)  # not done yet: the other program is still to be timed
    (row,) = read(path)
    assert row["references"] == {"original": {"error": "no torch"}}
    assert str(tmp_path) not in row["command"] and "original=checkout" in row["command"]


def test_an_error_is_a_result_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = {
        2: jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
        3: RuntimeError("broken"),
    }

    def measured(*_: Any, batch: int, **__: Any) -> tuple[None, dict[str, Any]]:
        if batch in broken:
            raise broken[batch]
        said = result()
        return None, {
            k: said[k] for k in said if k not in ("settings", "device", "versions", "date")
        }

    monkeypatch.setattr(bench, "measure", measured)
    path = tmp_path / "bench.json"
    words = [*WORDS, "--batch", "2", "3", "1", "--output", str(path)]
    bench.main(words)
    before = {row["settings"]["batch"]: row for row in read(path)}
    status = {batch: row["status"] for batch, row in before.items()}
    assert status == {2: "out of memory", 3: "failed", 1: "ok"}
    broken.clear()
    bench.main(words)  # what failed for another reason is tried again
    after = {row["settings"]["batch"]: row for row in read(path)}
    assert after[3]["status"] == "ok" and after[1] == before[1] and after[2] == before[2]


@pytest.mark.parametrize("rules", ["r2", "vanilla"])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_the_two_schedules_take_the_forwards_they_should(model, rules: str, cache: str):
    config = getattr(r2jax.DecodeConfig, rules)(gen_length=16, block_length=8, cache=cache)
    prompts = random_prompts(3, 9, 2, SIZES["tiny"].mask_id, 0)
    program = measure.Program(model, config, measure.pad(prompts, 9))
    slow = program.run(**measure.BEST_ONLY, steps_per_block=8)
    fast = program.run(**measure.ONE_PASS)
    assert slow.nfe.tolist() == [16] * 3 and fast.nfe.tolist() == [2] * 3
    assert fast.refreshes.tolist() == [2] * 3


def test_a_run_is_brought_to_a_wanted_nfe(model):
    config = r2jax.DecodeConfig.r2(gen_length=64, block_length=16)
    program = measure.Program(model, config, measure.pad([list(range(1, 30))], 29))
    natural = int(program.run().nfe[0])
    for target in (8, natural - 2):
        found = measure.run_at_nfe(program, target, 1, (0,))
        assert abs(found["nfe_max"] - target) <= 2
        assert program.run(threshold=found["threshold"]).nfe.tolist() == found["nfe"]


def test_tokens_are_counted_up_to_the_first_end():
    tokens = np.array([[5, 6, 7, 8], [5, 0, 7, 0], [0, 5, 5, 5], [5, 5, 5, 9]])
    assert measure.answer_tokens(tokens, (0, 9)) == 4 + 1 + 0 + 3


def test_forwards_per_block_are_those_of_the_trace(model):
    config = r2jax.DecodeConfig.r2(gen_length=32, block_length=8)
    prompts = random_prompts(4, 20, 3, SIZES["tiny"].mask_id, 1)
    (forwards,) = measure.trajectories(model, config, prompts, 4, None)
    out = r2jax.generate(model, prompts, config)
    assert forwards.shape == (4, 4) and (forwards >= 1).all()
    assert forwards.sum(axis=1).tolist() == out.nfe.tolist()


def test_an_idle_forward_counts_to_the_next_block_and_at_the_end_to_the_last():
    mask, rest = 9, [-1] * 4
    states = np.array([[[9, 9, 9, 9], [1, 1, 9, 9], [1, 1, 9, 9], [1, 1, 2, 2], rest]])
    assert measure.forwards_per_block(states, mask, 2).tolist() == [[1, 3]]


@pytest.mark.parametrize("size", ["tiny", "tiny-dream"])
def test_a_refresh_and_a_step_are_told_apart(size: str, monkeypatch: pytest.MonkeyPatch):
    """Dream's refreshes never come without a step."""
    model = random_model(SIZES[size], jnp.float32)
    config = r2jax.DecodeConfig.r2(gen_length=32, block_length=8)
    program = measure.Program(model, config, measure.pad([[5, 6, 7]], 3))

    def timed(run: Any, repeats: int) -> tuple[Any, float]:
        out = run()
        refreshes = int(out.refreshes.max())
        return out, 0.030 * refreshes + 0.004 * (int(out.nfe.max()) - refreshes)

    monkeypatch.setattr(measure, "timed_result", timed)
    real = {"nfe_max": 11, "refreshes": 4, "seconds": 0.0}
    assert measure.split_times(program, real, 1) == pytest.approx((30, 4))
    nfe = program.run(**measure.ONE_PASS).nfe.tolist()
    assert nfe == ([8] if size == "tiny-dream" else [4])


def test_lock_step_costs_the_sum_of_the_longest():
    forwards = np.array([[3, 1], [1, 4]])  # in lock step 3 + 4, the longer row alone 5
    result = measure.lock_step([forwards], 10.0, 1.0)
    assert result["forwards_in_lock_step"] == 7 and result["forwards_if_independent"] == 5
    assert result["bound_on_gain_of_independent_rows"] == pytest.approx((20 + 5) / (20 + 3))


@pytest.mark.parametrize("size", ["tiny", "tiny-dream"])
@pytest.mark.parametrize("refresh", [True, False])
def test_flops_are_those_that_xla_counts(size: str, refresh: bool):
    sizes = SIZES[size]
    model = random_model(sizes, jnp.float32)
    config = r2jax.DecodeConfig.r2(gen_length=32, block_length=32)
    batch, prompt = 2, 96
    counted = floors.work(model, config, [prompt] * batch, refresh=refresh)
    positions, lengths = layout(jnp.full((batch,), prompt), 32, prompt)
    fed = 128 if refresh else 32
    tokens = jnp.ones((batch, fed), jnp.int32)
    kv = jnp.zeros((batch, 128, sizes.num_kv_heads, sizes.head_dim))
    cache = None if refresh else (LayerCache(kv, kv),) * sizes.num_layers

    def forward(model, cache):
        hidden, new = model.hidden(
            tokens, positions[:, :fed], lengths, cache, wanted=lambda x: x[:, :32]
        )
        return model.logits(hidden), new

    analysis = jax.jit(forward).lower(model, cache).compile().cost_analysis()
    assert analysis is not None
    # XLA also counts norms, rotations, the softmax: at this width some 6 % of all. In a refresh our
    # last layer attends from every column, where the floor counts the block's: another 10 % here.
    rel = 0.25 if refresh else 0.12
    assert counted.flops["float32"] == pytest.approx(analysis["flops"], rel=rel)
    assert counted.flops["float32"] < analysis["flops"]


@pytest.mark.parametrize("size", ["tiny", "tiny-dream"])
def test_bytes_by_hand(size: str):
    sizes = SIZES[size]
    model = random_model(sizes, jnp.bfloat16)
    d, f, v = sizes.hidden_size, sizes.intermediate_size, sizes.vocab_size
    k = sizes.num_kv_heads * sizes.head_dim
    bias = d + 2 * k if sizes.qkv_bias else 0
    weights = 2 * (2 * (2 * d * d + 2 * d * k + bias + 3 * d * f + 2 * d) + d * v + d)
    kv = 2 * 2 * 2 * k * (2 * 64 + 10 + 30)  # keys and values, bf16, layers, columns of both rows
    config = r2jax.DecodeConfig.r2(gen_length=64, block_length=16)
    assert floors.work(model, config, [10, 30], refresh=False).bytes == weights + kv


def test_a_floor_needs_the_rates_of_products_alone():
    """Scales in float32 multiply no matrix; a product whose rate is unknown leaves no floor."""
    rates = floors.Rates(1e12, {"int8": 1e15, "bfloat16": 1e14})
    flops = {"int8": 2e12, "bfloat16": 1e11, "float32": 0.0}
    assert rates.seconds(floors.Work(3e9, flops)) == pytest.approx((3e-3, 3e-3))
    assert rates.seconds(floors.Work(3e9, {**flops, "float32": 1.0})) is None


def test_results_under_other_flags_are_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XLA_FLAGS")
    plain = device.describe()
    assert "XLA_FLAGS" not in plain["versions"]
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=somewhere --xla_gpu_autotune_level=0")
    flags = {"XLA_FLAGS": "--xla_gpu_autotune_level=0"}
    assert device.describe() == {**plain, "versions": {**plain["versions"], **flags}}


def test_a_mesh_shares_the_work_and_keeps_the_answer(tmp_path: Path):
    path = tmp_path / "bench.json"
    meshes = ["none", "tensor=2", "data=2"]
    more = ["--repeats", "1", "--batch", "3", "--mesh", *meshes, "--output", str(path)]
    bench.main([*WORDS, *more])
    one, tensor, data = read(path)
    assert one["nfe"] == tensor["nfe"] == data["nfe"]
    for name in ("floor_step", "floor_refresh"):
        shares = [row[name]["flops"]["float32"] / one[name]["flops"]["float32"]
                  for row in (tensor, data)]  # fmt: skip
        assert shares == pytest.approx([1 / 2, 2 / 3])  # the fuller device has two rows
    saved = one["floor_step"]["bytes"] - data["floor_step"]["bytes"]
    assert 0 < saved < one["floor_step"]["bytes"] / 2  # one row's keys, not the weights
    assert tensor["floor_step"]["bytes"] == pytest.approx(one["floor_step"]["bytes"] / 2, rel=0.01)


def test_random_weights_are_the_same_on_a_mesh(model):
    mesh = r2jax.make_mesh(tensor=2, devices=jax.devices()[:2])
    split = random_model(SIZES["tiny"], jnp.float32, mesh=mesh)
    ours, theirs = model.head.weight[...], split.head.weight[...]
    assert theirs.sharding.shard_shape(theirs.shape) == (256, 64)
    np.testing.assert_array_equal(ours, theirs)


def test_columns_of_each_cache():
    def of(**options: Any) -> list[tuple[int, int]]:
        config = r2jax.DecodeConfig(gen_length=48, block_length=16, **options)
        return [floors.columns(config, block) for block in range(3)]

    assert of(cache="dual") == [(48, 16)] * 3
    assert of(cache="none") == [(48, 48)] * 3
    assert of(cache="prefix") == [(48, 48), (48, 32), (48, 16)]


def test_a_profile_is_summed_by_kernel_and_idle_time():
    kernel = profile_summary.Kernel
    found = [
        kernel("void gemm<float, 3>(int)", 5e6, 7e6),
        kernel("loop_fusion_12", 0, 2e6),
        kernel("loop_fusion.3", 1e6, 4e6),
    ]
    result = profile_summary.summary(found)
    assert result["span_ms"] == 7 and result["idle_ms"] == 1 and result["gaps"] == 1
    assert result["kernels"] == [
        {"name": "loop_fusion", "ms": 5, "launches": 2},
        {"name": "gemm", "ms": 2, "launches": 1},
    ]


def test_a_real_trace_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    multiply = jax.jit(lambda x: x @ x)
    x = jnp.ones((300, 300))
    jax.block_until_ready(multiply(x))
    with jax.profiler.trace(tmp_path):
        jax.block_until_ready(multiply(x))
    assert profile_summary.summarise(tmp_path)["launches"] == 1
    assert run("program", lambda: profile_summary.main([str(tmp_path)])) == 0
    assert "launches" in capsys.readouterr().out
    assert run("program", lambda: profile_summary.main([str(tmp_path / "none")])) == 2


def test_rates_are_of_the_right_order():
    rates = measured()
    assert 1e8 < rates.bytes_per_second < 1e13
    assert 1e8 < rates.flops_per_second["float32"] < 1e16


def test_problems_are_the_prompts(tmp_path: Path):
    checkpoint = tiny.write_checkpoint(tmp_path / "tiny")
    problems = tmp_path / "problems.jsonl"
    rows = [{"question": "1 + " * i + "1 ?", "answer": "#### 2"} for i in range(5)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "bench.json"
    words = ["--checkpoint", str(checkpoint), "--problems", str(problems), "--batch", "2"]
    words += ["--gen-length", "16", "--block-length", "8", "--dtype", "float32", "--lock-step"]
    bench.main([*words, "--repeats", "1", "--output", str(path)])
    (row,) = read(path)
    assert len(set(row["prompt_lengths"])) == 2 and row["lock_step"]["batches"] == 2
    assert row["settings"]["prompt_length"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--output /nowhere/b.json", "no such directory"),
        ("--batch 1 0", "--batch must be at least 1"),
        ("--gen-length 32 100", "multiple of block_length"),
        ("--prompt-length 4000", "leaves room for"),
        ("--mesh tensors=2", "must be none or such as"),
        ("--mesh tensor=8", "num_heads 4 cannot be split evenly"),
        ("--mesh data=64", "needs 64 devices"),
        ("--problems x", "--problems needs --checkpoint"),
        ("--reference other=x", "original"),
    ],
)
def test_a_mistake_is_one_line_before_any_weight(words: str, message: str, capsys, monkeypatch):
    monkeypatch.setattr(bench, "_model", None)  # calling it is an error of another kind
    monkeypatch.setattr(bench, "measure_rates", None)
    assert run("program", lambda: bench.main(["--size", "tiny", *words.split()])) == 2
    error = capsys.readouterr().err
    assert error.startswith("program: error: ") and message in error and error.count("\n") == 1


def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path, capsys):
    path = tmp_path / "x.json"
    path.write_text('{"mine": 1}')
    assert run("program", lambda: bench.main([*WORDS, "--output", str(path)])) == 2
    assert "no file of eval.bench" in capsys.readouterr().err
    assert path.read_text() == '{"mine": 1}'


def test_layers_alone(tmp_path: Path):
    """A row a kind of weights, with and without kernels where there are any."""
    output = tmp_path / "layers.json"
    layers.main(["--size", "tiny", "--layers", "1", "--quantize", "int8", "--output", str(output)])
    (row,) = json.loads(output.read_text())["results"]
    assert row["quantize"] == "int8" and row["kernels"] is False
    assert 0 < row["step_us"] < row["refresh_us"]
    with pytest.raises(ValueError, match="--layers and --batch must be at least 1"):
        layers.main(["--size", "tiny", "--layers", "0"])
