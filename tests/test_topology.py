"""Devices that are not here: names, meshes, and a whole compilation where the compiler is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import r2jax
from eval import bench
from r2jax.config import LLADA_8B
from r2jax.sharding import make_mesh
from r2jax.topology import absent_devices, abstract_model, bytes_per_device, default_mesh


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5e", "must be KIND-N, with KIND one of v5e, v5p, v6e, h100, h200"),
        ("v9-8", "must be KIND-N"),
        ("v5e-3", "v5e comes in sizes 4, 8, 16"),
        ("v5p-4", "v5p comes in sizes 8, 16, 32"),
        ("h200-9", "h200 comes in sizes 1, 2, 3, 4, 5, 6, 7, 8"),
    ],
)
def test_names_that_are_none(name: str, says: str):
    with pytest.raises(ValueError, match=says):
        absent_devices(name)


@pytest.mark.parametrize(("name", "package"), [("v5e-4", "libtpu"), ("h200-2", "cuda13-plugin")])
def test_a_compiler_that_is_not_installed(name: str, package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("r2jax.topology.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"{name}.* needs .*{package}"):
        absent_devices(name)


def test_default_mesh():
    assert default_mesh(LLADA_8B, 8) == {"data": 1, "tensor": 8}
    assert default_mesh(LLADA_8B, 64) == {"data": 2, "tensor": 32}  # 32 heads
    assert default_mesh(LLADA_8B, 6) == {"data": 3, "tensor": 2}


def test_an_abstract_model_is_no_larger_than_its_shapes():
    """8 billion parameters on eight devices: nothing is allocated, and each would hold an
    eighth."""
    mesh = make_mesh(tensor=8)
    model = abstract_model(
        lambda: r2jax.Transformer(LLADA_8B, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)), mesh
    )
    leaves = jax.tree.leaves(model)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    whole = sum(leaf.size * 2 for leaf in leaves)
    assert whole == pytest.approx(16.03e9, rel=1e-3)
    assert whole / 8 <= bytes_per_device(model) < 1.01 * whole / 8


def compile_only(output: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own: libtpu wants to be loaded once, and early."""
    return subprocess.run(
        [
            sys.executable, "-m", "eval.bench", "--compile-only", "--size", "tiny",
            "--gen-length", "64", "--output", str(output), *words,
        ],
        env=os.environ | {"JAX_PLATFORMS": ""}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu, the TPU's compiler, is missing")
def test_decode_compiles_for_tpus_that_are_not_here(tmp_path: Path):
    done = compile_only(tmp_path / "out.json", "--topology", "v5e-4", "--batch", "3")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "v5e-4 (4)" in done.stdout
    (row,) = json.loads((tmp_path / "out.json").read_text())["results"]
    assert row["mesh"] == {"data": 1, "tensor": 4} and row["fits"]
    assert row["weight_bytes"] < row["argument_bytes"] < row["total_bytes"] < row["hbm_bytes"]
    assert row["flops"] > 0 and row["bytes_accessed"] > row["weight_bytes"]
    steps = [one for one in row["collectives"] if one["where"] == "block step"]
    activations = [one for one in steps if one["bytes"] == 2 * 3 * 32 * 64]
    assert {one["kind"] for one in activations} == {"all-reduce"}
    assert sum(one["count"] for one in activations) == 2 * 2 + 1
    assert max(one["bytes"] for one in steps) == 2 * 3 * 32 * 64


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--topology", "v5e-5"], "v5e comes in sizes"),
        (["--topology", "v5e-4", "--batch", "0"], "--batch and --prompt-length must be at least"),
        (["--topology", "v5e-4", "--gen-length", "40"], "block_length"),
        (["--topology", "v5e-4", "--output", "no/such/place"], "no such directory"),
    ],
)
def test_what_cannot_be_compiled_is_refused(words: list[str], says: str):
    with pytest.raises(ValueError, match=says):
        bench.main(["--compile-only", "--size", "tiny", *words])
