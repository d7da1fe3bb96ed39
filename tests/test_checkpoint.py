"""Reading and saving checkpoints: both layouts, dtypes, meshes, and everything that is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from r2jax import checkpoint as checkpoint_module
from r2jax.checkpoint import CheckpointError, load, open_checkpoint, resolve, save, save_hf, write
from r2jax.config import ModelConfig
from r2jax.hf import hf_names
from r2jax.model import Transformer
from r2jax.sharding import make_mesh

GOLDEN = Path(__file__).parent / "golden" / "llada"


def copy_of(source: Path, target: Path) -> Path:
    """A writable checkpoint directory with a golden model's weights and configuration."""
    target.mkdir()
    for name in ("config.json", "model.safetensors"):
        (target / name).write_bytes((source / name).read_bytes())
    return target


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return copy_of(GOLDEN / "tiny-a", tmp_path / "tiny")


def rewrite(directory: Path, **changes: np.ndarray | None) -> None:
    """Change, add or (None) drop tensors of model.safetensors; "__" in a name stands for "."."""
    tensors = load_file(directory / "model.safetensors")
    for name, value in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if value is not None:
            tensors[name.replace("__", ".")] = value
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def shard(directory: Path) -> list[Path]:
    """Split model.safetensors into several files with an index."""
    parts = directory.with_name("parts")
    write(open_checkpoint(directory), "hf", parts, max_shard_size="100KB")
    shutil.rmtree(directory)
    parts.rename(directory)
    return sorted(directory.glob("*.safetensors"))


def parameters(model: Transformer) -> dict[str, np.ndarray]:
    return {
        ".".join(map(str, path)): np.asarray(param.get_value())
        for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }


def assert_same(a: Transformer, b: Transformer) -> None:
    left, right = parameters(a), parameters(b)
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


@pytest.mark.parametrize("name", ["tiny-a", "tiny-b"])
def test_loaded_model_has_the_golden_logits(name: str) -> None:
    golden = np.load(GOLDEN / name / "forward.npz")
    logits = load(GOLDEN / name)(jnp.asarray(golden["input_ids"]))
    np.testing.assert_allclose(logits, golden["logits"], atol=5e-4, rtol=0)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_every_stored_dtype_survives_both_layouts(tmp_path: Path, stored: str) -> None:
    model = load(GOLDEN / "tiny-a", stored)
    save_hf(model, tmp_path / "hf")
    save(model, tmp_path / "converted")
    for directory in ("hf", "converted"):
        again = load(tmp_path / directory)
        assert again.dtype == jnp.dtype(stored)
        assert_same(model, again)
    config = json.loads((tmp_path / "hf" / "config.json").read_bytes())
    assert ModelConfig.from_hf(config) == model.config
    assert config["dtype"] == stored


@pytest.mark.parametrize("layout", ["hf", "converted"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_load_on_a_mesh_equals_load_on_one_device(tiny: Path, layout: str, dtype: str) -> None:
    if layout == "converted":
        write(open_checkpoint(tiny), "converted", tiny.with_name("converted"))
        tiny = tiny.with_name("converted")
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    sharded = load(tiny, dtype, mesh, fused=True)
    assert_same(load(GOLDEN / "tiny-a", dtype, fused=True), sharded)
    weight = sharded.layers[0].qkv_proj.weight.get_value()
    assert {part.data.shape for part in weight.addressable_shards} == {(96, 32)}


def test_sharded_files_load_as_the_single_file(tiny: Path) -> None:
    assert len(shard(tiny)) > 2
    assert_same(load(GOLDEN / "tiny-a"), load(tiny))


def test_orbax_reads_a_saved_model_without_us(tmp_path: Path) -> None:
    model = load(GOLDEN / "tiny-a", "bfloat16")
    save(model, tmp_path / "saved")
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(tmp_path / "saved" / "params")
    np.testing.assert_array_equal(
        tree["layers"]["1"]["o_proj"]["weight"], model.layers[1].o_proj.weight.get_value()
    )


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orbax finds nothing under one."""
    monkeypatch.chdir(tmp_path)
    model = load(GOLDEN / "tiny-a")
    save(model, "saved")
    assert_same(model, load("saved"))


def test_a_trained_model_is_saved_with_its_files(tmp_path: Path) -> None:
    config = (GOLDEN / "tiny-a" / "config.json").read_bytes()
    mesh = make_mesh(fsdp=2, tensor=4)
    model = load(GOLDEN / "tiny-a", mesh=mesh)
    save_hf(model, tmp_path / "out", files={"config.json": config, "tokenizer.json": b"{}"})
    assert (tmp_path / "out" / "config.json").read_bytes() == config
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == b"{}"
    assert_same(load(GOLDEN / "tiny-a"), load(tmp_path / "out"))


def test_every_parameter_has_one_hugging_face_name() -> None:
    model = load(GOLDEN / "tiny-a")
    names = hf_names("llada", parameters(model))
    assert sorted(names.values()) == sorted(load_file(GOLDEN / "tiny-a" / "model.safetensors"))
    with pytest.raises(KeyError):
        hf_names("llada", ["layers.0.q_proj.bias"])


def test_missing_extra_and_misshapen_tensors_are_named_at_once(tiny: Path) -> None:
    blocks = "model__transformer__blocks__"
    rewrite(
        tiny,
        **{
            blocks + "0__q_proj__weight": None,
            blocks + "1__ff_out__weight": None,
            blocks + "9__ff_out__weight": np.zeros((2, 2), np.float32),
            "model__transformer__ln_f__weight": np.zeros(65, np.float32),
            "model__transformer__ff_out__weight": np.zeros((256, 64), np.int8),
        },
    )
    with pytest.raises(CheckpointError) as error:
        load(tiny)
    message = str(error.value)
    assert "2 missing: model.transformer.blocks.0.q_proj.weight, model" in message
    assert "1 unexpected: model.transformer.blocks.9.ff_out.weight" in message
    assert "model.transformer.ln_f.weight is [65], should be [64]" in message
    assert "neither bfloat16, float16 nor float32: model.transformer.ff_out.weight" in message


def test_a_converted_directory_is_checked_too(tiny: Path) -> None:
    write(open_checkpoint(tiny), "converted", tiny.with_name("converted"))
    config = json.loads((tiny / "config.json").read_bytes())
    config["n_layers"] = 3
    (tiny.with_name("converted") / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"9 missing: layers\.2\."):
        load(tiny.with_name("converted"))
    (tiny.with_name("converted") / "params" / "_METADATA").unlink()
    with pytest.raises(CheckpointError, match="no readable orbax checkpoint"):
        load(tiny.with_name("converted"))


def test_rotary_buffers_of_old_exports_are_left_out(tiny: Path) -> None:
    rewrite(tiny, model__blocks__0__rotary_emb__inv_freq=np.zeros(8, np.float32))
    assert open_checkpoint(tiny).skipped == ("model.blocks.0.rotary_emb.inv_freq",)
    assert_same(load(GOLDEN / "tiny-a"), load(tiny))


def test_mixed_dtypes_need_a_decision(tiny: Path) -> None:
    rewrite(tiny, model__transformer__ln_f__weight=np.ones(64, np.float16))
    with pytest.raises(CheckpointError, match="mixes float16, float32; say which dtype"):
        load(tiny)
    assert load(tiny, "float32").norm.weight.get_value().dtype == jnp.float32
    with pytest.raises(ValueError, match="dtype must be bfloat16, float16 or float32, got 'int8'"):
        load(tiny, "int8")


@pytest.mark.parametrize("keep", [4, 1000, 400_000])
def test_truncated_file_is_named_with_its_sizes(tiny: Path, keep: int) -> None:
    os.truncate(tiny / "model.safetensors", keep)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated") as error:
        load(tiny)
    assert f"{keep:,}" in str(error.value)
    assert ("462,256" in str(error.value)) == (keep == 400_000)


def test_a_file_that_is_no_safetensors_is_named(tiny: Path) -> None:
    (tiny / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"no")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no readable safetensors"):
        load(tiny)


def test_a_shard_truncated_after_opening_is_an_error(tiny: Path) -> None:
    tensor = open_checkpoint(tiny).tensors["head.weight"]
    os.truncate(tiny / "model.safetensors", 400_000)
    with pytest.raises(CheckpointError, match="should have 462,256 bytes, but has 400,000"):
        tensor.read()


def test_index_that_does_not_match_the_files(tiny: Path) -> None:
    files = shard(tiny)
    index = tiny / "model.safetensors.index.json"
    whole = json.loads(index.read_bytes())
    files[1].rename(tiny / "elsewhere")
    with pytest.raises(CheckpointError, match=f"names 1 absent files: {files[1].name}"):
        load(tiny)
    (tiny / "elsewhere").rename(files[1])
    name = "model.transformer.ln_f.weight"
    where = whole["weight_map"].pop(name)
    whole["weight_map"]["model.transformer.other"] = where
    index.write_text(json.dumps(whole))
    with pytest.raises(CheckpointError) as error:
        load(tiny)
    assert f"not there: model.transformer.other in {where}" in str(error.value)
    assert f"not listed: {name} in {where}" in str(error.value)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="should hold a JSON object, not a list"):
        load(tiny)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="has no weight_map"):
        load(tiny)
    index.unlink()
    with pytest.raises(CheckpointError, match="has neither model"):
        load(tiny)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "last.ckpt"])
def test_pickles_alone_are_refused_with_a_way_out(tiny: Path, name: str) -> None:
    (tiny / "model.safetensors").rename(tiny / name)
    with pytest.raises(CheckpointError, match=r"pickles only .* weights_only=True"):
        load(tiny)


def test_unusable_configurations(tiny: Path) -> None:
    config = tiny / "config.json"
    whole = json.loads(config.read_bytes())
    config.write_text(json.dumps(whole | {"model_type": "mamba"}))
    with pytest.raises(CheckpointError, match=r"config\.json: model_type is 'mamba'"):
        load(tiny)
    config.write_text(json.dumps(whole | {"weight_tying": True}))
    with pytest.raises(CheckpointError, match="weight_tying is True"):
        load(tiny)
    config.write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read as JSON"):
        load(tiny)
    config.unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load(tiny)


def test_a_directory_without_weights(tiny: Path) -> None:
    (tiny / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        load(tiny)


def test_a_mesh_that_cannot_hold_the_model(tiny: Path) -> None:
    """Three parts divide nothing; eight divide the projections, but would split the four heads."""
    for tensor in (3, 8):
        mesh = make_mesh(tensor=tensor, devices=jax.devices()[:tensor])
        with pytest.raises(ValueError, match=f"num_heads 4 .* tensor={tensor}"):
            load(tiny, mesh=mesh)
    with pytest.raises(ValueError, match="make_mesh"):
        load(tiny, mesh=jax.sharding.Mesh(np.array(jax.devices()), ("x",)))


def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "_BUNDLED", tmp_path)
    copy_of(GOLDEN / "tiny-a", tmp_path / "small")
    assert resolve("small") == tmp_path / "small"
    with pytest.raises(CheckpointError, match=r"'none' is not a directory.*\(small\)"):
        resolve("none")
    with pytest.raises(CheckpointError, match="is a file; give the directory"):
        resolve(tmp_path / "small" / "config.json")
    with pytest.raises(CheckpointError, match="is not a directory"):
        resolve(tmp_path / "absent" / "model")


def test_hub_ids_fetch_no_pickles_and_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def download(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(GOLDEN / "tiny-a")

    monkeypatch.setattr(checkpoint_module, "snapshot_download", download)
    assert resolve("owner/name") == GOLDEN / "tiny-a"
    assert asked["name"] == "owner/name"
    patterns = asked["allow_patterns"]
    assert isinstance(patterns, list)
    for name in ("pytorch_model.bin", "model.pt", "modeling_llada.py", "weights.ckpt"):
        assert not any(Path(name).match(pattern) for pattern in patterns)
    for name in ("model-00001-of-00002.safetensors", "tokenizer.model", "config.json"):
        assert any(Path(name).match(pattern) for pattern in patterns)
    ignored = asked["ignore_patterns"]
    assert isinstance(ignored, list) and "*.safetensors" not in ignored
    resolve("owner/name", weights=False)
    ignored = asked["ignore_patterns"]
    assert isinstance(ignored, list) and "*.safetensors" in ignored


def test_a_hub_id_without_the_hub_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="'owner/no-such-model' is not a directory, and the"):
        load("owner/no-such-model")
