"""`generate`: prompts of any lengths in, a decoded batch out. The host's side of decode.py."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from r2jax.config import ModelConfig
from r2jax.decode import DecodeOutput, decode
from r2jax.decode_config import DecodeConfig, DecodeScalars, StaticDecode
from r2jax.family import Family, family_of
from r2jax.model import Transformer
from r2jax.spread import decode_spread, mesh_of

# Prompt lengths are rounded up to multiples of this, so that a new length seldom compiles anew.
BUCKET = 64


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int] | np.ndarray],
    config: DecodeConfig | None = None,
    key: jax.Array | None = None,
    trace: bool = False,
) -> DecodeOutput:
    """Decode a batch of prompts.

    Args:
      model: from `r2jax.load`, on one device or sharded on a mesh.
      prompts: token ids of each row; lengths may differ.
      config: default R²-dLLM (`DecodeConfig()`).
      key: a JAX random key, needed for temperature > 0 and random choices: one key (row i uses
        `fold_in(key, i)`) or one a row.
      trace: also return the state before every forward, what it predicted, and which rule committed
        each position.

    Returns:
      `DecodeOutput`; row i is what prompt i alone would give (in bfloat16 up to near-ties). A call
      with the same batch size, prompt bucket and static options compiles nothing.

    Raises:
      ValueError: an empty batch or prompt, ids outside the vocabulary, the mask token in a prompt,
        more positions than the model has, a missing or misshapen key.
    """
    config = DecodeConfig() if config is None else config
    check_config(config, model.config)
    rows = check_prompts(prompts, model.config, config.gen_length)
    static, scalars = config.split(model.config.eos_id, trace=trace)
    return dispatch(model, rows, static, scalars, row_keys(key, len(rows), static.needs_key))


def dispatch(
    model: Transformer,
    rows: Sequence[np.ndarray],
    static: StaticDecode,
    scalars: DecodeScalars,
    keys: jax.Array | None,
    *,
    width: int = 0,
) -> DecodeOutput:
    """Pad checked prompts and hand them to the device; returns before they are decoded.

    Args:
      model: as for `generate`.
      rows: from `check_prompts`.
      static, scalars: from `DecodeConfig.split`.
      keys: from `row_keys`.
      width: pad to at least so many tokens.
    """
    lengths = np.array([len(row) for row in rows], np.int32)
    width = bucket(max(width, int(lengths.max())))
    tokens = np.full((len(rows), width), model.config.pad_id, np.int32)
    for out, row in zip(tokens, rows, strict=True):
        out[: len(row)] = row
    arrays = (jnp.asarray(tokens), jnp.asarray(lengths))
    if (mesh := mesh_of(model)) is not None:
        return decode_spread(model, *arrays, static, scalars, keys, mesh)
    return decode(model, *arrays, static, scalars, keys)


def bucket(length: int) -> int:
    """The width that a prompt of this length is padded to."""
    return -(-length // BUCKET) * BUCKET


def check_config(config: DecodeConfig, model: ModelConfig) -> None:
    """Refuse what the model cannot do, by name."""
    for eos in config.eos_ids or ():
        if eos >= model.vocab_size or eos == model.mask_id:
            raise ValueError(
                f"eos_id {eos} must be a token of the vocabulary (size {model.vocab_size}) other "
                f"than the mask ({model.mask_id})"
            )
    _check_family(config, family_of(model), model.model_type)
    if config.gen_length >= model.max_sequence_length:
        raise ValueError(
            f"gen_length {config.gen_length} leaves no room for a prompt: the model has "
            f"{model.max_sequence_length} positions"
        )


def _check_family(config: DecodeConfig, family: Family, name: str) -> None:
    """Refuse steps that the family's own sampler refuses, or that would only idle."""
    static, _ = config.split(eos_id=0)
    steps = config.steps or config.gen_length
    scheduled = family.schedule == "timesteps" and static.transfer == "schedule"
    if scheduled and steps > config.gen_length:
        raise ValueError(
            f"steps must be at most gen_length ({config.gen_length}) on {name}, whose schedule "
            f"runs all of them; got {steps}"
        )
    capped = family.capped_threshold and config.cache == "none" and static.transfer == "threshold"
    if capped and config.gen_length % steps:
        raise ValueError(
            f"steps must divide gen_length ({config.gen_length}) on {name}, whose sampler "
            f"without a cache lets a threshold pass gen_length / steps tokens a step and those "
            f"held back; got {steps} (None: no such bound)"
        )


def check_prompts(
    prompts: Sequence[Sequence[int] | np.ndarray],
    model: ModelConfig,
    gen_length: int,
    names: Sequence[str] | None = None,
) -> list[np.ndarray]:
    """The prompts as int arrays, or a ValueError naming the first wrong one.

    Args:
      prompts: token ids of each.
      model: whose vocabulary and length are the limits.
      gen_length: positions that the answer takes.
      names: what to call each prompt; default "prompt 0", "prompt 1", ...
    """
    if isinstance(prompts, (str, bytes)) or not hasattr(prompts, "__len__"):
        raise ValueError(f"prompts must be lists of token ids, got {prompts!r}")
    if len(prompts) and isinstance(prompts[0], str):
        raise ValueError("prompts must be token ids; for text use r2jax.generate_text")
    if not len(prompts):
        raise ValueError("prompts is empty: give at least one prompt")
    room = model.max_sequence_length - gen_length
    rows = []
    for i, prompt in enumerate(prompts):
        name = names[i] if names else f"prompt {i}"
        row = np.asarray(prompt)
        if row.ndim != 1 or (row.size and not np.issubdtype(row.dtype, np.integer)):
            raise ValueError(
                f"{name} must be a flat list of token ids, got shape {row.shape}, {row.dtype}"
            )
        if not row.size:
            raise ValueError(f"{name} is empty: a row needs at least one token")
        if row.min() < 0 or row.max() >= model.vocab_size:
            bad = row[(row < 0) | (row >= model.vocab_size)][0]
            raise ValueError(
                f"{name} holds token id {bad}, outside the vocabulary [0, {model.vocab_size})"
            )
        if (row == model.mask_id).any():
            raise ValueError(
                f"{name} holds the mask token ({model.mask_id}); a prompt must be fully known"
            )
        if len(row) > room:
            raise ValueError(
                f"{name} has {len(row)} tokens; with gen_length {gen_length} the model's "
                f"max_sequence_length {model.max_sequence_length} leaves room for {room}"
            )
        rows.append(row)
    return rows


def row_keys(key: jax.Array | None, batch: int, needed: bool) -> jax.Array | None:
    """A random key for each of `batch` rows, or None where none is needed.

    Raises:
      ValueError: a missing or misshapen key.
    """
    if not needed:
        return None
    if key is None:
        raise ValueError(
            "temperature > 0, remasking='random' and token_cluster='random' need `key`, for "
            "example jax.random.key(0)"
        )
    if not isinstance(key, jax.Array):
        raise ValueError(f"key must be a JAX random key (jax.random.key(0)), got {key!r}")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jnp.asarray(jax.random.wrap_key_data(key))  # an old-style key of two integers
    if key.shape == ():
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"key must be one key or one a row ({batch}), got shape {key.shape}")
    return key
