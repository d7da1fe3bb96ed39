"""Fast-dLLM's choice: which masked positions of a block are committed after one forward.

Every rule takes the masked positions, their confidence and the order of it (predict.py) and returns
the positions to commit, all [batch, block]. A row without masks commits nothing.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int


def rank(masked: Bool[Array, "B L"], order: Float[Array, "B L"]) -> Int[Array, "B L"]:
    """How many masked positions of the row come before this one: smaller `order`, then lower index.

    Counting pairs costs L² comparisons, which for a block fuse into one kernel; a sort does not.
    """
    index = jnp.arange(order.shape[-1])
    mine, other = order[:, :, None], order[:, None, :]
    before = (other < mine) | ((other == mine) & (index[None, :] < index[:, None]))
    return jnp.sum(before & masked[:, None, :], axis=-1, dtype=jnp.int32)


def by_schedule(
    masked: Bool[Array, "B L"],
    order: Float[Array, "B L"],
    step: Int[Array, " B"],
    steps: Int[Array, ""] | int,
) -> Bool[Array, "B L"]:
    """LLaDA's schedule: the block's L tokens spread evenly over `steps`, the remainder on the first
    ones.

    Every block starts fully masked (prompts end where a block begins), so its masks are L.

    Args:
      masked: positions still to decode.
      order: smallest first.
      step: the row's own forwards in this block so far.
      steps: denoising steps of a block.
    """
    length = masked.shape[-1]
    quota = length // steps + (step < length % steps)
    return masked & (rank(masked, order) < quota[:, None])


def by_timesteps(
    masked: Bool[Array, "B L"],
    order: Float[Array, "B L"],
    step: Int[Array, " B"],
    steps: Int[Array, ""] | int,
) -> Bool[Array, "B L"]:
    """Dream's schedule: the time passing from t to s frees the share 1 - s / t of the masks left,
    rounded down (it may be none); the last step frees all.

    Times run linearly from 1 to 0.001, in float32 (torch.linspace's arithmetic, from both ends).

    Args:
      masked: positions still to decode.
      order: smallest first.
      step: the row's own forwards in this block so far.
      steps: denoising steps of a block.
    """
    end = 1e-3

    def time(i: Array) -> Array:
        width = (end - 1.0) / jnp.float32(steps)
        return jnp.where(i < (steps + 1) // 2, 1.0 + width * i, end - width * (steps - i))

    count = jnp.sum(masked, axis=-1, dtype=jnp.int32)
    freed = jnp.floor(count * (1.0 - time(step + 1) / time(step))).astype(jnp.int32)
    quota = jnp.where(step < steps - 1, freed, count)
    return masked & (rank(masked, order) < quota[:, None])


def by_threshold(
    masked: Bool[Array, "B L"],
    confidence: Float[Array, "B L"],
    order: Float[Array, "B L"],
    threshold: Float[Array, "#B #L"] | Float[Array, ""] | float,
    most: Int[Array, "B 1"] | None = None,
) -> Bool[Array, "B L"]:
    """Everything at least `threshold` confident, and always the most confident position.

    Args:
      masked: positions still to decode.
      confidence: of each.
      order: its order, smallest first.
      threshold: bound of the confidence.
      most: no more than the so many first of the order; None: all.
    """
    place = rank(masked, order)
    passes = confidence >= threshold
    if most is not None:
        passes &= place < most
    return masked & (passes | (place == 0))


def allowance(
    masked: Bool[Array, "B L"], step: Int[Array, " B"], each: Int[Array, ""] | int
) -> Int[Array, "B 1"]:
    """What Dream's plain sampler lets pass at most: `each` token a step, and what was held back at
    earlier steps. Whatever is left after the last step may all pass."""
    length = masked.shape[-1]
    written = length - jnp.sum(masked, axis=-1, dtype=jnp.int32)
    return (jnp.minimum(each * (step + 1), length) - written)[:, None]


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
    confidence: Float[Array, "B L"],
    threshold: Float[Array, "#B 1"] | Float[Array, ""] | float,
    leap_threshold: Float[Array, "#B 1"] | Float[Array, ""] | float,
    radius: Int[Array, ""] | int,
) -> Float[Array, "B L"]:
    """LocalLeap (arXiv 2510.07081): the threshold of every position, lower near an anchor.

    An anchor is a masked position of the block that reaches `threshold`; no further than `radius`
    from one, `leap_threshold` is enough.
    """
    anchor = masked & (confidence >= threshold)
    index = jnp.arange(masked.shape[-1])
    near = jnp.abs(index[:, None] - index[None, :]) <= radius
    # L² booleans, as in `rank`: they fuse into one kernel.
    return jnp.where(jnp.any(near & anchor[:, None, :], axis=-1), leap_threshold, threshold)


def by_factor(
    masked: Bool[Array, "B L"],
    confidence: Float[Array, "B L"],
    order: Float[Array, "B L"],
    factor: Float[Array, ""] | float,
) -> Bool[Array, "B L"]:
    """Fast-dLLM's factor: the k-th best (k >= 2) must reach 1 - factor / (k + 1); stop at the first
    failure.

    As released, a failure of the very last candidate is overlooked and it is committed as well.
    """
    count = jnp.sum(masked, axis=-1, keepdims=True)
    k = rank(masked, order) + 1
    fails = masked & (k > 1) & (confidence < 1.0 - factor / (k + 1))
    first_failure = jnp.min(jnp.where(fails, k, count), axis=-1, keepdims=True)
    return masked & ((k < first_failure) | (first_failure >= count))
