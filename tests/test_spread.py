"""Decoding on a mesh: every row as on one device, whatever the mesh and the number of rows."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import r2jax
from r2jax.sharding import make_mesh
from r2jax.spread import compiler_options, mesh_of, understands
from tests import golden_cases as golden
from tests.trajectories import assert_same

PROMPTS = [[1, 2, 3], list(range(10, 40)), [5] * 9, [7, 8], [11]]
SMALL = r2jax.DecodeConfig(gen_length=48, block_length=16)


def on_mesh(**sizes: int) -> r2jax.Transformer:
    count = int(np.prod(list(sizes.values())))
    mesh = make_mesh(**sizes, devices=jax.devices()[:count])
    model = r2jax.load(str(golden.folder("tiny-a")), mesh=mesh)
    assert mesh_of(model) == mesh
    return model


def decode(model: r2jax.Transformer, rows: int, options: dict[str, Any]) -> r2jax.DecodeOutput:
    config = dataclasses.replace(SMALL, **options)
    key = jax.random.key(1) if options else None
    return r2jax.generate(model, PROMPTS[:rows], config, key=key, trace=True)


@pytest.mark.parametrize(
    ("sizes", "rows", "options"),
    [
        ({"tensor": 2}, 3, {}),
        ({"data": 4}, 5, {"temperature": 0.7}),  # three places of the batch hold no row
        ({"data": 4, "tensor": 2}, 1, {}),
    ],
    ids=str,
)
def test_rows_on_a_mesh_are_those_of_one_device(
    sizes: dict[str, int], rows: int, options: dict[str, Any]
):
    """Tokens, NFE, refreshes, counts and the trace."""
    alone = decode(golden.model("tiny-a"), rows, options)
    out = decode(on_mesh(**sizes), rows, options)
    assert out.tokens.shape == (rows, SMALL.gen_length)
    assert_same(alone, out)
    if rows % sizes.get("data", 1) == 0:
        specs = {x.sharding.spec for x in jax.tree.leaves(out)}
        assert specs == {PartitionSpec(("data", "fsdp"))}, "results lie where their rows do"


def test_a_place_without_a_row_costs_nothing():
    """It counts no forward and changes nothing of the other rows; the loops do not turn for it."""
    model = golden.model("tiny-a")
    static, scalars = SMALL.split(model.config.eos_id)
    tokens = jnp.asarray([PROMPTS[0] + [0] * 5, [9] * 8], jnp.int32)
    both, one, none = (
        r2jax.decode(model, tokens, jnp.asarray(lengths), static, scalars)
        for lengths in ([3, 8], [3, 0], [0, 0])
    )
    assert int(both.nfe[1]) > 0
    for out in (one, none):
        assert int(out.nfe[1]) == int(out.refreshes[1]) == 0
        np.testing.assert_array_equal(out.tokens[1], model.config.pad_id)
    for x, y in zip(jax.tree.leaves(both), jax.tree.leaves(one), strict=True):
        np.testing.assert_array_equal(x[0], y[0])
    assert not none.nfe.any()


def test_a_mesh_for_training_is_refused():
    with pytest.raises(ValueError, match=r"fsdp=2 is for training; .* tensor=4, .* data=2"):
        decode(on_mesh(fsdp=2, tensor=2), 1, {})


def test_compiler_options_where_they_were_measured_to_help(monkeypatch):
    """On NVIDIA GPUs that hold parts of the weights, unless XLA_FLAGS speaks of the same."""

    def options(kind: str = "NVIDIA H200", **sizes: int) -> dict[str, str] | None:
        devices = np.array([SimpleNamespace(device_kind=kind)] * 2)
        shape = {"data": 1, "fsdp": 1, "tensor": 1, **sizes}
        return compiler_options(cast(Mesh, SimpleNamespace(devices=devices, shape=shape)))

    monkeypatch.setattr("r2jax.spread.understands", lambda options, mesh: True)
    found = options(tensor=2)
    assert found is not None and found["xla_gpu_enable_command_buffer"].endswith(",COLLECTIVES")
    assert options(data=2) is options("TPU v5 lite", tensor=2) is options("cpu", tensor=2) is None
    with monkeypatch.context() as context:
        context.setenv("XLA_FLAGS", "--xla_gpu_enable_command_buffer=+WHILE")
        assert options(tensor=2) is None
    monkeypatch.setattr("r2jax.spread.understands", lambda options, mesh: False)
    assert options(tensor=2) is None


def test_options_that_a_compiler_does_not_understand():
    """Names and values; the CPU's compiler reads the same list of options as the GPU's."""
    mesh = make_mesh(tensor=2, devices=jax.devices()[:2])
    assert understands({"xla_gpu_enable_command_buffer": "FUSION,COLLECTIVES"}, mesh)
    assert not understands({"xla_gpu_enable_command_buffer": "COLLECTIONS"}, mesh)
    assert not understands({"xla_gpu_no_such_option": "1"}, mesh)
