"""Bidirectional attention with per-row key lengths."""

from __future__ import annotations

from typing import Literal

import jax
from jax import Array
from jaxtyping import Float, Int

Kernel = Literal["xla", "cudnn"]


def attention(
    q: Float[Array, "B S N h"],
    k: Float[Array, "B T K h"],
    v: Float[Array, "B T K h"],
    key_lengths: Int[Array, " B"] | None,
    kernel: Kernel = "xla",
) -> Float[Array, "B S N h"]:
    """softmax(q kᵀ / √h) v over the first `key_lengths` keys of each row (None: all).

    Grouped queries (N a multiple of K) share consecutive key heads. Padded keys stand at the end,
    so a length says all there is to mask; fused kernels take it too ("cudnn": NVIDIA, bfloat16).
    """
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=key_lengths, implementation=kernel
    )
