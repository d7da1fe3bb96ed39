"""From a checkpoint's tensors to a model and back: fused, quantised, sharded, saved."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import r2jax
from r2jax import weights
from r2jax.checkpoint import (
    CheckpointError,
    load,
    open_checkpoint,
    quantized,
    save,
    save_hf,
    write,
)
from r2jax.quantize import DTYPES, Quantization, quantize_rows
from r2jax.weights import apart, assemble, for_decoding, parameters_of
from tests.test_checkpoint import GOLDEN
from tests.test_model import model as grouped_model

KINDS: tuple[Quantization, ...] = ("fp8", "int8")
SOURCE = GOLDEN / "tiny-b"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PROMPTS = [[7, 8, 9], [20] * 11]
DECODE = r2jax.DecodeConfig(gen_length=32, block_length=16)


def content(model: r2jax.Transformer) -> dict[str, tuple[Any, bytes]]:
    """Dtype and bytes of every parameter as it lies in the model."""
    values = {name: np.asarray(p.get_value()) for name, p in parameters_of(model).items()}
    return {name: (value.dtype, value.tobytes()) for name, value in values.items()}


def stored(directory: Path) -> dict[str, tuple[Any, bytes]]:
    tensors = open_checkpoint(directory).tensors
    return {name: (tensor.dtype, tensor.read().tobytes()) for name, tensor in tensors.items()}


@pytest.mark.parametrize("quantize", [None, *KINDS])
def test_loading_fused_is_loading_apart_and_fusing(quantize: Quantization | None):
    separate = load(SOURCE, "bfloat16", fused=False)
    fused = load(SOURCE, "bfloat16", quantize=quantize, fused=True)
    assert content(for_decoding(separate, quantize)) == content(fused)
    assert content(separate) == content(load(SOURCE, "bfloat16", fused=False))  # left as it was
    again = apart(load(SOURCE, "bfloat16", quantize=quantize, fused=False))
    assert {n: t.read().tobytes() for n, t in apart(fused).items()} == {
        n: t.read().tobytes() for n, t in again.items()
    }


@pytest.mark.parametrize("nvidia", [False, True])
def test_weights_are_fused_where_that_pays(nvidia: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(weights, "on_nvidia", lambda: nvidia)
    assert hasattr(load(SOURCE).layers[0], "qkv_proj") == nvidia
    assert not hasattr(load(SOURCE, fused=False).layers[0], "qkv_proj")
    assert hasattr(load(SOURCE, fused=True).layers[0], "qkv_proj")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fused", [False, True])
def test_projections_are_narrowed_and_nothing_else(kind: Quantization, fused: bool):
    plain = apart(load(SOURCE, "float16", fused=False))
    found = apart(load(SOURCE, "float16", quantize=kind, fused=fused))
    for name, tensor in plain.items():
        if name.split(".")[-2] not in PROJECTIONS:
            assert found.pop(name).read().tobytes() == tensor.read().tobytes()
            continue
        narrow, scale = quantize_rows(jnp.asarray(tensor.read()), DTYPES[kind])
        ours = found.pop(name)
        assert ours.dtype == DTYPES[kind] and ours.read().tobytes() == np.asarray(narrow).tobytes()
        np.testing.assert_allclose(
            found.pop(name.replace("weight", "scale")).read(), scale, rtol=1e-6
        )
    assert not found


def test_a_biased_model_of_grouped_queries_is_quantised_with_its_biases():
    model = grouped_model()
    narrow = for_decoding(model, "int8")
    parts = apart(narrow)
    for name, tensor in apart(model).items():
        if name.endswith("bias"):
            assert parts[name].read().tobytes() == tensor.read().tobytes()
    tokens = jnp.arange(6, 18)[None]
    probabilities, ours = jax.nn.softmax(model(tokens)), jax.nn.softmax(narrow(tokens))
    assert 0 < float(jnp.abs(ours - probabilities).max()) < 0.02


@pytest.mark.parametrize("quantize", [None, *KINDS])
@pytest.mark.parametrize("fused", [False, True])
def test_saved_and_loaded_again_every_byte_is_there(
    tmp_path: Path, quantize: Quantization | None, fused: bool
):
    model = load(SOURCE, "bfloat16", quantize=quantize, fused=fused)
    save(model, tmp_path / "saved")
    assert open_checkpoint(tmp_path / "saved").quantized == quantize
    assert content(load(tmp_path / "saved", fused=fused)) == content(model)
    if quantize:
        with pytest.raises(CheckpointError, match=f"quantised to {quantize}, which Hugging Face"):
            save_hf(model, tmp_path / "hf")
        assert not (tmp_path / "hf").exists()
    else:
        save_hf(model, tmp_path / "hf")
        assert content(load(tmp_path / "hf", fused=fused)) == content(model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_checkpoint_loads_as_the_original_quantised(tmp_path: Path, kind: Quantization):
    original = open_checkpoint(SOURCE)
    narrow = quantized(original, kind)
    write(narrow, "converted", tmp_path / "narrow")
    written = stored(tmp_path / "narrow")
    assert written == {n: (t.dtype, t.read().tobytes()) for n, t in narrow.tensors.items()}
    assert written["layers.0.q_proj.weight"][0] == DTYPES[kind]
    assert written["layers.0.q_proj.scale"][0] == np.float32
    for fused in (False, True):
        model = load(tmp_path / "narrow", fused=fused)
        assert content(model) == content(load(SOURCE, quantize=kind, fused=fused))
    assert content(load(tmp_path / "narrow", quantize=kind, fused=True)) == content(model)
    other = "int8" if kind == "fp8" else "fp8"
    with pytest.raises(CheckpointError, match=f"is quantised to {kind} already; load the original"):
        load(tmp_path / "narrow", quantize=other)
    with pytest.raises(CheckpointError, match=f"quantised to {kind} already; quantise the orig"):
        quantized(open_checkpoint(tmp_path / "narrow"), kind)
    with pytest.raises(CheckpointError, match="which Hugging Face's layout has no place for"):
        write(open_checkpoint(tmp_path / "narrow"), "hf", tmp_path / "hf")


def test_an_unknown_kind_is_named():
    unknown: Any = "int4"
    with pytest.raises(ValueError, match=r'quantize must be "fp8", "int8" or None, got \'int4\''):
        load(SOURCE, quantize=unknown)


def test_a_weight_without_its_scale_is_named(tmp_path: Path):
    narrow = quantized(open_checkpoint(SOURCE), "fp8")
    tensors = {n: t for n, t in narrow.tensors.items() if n != "layers.1.o_proj.scale"}
    tensors["layers.0.up_proj.weight"] = open_checkpoint(SOURCE).tensors["layers.0.up_proj.weight"]
    object.__setattr__(narrow, "tensors", tensors)
    write(narrow, "converted", tmp_path / "narrow")
    with pytest.raises(CheckpointError) as error:
        load(tmp_path / "narrow")
    message = str(error.value)
    assert "1 missing: layers.1.o_proj.scale" in message
    assert "1 not float8_e4m3fn beside a scale: layers.0.up_proj.weight is float32" in message


@functools.cache
def one_device(quantize: Quantization | None) -> tuple[r2jax.Transformer, r2jax.DecodeOutput]:
    model = load(SOURCE, "float32", quantize=quantize, fused=True)
    return model, r2jax.generate(model, PROMPTS, DECODE)


@pytest.mark.parametrize("tensor", [2, 4])
@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("layout", ["hf", "converted"])
def test_on_a_mesh_as_on_one_device(
    tmp_path: Path, tensor: int, quantize: Quantization | None, layout: str
):
    """Loaded in parts from either layout: the same bytes, the same tokens and forwards."""
    source = SOURCE
    if layout == "converted":
        source = tmp_path / "converted"
        original = open_checkpoint(SOURCE)
        write(quantized(original, quantize) if quantize else original, "converted", source)
    mesh = r2jax.make_mesh(tensor=tensor, devices=jax.devices()[:tensor])
    sharded = load(source, "float32", mesh, quantize=quantize, fused=True)
    model, expected = one_device(quantize)
    assert content(sharded) == content(model)
    layer = sharded.layers[0]
    matrices = [layer.qkv_proj.weight, layer.gate_up_proj.weight]
    scales = [part.scale for part in (layer.qkv_proj, layer.gate_up_proj) if part.scale is not None]
    assert len(scales) == (2 if quantize else 0)
    for parameter in (*matrices, *scales):
        value = parameter[...]
        rows = {shard.data.shape[0] for shard in value.addressable_shards}
        assert rows == {value.shape[0] // tensor} and len(value.addressable_shards) == tensor
    out = r2jax.generate(sharded, PROMPTS, DECODE)
    np.testing.assert_array_equal(out.tokens, expected.tokens)
    np.testing.assert_array_equal(out.nfe, expected.nfe)


def test_the_largest_is_read_first_and_one_matrix_at_a_time():
    """What loading holds beside the model is the parts of one matrix."""
    tensors = open_checkpoint(SOURCE).tensors
    config = open_checkpoint(SOURCE).config
    read: list[str] = []

    def note(name: str, dtype: np.dtype, sharding: Any) -> jax.Array:
        read.append(name)
        return tensors[name].array(dtype, sharding)

    assemble(config, note, dtype=jnp.float32, fused=True)
    assert sorted(read) == sorted(tensors)
    assert set(read[:2]) == {"embed.weight", "head.weight"}
    for fused in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
        at = [read.index(f"layers.1.{part}.weight") for part in fused]
        assert at == list(range(at[0], at[0] + len(fused)))
