"""Mesh axes, and the one table that says which of them each logical axis of an array is split
over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from r2jax.config import ModelConfig

MESH_AXES = ("data", "fsdp", "tensor")

# Megatron layout: q/k/v, gate and up are split over their outputs, o and down over their inputs, so
# that a layer needs one reduction after attention and one after the MLP. "embed" is split only for
# training (fsdp); a mesh for decoding leaves fsdp at 1.
RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "embed": "fsdp",
}


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh with axes ("data", "fsdp", "tensor").

    Args:
      data: copies of the model, each with a part of the batch.
      fsdp: parts that the parameters are split in between steps; the batch is split over it as
      well.
      tensor: parts that heads, MLP and vocabulary are split in.
      devices: default all of `jax.devices()`.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = (data, fsdp, tensor)
    if min(shape) < 1:
        raise ValueError(
            f"mesh sizes must be at least 1, got data={data} fsdp={fsdp} tensor={tensor}"
        )
    if int(np.prod(shape)) != len(devices):
        raise ValueError(
            f"mesh data={data} x fsdp={fsdp} x tensor={tensor} has {int(np.prod(shape))} places, "
            f"but must hold all {len(devices)} devices (name fewer with make_mesh(devices=...))"
        )
    return jax.make_mesh(shape, MESH_AXES, devices=devices, axis_types=(AxisType.Auto,) * 3)


def spec(logical_axes: Sequence[str | None]) -> PartitionSpec:
    """The PartitionSpec of an array whose dimensions have these logical axes (None: not split)."""
    return PartitionSpec(*(None if axis is None else RULES[axis] for axis in logical_axes))


def named_sharding(
    mesh: Mesh, logical_axes: Sequence[str | None], shape: Sequence[int] | None = None
) -> NamedSharding:
    """The sharding of an array on `mesh`.

    Args:
      mesh: from `make_mesh`.
      logical_axes: one name of `RULES` (or None) per dimension.
      shape: when given, checked for divisibility.

    Raises:
      ValueError: a dimension of `shape` does not divide over its mesh axes.
    """
    partition = spec(logical_axes)
    for size, axes, name in zip(shape or (), partition, logical_axes, strict=False):
        parts = int(
            np.prod([mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes or ())])
        )
        if size % parts:
            raise ValueError(
                f"an axis {name!r} of size {size} cannot be split evenly over the {parts} "
                f"devices of mesh axis {axes!r}"
            )
    return NamedSharding(mesh, partition)


def batch_axes(mesh: Mesh | None, batch: int) -> tuple[str, ...] | None:
    """The mesh axes that `batch` rows are spread over: none where they do not divide evenly."""
    axes = RULES["batch"]
    if mesh is None or batch % int(np.prod([mesh.shape[axis] for axis in axes or ()])):
        return None
    return axes if isinstance(axes, tuple) else None


def check_mesh(mesh: Mesh, config: ModelConfig) -> None:
    """Refuse a mesh that cannot hold the model.

    Raises:
      ValueError: other axes than `make_mesh` makes, or a tensor axis that would split a head (the
        flat projections divide, but every layer would move its activations from device to device).
    """
    if mesh.axis_names != MESH_AXES:
        raise ValueError(
            f"the mesh has axes {mesh.axis_names}; make it with r2jax.make_mesh, axes {MESH_AXES}"
        )
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    for name, parts, axis in (
        ("num_heads", tensor, "tensor"),
        ("num_kv_heads", tensor, "tensor"),
        ("intermediate_size", tensor, "tensor"),
        ("vocab_size", tensor, "tensor"),
        ("hidden_size", fsdp, "fsdp"),
    ):
        if getattr(config, name) % parts:
            raise ValueError(
                f"{name} {getattr(config, name)} cannot be split evenly over the mesh axis "
                f"{axis}={parts}"
            )


def check_decode_mesh(mesh: Mesh) -> None:
    """Refuse a mesh on which every decoding step would move weights or logits.

    Raises:
      ValueError: an fsdp axis. It splits the hidden size: each device would hold partial sums of
        every product, of the logits over the whole vocabulary too, and add them up across devices
        at every step.
    """
    if (parts := mesh.shape["fsdp"]) > 1:
        raise ValueError(
            f"a mesh with fsdp={parts} is for training; to decode, split the weights with "
            f"tensor={parts * mesh.shape['tensor']}, or the rows with "
            f"data={parts * mesh.shape['data']}"
        )


def param_shardings(state: Any, mesh: Mesh) -> Any:
    """A tree like `state` (an nnx.State or module with `logical_axes` on each Param) of
    shardings."""

    def one(param: nnx.Variable) -> nnx.Variable:
        return param.replace(
            named_sharding(mesh, param.get_metadata("logical_axes"), param.get_value().shape)
        )

    return jax.tree.map(one, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
