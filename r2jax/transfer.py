"""Fast-dLLM's choice: which masked positions of a block are committed after one forward.

Every rule takes the masked positions and their residual mass (predict.py) and returns the positions
to commit, all [batch, block]. A row without masks commits nothing.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from r2jax.predict import confidence


def rank(masked: Bool[Array, "B L"], rest: Float[Array, "B L"]) -> Int[Array, "B L"]:
    """How many masked positions of the row come before this one: smaller residual mass, then lower
    index.

    Counting pairs costs L² comparisons, which for a block fuse into one kernel; a sort does not.
    """
    index = jnp.arange(rest.shape[-1])
    mine, other = rest[:, :, None], rest[:, None, :]
    before = (other < mine) | ((other == mine) & (index[None, :] < index[:, None]))
    return jnp.sum(before & masked[:, None, :], axis=-1, dtype=jnp.int32)


def by_schedule(
    masked: Bool[Array, "B L"],
    rest: Float[Array, "B L"],
    step: Int[Array, " B"],
    steps: Int[Array, ""] | int,
) -> Bool[Array, "B L"]:
    """LLaDA's schedule: the block's L tokens spread evenly over `steps`, the remainder on the first
    ones.

    Every block starts fully masked (prompts end where a block begins), so its masks are L.

    Args:
      masked: positions still to decode.
      rest: their residual mass.
      step: the row's own forwards in this block so far.
      steps: denoising steps of a block.
    """
    length = masked.shape[-1]
    quota = length // steps + (step < length % steps)
    return masked & (rank(masked, rest) < quota[:, None])


def by_threshold(
    masked: Bool[Array, "B L"],
    rest: Float[Array, "B L"],
    threshold: Float[Array, "#B #L"] | Float[Array, ""] | float,
) -> Bool[Array, "B L"]:
    """Everything at least `threshold` confident, and always the most confident position."""
    return masked & ((confidence(rest) >= threshold) | (rank(masked, rest) == 0))


def moving(
    masked: Bool[Array, "B L"], suffix: Int[Array, ""] | int, alpha: Float[Array, ""] | float
) -> Float[Array, "B 1"]:
    """Streaming-dLLM's factor on a row's threshold: 1 - alpha (1 - r), r the masked share of what a
    block call feeds.

    Args:
      masked: positions of the block still to decode.
      suffix: columns fed behind the block, all of them masks.
      alpha: how far the threshold falls when next to nothing is masked; 0: exactly 1.
    """
    share = (jnp.sum(masked, axis=-1, keepdims=True) + suffix) / (masked.shape[-1] + suffix)
    return 1.0 - alpha * (1.0 - share)


def leap(
    masked: Bool[Array, "B L"],
    rest: Float[Array, "B L"],
    threshold: Float[Array, "#B 1"] | Float[Array, ""] | float,
    leap_threshold: Float[Array, "#B 1"] | Float[Array, ""] | float,
    radius: Int[Array, ""] | int,
) -> Float[Array, "B L"]:
    """LocalLeap (arXiv 2510.07081): the threshold of every position, lower near an anchor.

    An anchor is a masked position of the block that reaches `threshold`; no further than `radius`
    from one, `leap_threshold` is enough.
    """
    anchor = masked & (confidence(rest) >= threshold)
    index = jnp.arange(rest.shape[-1])
    near = jnp.abs(index[:, None] - index[None, :]) <= radius
    # L² booleans, as in `rank`: they fuse into one kernel.
    return jnp.where(jnp.any(near & anchor[:, None, :], axis=-1), leap_threshold, threshold)


def by_factor(
    masked: Bool[Array, "B L"],
    rest: Float[Array, "B L"],
    factor: Float[Array, ""] | float,
) -> Bool[Array, "B L"]:
    """Fast-dLLM's factor: the k-th best (k >= 2) must reach 1 - factor / (k + 1); stop at the first
    failure.

    As released, a failure of the very last candidate is overlooked and it is committed as well.
    """
    count = jnp.sum(masked, axis=-1, keepdims=True)
    k = rank(masked, rest) + 1
    fails = masked & (k > 1) & (confidence(rest) < 1.0 - factor / (k + 1))
    first_failure = jnp.min(jnp.where(fails, k, count), axis=-1, keepdims=True)
    return masked & ((k < first_failure) | (first_failure >= count))
