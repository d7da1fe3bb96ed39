"""Keys and values of every layer, kept between the forwards of one block."""

from __future__ import annotations

from typing import NamedTuple

from jax import Array
from jaxtyping import Float


class LayerCache(NamedTuple):
    """One layer's keys (after rotary embedding) and values, columns as laid out by decode.py.

    A column's position never changes within a generation, so rotating once when the key is made
    gives the same bits as the originals, which store keys unrotated and rotate them at every call.
    """

    k: Float[Array, "B T K h"]
    v: Float[Array, "B T K h"]


Cache = tuple[LayerCache, ...]
