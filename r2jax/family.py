"""What differs between model families once the network is run: how its outputs are read, and how
the family's own program decodes.

Sizes are configuration (config.py), tensor names a table (hf.py); decode.py, denoise.py and the
losses read the rest from here, so that a family is one description and the loop is one loop.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from r2jax.config import ModelConfig


class Family(NamedTuple):
    """A family's habits (spec: GATECH-EIC/R2-dLLM, commit 6d06bb2, folders llada and dream)."""

    shift: bool
    """The output at a position predicts the token after it: Dream was made from a causal model."""
    opens_with_first_token: bool
    """With a cache, a refresh commits the block's first token whatever its confidence and transfers
    nothing else, and at least one block call follows, even in a block that is complete. (A block
    call feeds no predecessor of that token, so it cannot predict it.)"""
    schedule: Literal["even", "timesteps"]
    """How `steps` spreads a block's tokens: evenly, or at linear times from 1 to 0.001."""
    entropy_with_cache: bool
    """With a cache, block calls of the schedule rank by entropy, whatever `alg` is."""
    capped_threshold: bool
    """Without a cache, a threshold passes no more tokens than the schedule of `steps` would have by
    then."""
    filtered_confidence: bool
    """Confidence is of the distribution that is sampled from: after temperature and top_p."""
    reports_block_calls: bool
    """The program reports its block calls as its steps, where it has a cache: no refreshes."""


LLADA = Family(
    shift=False,
    opens_with_first_token=False,
    schedule="even",
    entropy_with_cache=False,
    capped_threshold=False,
    filtered_confidence=False,
    reports_block_calls=False,
)
DREAM = Family(
    shift=True,
    opens_with_first_token=True,
    schedule="timesteps",
    entropy_with_cache=True,
    capped_threshold=True,
    filtered_confidence=True,
    reports_block_calls=True,
)
_FAMILIES = {"llada": LLADA, "Dream": DREAM}  # by config.json's model_type


def family_of(config: ModelConfig) -> Family:
    """The family of a model, by its `model_type` (a `ModelConfig` knows no others)."""
    return _FAMILIES[config.model_type]
