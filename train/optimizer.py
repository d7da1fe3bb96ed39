"""Optimisers over the model's parameters as a flat dictionary, name -> array."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from train.config import OptimizerConfig


def is_layer_matrix(name: str, param: Array) -> bool:
    """Whether a parameter is a matrix of a layer: what is decayed, and what Muon takes."""
    return name.startswith("layers.") and param.ndim == 2


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then a cosine that reaches zero at the last of `steps`."""
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, max(steps, config.warmup_steps + 1)
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW or Muon on the learning-rate schedule."""
    rate = schedule(config, steps)

    def matrices(params: dict[str, Array]) -> dict[str, bool]:
        return {name: is_layer_matrix(name, param) for name, param in params.items()}

    clip = optax.clip_by_global_norm(config.clip_norm)
    if config.name == "adamw":
        decay = config.weight_decay
        return optax.chain(
            clip, optax.adamw(rate, config.b1, config.b2, weight_decay=decay, mask=matrices)
        )
    muon = optax.contrib.muon(
        rate,
        weight_decay=config.weight_decay,
        # Updates of root mean square 0.2, AdamW's usual size (arXiv 2502.16982): one rate for both.
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(
            lambda _: optax.contrib.MuonDimensionNumbers(reduction_axis=2, output_axis=1), params
        ),
    )

    def labels(params: dict[str, Array]) -> dict[str, str]:
        return {name: "muon" if yes else "adamw" for name, yes in matrices(params).items()}

    rest = optax.adamw(rate, config.b1, config.b2, weight_decay=0.0)
    return optax.chain(clip, optax.partition({"muon": by_shape(muon), "adamw": rest}, labels))


def by_shape(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on parameters stacked by shape.

    Muon multiplies every matrix with itself fifteen times; for small matrices one batched product
    per shape costs a fraction of the launches.
    """

    def stack(tree: optax.Params | optax.Updates) -> dict[str, Array]:
        groups = defaultdict(list)
        for leaf in jax.tree.leaves(tree):
            groups[str(leaf.shape)].append(leaf)
        return {shape: jnp.stack(leaves) for shape, leaves in groups.items()}

    def unstack(stacked: Any, like: optax.Updates) -> optax.Updates:
        parts = {shape: iter(x) for shape, x in stacked.items()}
        return jax.tree.map(lambda leaf: next(parts[str(leaf.shape)]), like)

    def init(params: optax.Params) -> optax.OptState:
        return inner.init(stack(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        new, state = inner.update(stack(updates), state, None if params is None else stack(params))
        return unstack(new, updates), state

    return optax.GradientTransformation(init, update)
