"""Dream's checkpoints through the same programs as LLaDA's: read, converted both ways, verified,
quantised, sharded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import r2jax
from convert.__main__ import main
from convert.verify import verify
from r2jax.attention import rotary, rotate
from r2jax.checkpoint import (
    CheckpointError,
    load,
    open_checkpoint,
    parameter_shapes,
    save,
    save_hf,
)
from r2jax.config import DREAM_7B, ModelConfig
from r2jax.hf import hf_names
from r2jax.model import Transformer
from tests.test_checkpoint import assert_same, copy_of, parameters

GOLDEN = Path(__file__).parent / "golden" / "dream"
NAMES = ("dream-a", "dream-b")
SOURCE = GOLDEN / "dream-b"


forward = jax.jit(lambda model, tokens: model(tokens))


def golden_logits(model: Transformer, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Ours and the original program's, of the same tokens."""
    stored = np.load(GOLDEN / name / "forward.npz")
    return np.asarray(forward(model, jnp.asarray(stored["input_ids"]))), stored["logits"]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_model_has_the_golden_logits(name: str, fused: bool):
    """Largest difference found: 6e-5, where logits reach 40."""
    ours, theirs = golden_logits(load(GOLDEN / name, fused=fused), name)
    np.testing.assert_allclose(ours, theirs, atol=3e-4, rtol=0)


@pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj"])
def test_the_golden_logits_need_every_bias(part: str):
    model = load(SOURCE)
    bias = getattr(model.layers[1], part).bias
    bias.set_value(jnp.zeros_like(bias[...]))
    ours, theirs = golden_logits(model, SOURCE.name)
    assert np.abs(ours - theirs).max() > 0.1


def test_every_parameter_has_one_hugging_face_name():
    names = hf_names("Dream", parameters(load(SOURCE)))
    stored = load_file(SOURCE / "model.safetensors")
    assert sorted(names.values()) == sorted(stored)
    for index in (0, 2):
        name = f"model.layers.{index}.self_attn.v_proj.bias"
        bias = open_checkpoint(SOURCE).tensors[f"layers.{index}.v_proj.bias"].read()
        np.testing.assert_array_equal(bias, stored[name])


def test_the_published_sizes():
    """Qwen2.5-7B's count of parameters, and the shapes that the tensors are published with."""
    shapes = parameter_shapes(DREAM_7B)
    names = hf_names("Dream", shapes)
    found = {names[name]: shape for name, shape in shapes.items()}
    assert sum(math.prod(shape) for shape in found.values()) == 7_615_616_512
    assert found["model.embed_tokens.weight"] == found["lm_head.weight"] == (152064, 3584)
    layer = "model.layers.27.self_attn"
    assert found[f"{layer}.q_proj.weight"] == found[f"{layer}.o_proj.weight"] == (3584, 3584)
    assert found[f"{layer}.k_proj.weight"] == (512, 3584)
    assert found[f"{layer}.v_proj.bias"] == (512,)
    assert found["model.layers.0.mlp.gate_proj.weight"] == (18944, 3584)
    assert found["model.layers.0.mlp.down_proj.weight"] == (3584, 18944)


def test_there_and_back_keeps_every_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = copy_of(SOURCE, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.self_attn.k_proj.bias"][:3] = (np.nan, -0.0, np.inf)
    save_file(tensors, source / "model.safetensors")
    converted, back = tmp_path / "converted", tmp_path / "back"
    assert main(["from-hf", str(source), str(converted)]) == 0
    assert f"{len(tensors)} tensors, " in capsys.readouterr().out
    assert main(["to-hf", str(converted), str(back), "--max-shard-size", "100KB"]) == 0
    files = sorted(back.glob("*.safetensors"))
    assert len(files) > 2
    again = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert again.keys() == tensors.keys()
    assert all(again[name].tobytes() == tensors[name].tobytes() for name in tensors)
    kept = (source / "config.json").read_bytes()
    assert (converted / "config.json").read_bytes() == (back / "config.json").read_bytes() == kept


def test_verify_compares_either_layout(tmp_path: Path):
    converted = tmp_path / "converted"
    assert main(["from-hf", str(SOURCE), str(converted)]) == 0
    assert verify(str(SOURCE), str(converted)).max_difference == 0
    other = copy_of(SOURCE, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.2.self_attn.q_proj.bias"] += np.float32(0.01)
    save_file(tensors, other / "model.safetensors")
    assert verify(str(converted), str(other)).max_difference > 1e-4


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_saved_model_loads_again(tmp_path: Path, stored: str, fused: bool):
    """With the config.json that we write, too."""
    model = load(SOURCE, stored, fused=fused)
    save(model, tmp_path / "converted")
    save_hf(model, tmp_path / "hf", max_shard_size="100KB")
    for layout in ("converted", "hf"):
        assert_same(load(tmp_path / layout, fused=fused), model)
        config = json.loads((tmp_path / layout / "config.json").read_bytes())
        assert ModelConfig.from_hf(config) == model.config
        assert config["torch_dtype"] == stored and config["architectures"] == ["DreamModel"]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_on_a_mesh_biases_lie_with_their_rows(quantize: Any, fused: bool):
    mesh = r2jax.make_mesh(data=2, fsdp=2, tensor=2)
    model = load(SOURCE, "float32", quantize=quantize, fused=fused)
    sharded = load(SOURCE, "float32", mesh, quantize=quantize, fused=fused)
    assert_same(model, sharded)
    layer = sharded.layers[0]
    parts = [layer.qkv_proj] if fused else [layer.q_proj, layer.k_proj, layer.v_proj]
    for part in parts:
        assert part.bias is not None
        weight, bias = part.weight.get_value(), part.bias.get_value()
        assert bias.shape == weight.shape[:1]
        rows = {s.device: s.index[0] for s in weight.addressable_shards}
        assert {s.device: s.index[0] for s in bias.addressable_shards} == rows
        assert len({(r.start, r.stop) for r in rows.values()}) == 2
    if quantize is None:  # 8-bit operands: a sum in another order may round one to its neighbour
        ours, theirs = golden_logits(sharded, SOURCE.name)
        np.testing.assert_allclose(ours, theirs, atol=3e-4, rtol=0)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_quantised_biases_stay_as_they_are(tmp_path: Path, kind: str):
    narrow = tmp_path / "narrow"
    assert main(["from-hf", str(SOURCE), str(narrow), "--quantize", kind]) == 0
    found, plain = open_checkpoint(narrow), open_checkpoint(SOURCE)
    assert found.quantized == kind
    biases = [name for name in plain.tensors if name.endswith("bias")]
    assert len(biases) == 3 * plain.config.num_layers
    for name in biases:
        assert found.tensors[name].read().tobytes() == plain.tensors[name].read().tobytes()
        assert name.removesuffix("bias") + "scale" in found.tensors
    assert_same(load(narrow, fused=True), load(SOURCE, quantize=found.quantized, fused=True))
    result = verify(str(SOURCE), str(narrow))
    assert result.agreement > 0.5 and 1e-3 < result.mean_kl < 1


def test_what_is_missing_is_named_as_the_file_names_it(tmp_path: Path):
    source = copy_of(SOURCE, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.1.self_attn.k_proj.bias"]
    tensors["model.layers.0.self_attn.o_proj.bias"] = np.zeros(64, np.float32)
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load(source)
    assert "1 missing: model.layers.1.self_attn.k_proj.bias" in str(error.value)
    assert "model.layers.0.self_attn.o_proj.bias" in str(error.value)


def stepwise(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, dtype: Any) -> np.ndarray:
    """The rotation as PyTorch runs it in `dtype`: every product and sum is rounded."""
    x, cos, sin = (y.astype(dtype) for y in (x, cos[:, :, None], sin[:, :, None]))
    a, b = np.split(x, 2, axis=-1)
    return x * cos + np.concatenate([-b, a], axis=-1) * sin


def test_the_rotation_rounds_where_the_configuration_says():
    positions = jnp.arange(600, 632)[None]
    x = np.random.default_rng(0).normal(size=(1, 32, 2, 64)).astype(ml_dtypes.bfloat16)
    cos, sin = (np.asarray(y) for y in rotary(positions, 64, 1e6))

    @jax.jit
    def run(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        rounded, precise = (rotary(positions, 64, 1e6, d) for d in (jnp.bfloat16, jnp.float32))
        return rotate(x, *rounded), rotate(x, *precise)

    rounded, precise = (np.asarray(y) for y in run(jnp.asarray(x)))
    assert rounded.dtype == precise.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(rounded, stepwise(x, cos, sin, ml_dtypes.bfloat16))
    float32 = stepwise(x, cos, sin, np.float32).astype(ml_dtypes.bfloat16)
    assert (precise == float32).mean() > 0.999  # a fused multiply-add rounds once less
    assert (rounded != precise).mean() > 0.1


def test_a_model_rotates_in_its_dtype_where_the_configuration_says(
    monkeypatch: pytest.MonkeyPatch,
):
    seen: list[Any] = []

    def note(*args: Any) -> Any:
        seen.append(jnp.dtype(args[-1]))
        return rotary(*args)

    monkeypatch.setattr("r2jax.model.rotary", note)
    tokens = jnp.arange(4)[None]
    for source in (SOURCE, GOLDEN.parent / "llada" / "tiny-a"):
        for dtype in ("float32", "bfloat16"):
            jax.eval_shape(load(source, dtype).__call__, tokens)
    assert seen == [jnp.float32, jnp.bfloat16, jnp.float32, jnp.float32]
