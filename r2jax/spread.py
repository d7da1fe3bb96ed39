"""Decoding on a mesh: the rows of a batch spread over its data axis, and back."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Int

from r2jax import kernels
from r2jax.decode import DecodeOutput, decode
from r2jax.decode_config import DecodeScalars, StaticDecode
from r2jax.model import Transformer
from r2jax.sharding import check_decode_mesh, named_sharding


def mesh_of(model: Transformer) -> Mesh | None:
    """The mesh that the model's parameters are sharded on; None for a model on one device."""
    sharding = model.norm.weight[...].sharding
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        return sharding.mesh
    return None


@functools.cache
def decode_on(mesh: Mesh) -> Any:
    """`decode` with its results spread over the mesh like its rows, jitted.

    The batch must be a multiple of the mesh's data axis.
    """
    return jax.jit(decode, static_argnames="static", out_shardings=named_sharding(mesh, ("batch",)))


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
