"""How a row is laid out: [generation | prompt | right pad], with explicit rotary positions.

Attention is bidirectional, so the order of columns is free, and this one has two virtues: block b
of the generation starts at column b * block_length in every row whatever the prompt's length (a
cache write is one dynamic_update_slice at a scalar offset, the head runs on a slice), and the
columns that count are a prefix of length gen_length + prompt_length (a key length says all there is
to mask). Decoding and training both use it.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Int


def layout(
    prompt_lengths: Int[Array, " B"], gen_length: int, prompt_width: int
) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
    """Rotary positions of the T = gen_length + prompt_width columns, and how many of them count.

    Args:
      prompt_lengths: tokens of each row's prompt, at most `prompt_width`.
      gen_length: columns of the generation; its positions follow the prompt's.
      prompt_width: columns of the prompt and its padding.
    """
    generation = prompt_lengths[:, None] + jnp.arange(gen_length)
    prompt = jnp.broadcast_to(jnp.arange(prompt_width), (len(prompt_lengths), prompt_width))
    return jnp.concatenate([generation, prompt], axis=1), gen_length + prompt_lengths
