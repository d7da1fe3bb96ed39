"""What of an answer is masked, and how its cross-entropy is weighted: LLaDA's Eq. 1 and R²'s Eq. 5.

Both objectives are an average over rows of a weighted sum over answer positions, so that a batch
may mix them: a `Corruption` says for every position whether it is hidden and what its cross-entropy
counts. The prompt is no part of these arrays: it is never masked.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from r2jax.family import family_of
from r2jax.layout import layout, predicting
from r2jax.model import Transformer
from train.config import LossConfig
from train.data import Batch


class Corruption(NamedTuple):
    """Masks of a batch. The loss of a row is Σ_j weight_j · CE_j, unmasked positions weigh 0."""

    masked: Bool[Array, "B G"]
    weight: Float[Array, "B G"]


def inverse_probability(p: Float[Array, " B"], limit: float | None) -> Float[Array, " B"]:
    """1 / p, which makes the expected weight of a position 1; a limit trades bias for variance."""
    return 1.0 / p if limit is None else jnp.minimum(1.0 / p, limit)


def mask_probability(
    key: Key[Array, ""], rows: int, *, stratified: bool, eps: float
) -> Float[Array, " B"]:
    """A masking probability per row, uniform in [eps, 1).

    Stratified: one draw for the batch, and row i gets it shifted by i / rows (mod 1). Every row is
    still uniform, but a batch covers the noise levels evenly: less variance in its mean.
    """
    if stratified:
        t = (jax.random.uniform(key) + jnp.arange(rows) / rows) % 1.0
    else:
        t = jax.random.uniform(key, (rows,))
    return (1.0 - eps) * t + eps


def uniform_corruption(
    uniform: Float[Array, "B G"], p: Float[Array, " B"], limit: float | None = None
) -> Corruption:
    """LLaDA's SFT (Eq. 1): every answer position is masked with the row's probability p.

    Args:
      uniform: numbers in [0, 1).
      p: masking probabilities.
      limit: of 1 / p in the weight.

    Returns:
      weight = masked / (p · G): the padding of the answer counts as part of it.
    """
    masked = uniform < p[:, None]
    scale = inverse_probability(p, limit) / uniform.shape[1]
    return Corruption(masked, masked * scale[:, None])


def block_corruption(
    uniform: Float[Array, "B G"],
    p: Float[Array, " B"],
    block: Int[Array, " B"],
    block_length: int,
    complement: Bool[Array, " B"] | bool = False,
    limit: float | None = None,
) -> Corruption:
    """R²'s SFT (Eq. 5): the state of semi-autoregressive decoding in the middle of one block.

    Earlier blocks are clean, later ones fully masked; inside the block a position is masked with
    probability p. Only the block is supervised.

    Args:
      uniform: numbers in [0, 1).
      p: masking probabilities inside the block.
      block: index of each row's block.
      block_length: positions of a block.
      complement: rows that are the second view: the other positions of the block are masked, which
        happens with probability 1 - p.
      limit: of 1 / p in the weight.
    """
    of = jnp.arange(uniform.shape[1]) // block_length
    inside = of == block[:, None]
    complement = jnp.broadcast_to(jnp.asarray(complement), p.shape)
    drawn = (uniform < p[:, None]) != complement[:, None]
    scale = inverse_probability(jnp.where(complement, 1.0 - p, p), limit) / block_length
    masked = (of > block[:, None]) | (inside & drawn)
    return Corruption(masked, (inside & drawn) * scale[:, None])


def draw_block(
    key: Key[Array, ""],
    answer_length: Int[Array, " B"],
    blocks: int,
    block_length: int,
    padding_blocks: int | None,
) -> Int[Array, " B"]:
    """A block per row, uniform over those that may be drawn.

    Args:
      key: random key.
      answer_length: tokens of each answer with its end-of-turn token, before the padding.
      blocks: blocks of the answer area.
      block_length: positions of a block.
      padding_blocks: how many blocks of nothing but padding may be drawn; None: all.
    """
    if padding_blocks is None:
        return jax.random.randint(key, answer_length.shape, 0, blocks)
    used = -(-answer_length // block_length) + padding_blocks
    return jax.random.randint(key, answer_length.shape, 0, jnp.clip(used, 1, blocks))


def corrupt(
    key: Key[Array, ""], answer_length: Int[Array, " B"], answer_width: int, config: LossConfig
) -> Corruption:
    """The masks of a training batch: `block_fraction` of the rows block-wise, the others uniform.

    With `config.complementary`, rows 2i and 2i + 1 are two views of one example and share their
    draws: a block-wise pair masks complementary halves, a uniform pair has opposite noise levels
    (p and 1 + eps - p).
    """
    rows = len(answer_length)
    views = 2 if config.complementary else 1
    examples = rows // views
    key_p, key_uniform, key_block = jax.random.split(key, 3)

    def both(x: Array) -> Array:
        return jnp.repeat(x, views, axis=0) if views > 1 else x

    # Spread evenly over the batch (and so over the devices): example i is block-wise where the
    # running count i · fraction steps to the next integer.
    steps = np.floor(np.arange(examples + 1) * config.block_fraction + 1e-6)
    block_wise = both(jnp.asarray(steps[1:] > steps[:-1]))
    second = jnp.arange(rows) % views == 1
    p = both(mask_probability(key_p, examples, stratified=config.stratified, eps=config.eps))
    uniform = both(jax.random.uniform(key_uniform, (examples, answer_width)))
    block = both(
        draw_block(
            key_block,
            answer_length[::views],
            answer_width // config.block_length,
            config.block_length,
            config.padding_blocks,
        )
    )
    # The second view's probability is 1 - p and must not reach 0 either.
    p_block = jnp.minimum(p, 1.0 - config.eps) if views > 1 else p
    if config.block_mask is not None:
        p_block = jnp.full_like(p, config.block_mask)
    one = block_corruption(
        uniform, p_block, block, config.block_length, second, config.max_inverse_probability
    )
    other = uniform_corruption(
        uniform, jnp.where(second, 1.0 + config.eps - p, p), config.max_inverse_probability
    )
    return Corruption(
        *(jnp.where(block_wise[:, None], a, b) for a, b in zip(one, other, strict=True))
    )


def cross_entropy(logits: Float[Array, "B G V"], target: Int[Array, "B G"]) -> Float[Array, "B G"]:
    """-log p(target), float32. The target is found by comparing with an iota: the gradient of a
    gather would be a scatter into a tensor as large as the logits, this fuses into the softmax's.
    """
    z = logits.astype(jnp.float32)
    chosen = jnp.arange(z.shape[-1]) == target[..., None]
    return jax.nn.logsumexp(z, axis=-1) - jnp.sum(jnp.where(chosen, z, 0.0), axis=-1)


def answer_logits(
    model: Transformer, batch: Batch, masked: Bool[Array, "B G"]
) -> Float[Array, "B G V"]:
    """Logits that predict the answer's tokens, those in `masked` hidden.

    Rows are laid out [answer | prompt | pad] with explicit positions, as in decoding
    (r2jax/layout.py says why): the answer is the same columns in every row, so the last layer's MLP
    and the language-model head run on a static slice (128 of 320 columns; where a token is
    predicted one position earlier, on the prompt's last as well). Running them on the drawn block
    alone would save 2 % of the bundled model's arithmetic and cost a gather.
    """
    width = batch.answer.shape[1]
    tokens = jnp.concatenate(
        [jnp.where(masked, model.config.mask_id, batch.answer), batch.prompt], axis=1
    )
    positions, key_lengths = layout(batch.prompt_length, width, batch.prompt.shape[1])
    before = width + batch.prompt_length - 1  # the prompt's last token
    wanted = predicting(0, width, family_of(model.config).shift, before)
    hidden, _ = model.hidden(tokens, positions, key_lengths, wanted=wanted)
    return model.logits(hidden)


class LossSum(NamedTuple):
    """A loss as numerator and denominator: parts of a batch are added, never averaged."""

    total: Float[Array, ""]
    weight: Float[Array, ""]

    @property
    def mean(self) -> Float[Array, ""]:
        return self.total / self.weight


def masked_loss(model: Transformer, batch: Batch, corruption: Corruption) -> LossSum:
    """Σ weight · CE over the batch, and the number of rows it stands for."""
    logits = answer_logits(model, batch, corruption.masked)
    nll = cross_entropy(logits, batch.answer)
    return LossSum(jnp.sum(nll * corruption.weight), jnp.asarray(len(batch.answer), jnp.float32))
