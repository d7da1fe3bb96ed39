"""Weights as decoding wants them: matrices that read the same input lie in one.

The rows of a fused matrix are ordered so that splitting them evenly over devices keeps together
what belongs together: q, k and v by key head (its queries, its key, its value), gate and up
alternating.
A weight's rows, its scales and its biases move alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from r2jax.config import ModelConfig

Rows = TypeVar("Rows", Array, np.ndarray)

# Fused module -> its parts, in order.
FUSED: dict[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


def parts_of(name: str) -> tuple[str, ...]:
    """The separate parameters behind one of a fused model: "layers.0.qkv_proj.weight" ->
    "layers.0.q_proj.weight", ...; of others the name itself."""
    for fused, parts in FUSED.items():
        if f".{fused}." in name:
            return tuple(name.replace(f".{fused}.", f".{part}.") for part in parts)
    return (name,)


def _groups(name: str, config: ModelConfig) -> int:
    """Into how many groups of rows the parts are cut, to be laid side by side."""
    return config.num_kv_heads if ".qkv_proj." in name else config.intermediate_size


def fuse(name: str, parts: Sequence[Array], config: ModelConfig) -> Array:
    """The parameter `name` of a fused model from its parts [rows, ...] (see `parts_of`)."""
    if len(parts) == 1:
        return parts[0]
    groups = _groups(name, config)
    cut = [part.reshape(groups, -1, *part.shape[1:]) for part in parts]
    return jnp.concatenate(cut, axis=1).reshape(-1, *parts[0].shape[1:])


def separate(name: str, fused: Rows, config: ModelConfig) -> dict[str, Rows]:
    """The inverse of `fuse`: parameters of a separate model by name, of NumPy's or JAX's kind."""
    names = parts_of(name)
    if len(names) == 1:
        return {name: fused}
    cut = fused.reshape(_groups(name, config), -1, *fused.shape[1:])
    queries = config.num_heads // config.num_kv_heads * config.head_dim
    edges = [0, queries, queries + config.head_dim, None] if len(names) == 3 else [0, 1, None]
    return {
        part: cut[:, first:last].reshape(-1, *fused.shape[1:])
        for part, first, last in zip(names, edges[:-1], edges[1:], strict=True)
    }
