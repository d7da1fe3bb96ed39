"""Decoding on a mesh: the rows of a batch spread over its data axis, and back."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from r2jax import kernels
from r2jax.decode import DecodeOutput, decode
from r2jax.decode_config import DecodeScalars, StaticDecode
from r2jax.model import Transformer
from r2jax.sharding import check_decode_mesh, named_sharding

# XLA's own all-reduce cannot be part of a CUDA graph: it cuts a layer into four launches by the
# host. NCCL's can, so a block step is one graph: 4.0 ms instead of 4.3 with LLaDA-8B's weights on
# two H200s (docs/performance.md). The list is XLA's default with COLLECTIVES, since a compiler
# option replaces it ("+COLLECTIVES" is understood in XLA_FLAGS alone).
_GRAPHS = {
    "xla_gpu_experimental_use_collective_kernels": "",
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONDITIONAL,"
    "DYNAMIC_SLICE_FUSION,COLLECTIVES",
}


def mesh_of(model: Transformer) -> Mesh | None:
    """The mesh that the model's parameters are sharded on; None for a model on one device."""
    sharding = model.norm.weight[...].sharding
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        return sharding.mesh
    return None


def understands(options: Mapping[str, str], mesh: Mesh) -> bool:
    """Whether the compiler of a mesh's devices knows all these options and their values. They
    differ from release to release, and an unknown one is an error."""
    nothing = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    try:
        jax.jit(lambda x: x, compiler_options=dict(options)).lower(nothing).compile()
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        return False
    return True


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """What the compiler is told beyond its defaults to decode on a mesh: something only where it
    was measured to help, weights split over NVIDIA GPUs. None for a compiler that does not know it
    (before jax 0.11), and where XLA_FLAGS says anything about the same."""
    device = mesh.devices.flat[0]
    said = os.environ.get("XLA_FLAGS", "")
    if mesh.shape["tensor"] == 1 or "NVIDIA" not in device.device_kind:
        return None
    if any(name in said for name in _GRAPHS) or not understands(_GRAPHS, mesh):
        return None
    return _GRAPHS


@functools.cache
def decode_on(mesh: Mesh) -> Any:
    """`decode` with its results spread over the mesh like its rows, jitted.

    The batch must be a multiple of the mesh's data axis.
    """
    return jax.jit(
        decode,
        static_argnames="static",
        out_shardings=named_sharding(mesh, ("batch",)),
        compiler_options=compiler_options(mesh),
    )


def decode_spread(
    model: Transformer,
    tokens: Int[Array, "B P"],
    lengths: Int[Array, " B"],
    static: StaticDecode,
    scalars: DecodeScalars,
    keys: Array | None,
    mesh: Mesh,
) -> DecodeOutput:
    """`decode` on a mesh, for any number of rows.

    Rows are padded to a multiple of the data axis with rows that have ended before they start: they
    count no forward and hold up nobody, and none of them is returned.

    Raises:
      ValueError: a mesh that is for training (`sharding.check_decode_mesh`), or that the model
        does not know of.
    """
    check_decode_mesh(mesh)
    if model.mesh is None and kernels.available():
        raise ValueError(
            "the model was put on its mesh by hand, so its kernels would gather the weights at "
            "every step; load it with r2jax.load(path, mesh=mesh)"
        )
    rows = len(tokens)
    more = -rows % mesh.shape["data"]
    if more:
        tokens = jnp.pad(tokens, ((0, more), (0, 0)))
        lengths = jnp.pad(lengths, (0, more))
        keys = keys if keys is None else keys[jnp.arange(rows + more) % rows]  # any key will do
    place = named_sharding(mesh, ("batch",))
    tokens, lengths, keys = jax.device_put((tokens, lengths, keys), place)
    out = decode_on(mesh)(model, tokens, lengths, static, scalars, keys)
    return jax.tree.map(lambda x: x[:rows], out) if more else out
