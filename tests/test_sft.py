"""The training program from end to end on a toy problem (reverse a short list), and its parts."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from r2jax.config import ModelConfig
from r2jax.sharding import make_mesh, named_sharding
from train import sft
from train.config import LossConfig, OptimizerConfig, TrainConfig, read_config
from train.data import read_corpus, row_indices, take
from train.optimizer import make_optimizer
from train.run import Log, refuse_non_finite
from train.step import Template, make_initial, make_train_steps

MODEL = ModelConfig(
    vocab_size=16, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=2,
    head_dim=8, max_sequence_length=64, rope_theta=1e4, rms_norm_eps=1e-5,
    mask_id=0, eos_id=1, pad_id=1,
)  # fmt: skip
CONFIG = TrainConfig(
    model=MODEL,
    loss=LossConfig(block_length=8, stratified=True),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=5),
    gen_length=16, batch_size=16, steps=40, compute_dtype="float32", steps_per_call=10,
    eval_every=20, save_every=10, held_out=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompt: start, a list, end; answer: the list reversed, end of turn."""
    path = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = 300
    tokens = np.full((rows, 24), MODEL.pad_id, np.uint16)
    prompt_length = np.empty(rows, np.uint16)
    length = np.empty(rows, np.uint16)
    for i in range(rows):
        items = rng.integers(5, 16, rng.integers(2, 6))
        row = np.concatenate([[2], items, [3], items[::-1], [4]])
        tokens[i, : len(row)] = row
        prompt_length[i], length[i] = len(items) + 2, len(row)
    np.save(path / "tokens.npy", tokens)
    np.save(path / "prompt_length.npy", prompt_length)
    np.save(path / "length.npy", length)
    (path / "meta.json").write_text(
        json.dumps({"vocab_size": 16, "mask_id": 0, "eos_id": 1, "pad_id": 1})
    )
    return path


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG.to_dict()))
    return path


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def train(config: Path, corpus: Path, out: Path, *more: str) -> None:
    sft.main([str(config), "--corpus", str(corpus), "--out", str(out), *more])


def losses(out: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in metrics(out) if "loss" in line}


def test_learns_stops_and_resumes_bit_for_bit(
    corpus: Path, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = jax.devices()[:1]  # compiles in half the time
    monkeypatch.setattr(jax, "devices", lambda: one)
    train(config_file, corpus, tmp_path / "whole")
    whole = losses(tmp_path / "whole")
    assert list(whole) == [10, 20, 30, 40]
    assert whole[40] < 0.8 * whole[10]

    write = Log.write

    def terminate_at_20(self: Log, **values: Any) -> None:
        write(self, **values)
        if values["step"] == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", terminate_at_20)
        train(config_file, corpus, tmp_path / "parts")
    assert list(losses(tmp_path / "parts")) == [10, 20]
    train(config_file, corpus, tmp_path / "parts")
    assert losses(tmp_path / "parts") == whole
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "parts/model" / name).read_bytes() == (
            tmp_path / "whole/model" / name
        ).read_bytes()

    with pytest.raises(ValueError, match=r"loss\.block_fraction was 0\.75, now 0\.5"):
        train(config_file, corpus, tmp_path / "parts", "--set", "loss.block_fraction=0.5")


def run_steps(
    config: TrainConfig, corpus: Path, devices: int, fsdp: int = 1
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    mesh = make_mesh(data=devices // fsdp, fsdp=fsdp, devices=jax.devices()[:devices])
    template, optimizer = Template(config, mesh), make_optimizer(config.optimizer, config.steps)
    initial, _ = make_initial(template, optimizer)
    examples = config.batch_size // (2 if config.loss.complementary else 1)
    rows = row_indices(0, 0, 4, examples, 300)
    state, out = make_train_steps(config, template, optimizer)(
        initial(),
        jax.device_put(read_corpus(corpus, MODEL, config.gen_length), named_sharding(mesh, ())),
        jax.device_put(rows, named_sharding(mesh, (None, "batch"))),
    )
    return np.asarray(out["loss"]), {k: np.asarray(v) for k, v in state.params.items()}


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 (virtual) devices")
def test_eight_devices_equal_one(corpus: Path) -> None:
    """Rows split over all of them, parameters and moments over four."""
    config = dataclasses.replace(
        CONFIG, loss=dataclasses.replace(CONFIG.loss, complementary=True), batch_size=32
    )
    one, params = run_steps(config, corpus, 1)
    eight, other = run_steps(config, corpus, 8, fsdp=4)
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    for name, value in params.items():
        np.testing.assert_allclose(other[name], value, atol=1e-4, err_msg=name)


def test_muon_in_bfloat16_lowers_the_loss(corpus: Path) -> None:
    config = dataclasses.replace(
        CONFIG,
        compute_dtype="bfloat16",
        optimizer=OptimizerConfig(name="muon", learning_rate=1e-2, warmup_steps=0),
    )
    loss, params = run_steps(config, corpus, 1)
    assert loss[-1] < loss[0]
    assert {p.dtype for p in params.values()} == {np.dtype("float32")}


def test_every_epoch_reads_every_row_once() -> None:
    steps = row_indices(7, 0, 30, 10, 100)
    for epoch in steps.reshape(3, 100):
        assert sorted(epoch) == list(range(100))
    assert (steps[:10] != steps[10:20]).any()
    assert (row_indices(7, 13, 5, 10, 100) == steps[13:18]).all()
    # 7 rows a step do not divide an epoch: a batch spans two.
    assert sorted(row_indices(7, 0, 200, 7, 100).ravel()) == sorted(list(range(100)) * 14)


def test_rows_are_cut_at_the_prompt(corpus: Path) -> None:
    rows = read_corpus(corpus, MODEL, 16)
    batch = jax.tree.map(np.asarray, take(rows, np.asarray([5, 17])))
    for b, i in enumerate([5, 17]):
        p, n = int(rows.prompt_length[i]), int(rows.length[i])
        assert batch.prompt[b].tolist() == [*rows.tokens[i, :p], *[1] * (rows.prompt_width - p)]
        assert batch.answer[b].tolist() == [*rows.tokens[i, p:n], *[1] * (16 - n + p)]
        assert batch.answer_length[b] == n - p


def test_refuses_what_does_not_fit(corpus: Path, config_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="300 rows, of which 320 are held out"):
        train(config_file, corpus, tmp_path / "out", "--set", "held_out=320")
    with pytest.raises(ValueError, match="rows have an answer longer than gen_length = 4"):
        read_corpus(corpus, MODEL, 4)
    with pytest.raises(ValueError, match="mask_id is 0, the model's is 5"):
        read_corpus(corpus, dataclasses.replace(MODEL, mask_id=5), 16)
    with pytest.raises(ValueError, match="exceed max_sequence_length = 32"):
        read_corpus(corpus, dataclasses.replace(MODEL, max_sequence_length=32), 16)
    for change, message in (
        ("gen_length=12", r"gen_length must be a multiple of loss.block_length = 8, got 12"),
        ("optimizer.name=sgd", r"optimizer.name must be one of adamw, muon, got 'sgd'"),
        ("loss.block=8", r"loss: unknown block"),
        ("steps=45", r"steps must be a multiple of steps_per_call = 10, got 45"),
        ("steps", r"write name=value"),
    ):
        with pytest.raises(ValueError, match=message):
            read_config(config_file, [change])


def test_names_the_first_step_without_a_finite_loss() -> None:
    with pytest.raises(FloatingPointError, match="loss of step 102 is nan"):
        refuse_non_finite(np.asarray([1.0, 2.0, np.nan, np.inf]), 100)
