"""Compare two checkpoints by their logits on the same tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from r2jax.checkpoint import CheckpointError, load, open_checkpoint, resolve
from r2jax.config import ModelConfig
from r2jax.text import encode, load_tokenizer

_ROWS, _COLUMNS = 2, 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far B's logits are from A's."""

    positions: int
    dtype: str
    max_difference: float
    """max |logit of B - logit of A|."""
    mean_kl: float
    """KL(A || B) of the predicted distributions, nats, averaged over positions."""
    agreement: float
    """Share of positions with the same arg-max."""
    quantized: str = ""
    """Which of the two are quantised, such as "B is in fp8"."""

    def __str__(self) -> str:
        return (
            f"{self.positions} positions in {self.dtype}: max |d logit| {self.max_difference:.3g}, "
            f"mean KL {self.mean_kl:.3g} nats, arg-max agrees on {self.agreement:.2%}"
            + (f" ({self.quantized})" if self.quantized else "")
        )


def verify(
    a: str, b: str, *, dtype: Any = None, text: str | None = None, seed: int = 0
) -> Comparison:
    """Compare two checkpoints; each is loaded, run and released in turn.

    Args:
      a: reference: a directory, hub id or bundled name.
      b: the other.
      dtype: of both models; None: the one A is stored in.
      text: run these tokens instead of random ones.
      seed: of the random tokens.

    Raises:
      CheckpointError: either cannot be loaded, or their vocabularies differ.
    """
    source = resolve(a)
    left, right = open_checkpoint(source), open_checkpoint(resolve(b))
    if left.config.vocab_size != right.config.vocab_size:
        raise CheckpointError(
            f"{a} has a vocabulary of {left.config.vocab_size} and {b} one of "
            f"{right.config.vocab_size}: their logits cannot be compared"
        )
    if text is None:
        tokens = _random_tokens(left.config, seed)
    else:
        rows = encode(load_tokenizer(source), [text], chat=False, names=["--text"])
        tokens = np.array(rows, np.int32)
    if not tokens.size:
        raise ValueError("--text holds no token")
    run = jax.jit(lambda model, tokens: model(tokens).astype(jnp.float32))

    def logits(name: str, dtype: Any) -> tuple[Float[np.ndarray, "B T V"], np.dtype]:
        model = load(name, dtype)
        return np.asarray(run(model, tokens)), np.dtype(model.dtype)

    first, used = logits(a, dtype)
    second, _ = logits(b, used)
    kinds = {"A": left.quantized, "B": right.quantized}
    narrow = " and ".join(f"{name} is in {kind}" for name, kind in kinds.items() if kind)
    return dataclasses.replace(compare(first, second, used.name), quantized=narrow)


def _random_tokens(config: ModelConfig, seed: int) -> Int[np.ndarray, "B T"]:
    """Random ids, half of them replaced by the mask token."""
    generator = np.random.default_rng(seed)
    shape = (_ROWS, min(_COLUMNS, config.max_sequence_length))
    ids = generator.integers(config.vocab_size, size=shape, dtype=np.int32)
    return np.where(generator.random(shape) < 0.5, np.int32(config.mask_id), ids)


def compare(a: Float[np.ndarray, "*b V"], b: Float[np.ndarray, "*b V"], dtype: str) -> Comparison:
    """The difference of two sets of float32 logits."""
    log_p, log_q = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    return Comparison(
        positions=kl.size,
        dtype=dtype,
        max_difference=float(np.abs(a - b).max()),
        mean_kl=float(kl.mean()),
        agreement=float((a.argmax(-1) == b.argmax(-1)).mean()),
    )
