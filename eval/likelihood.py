"""How likely a masked-diffusion model finds a given answer: LLaDA's Monte-Carlo estimate.

Of an answer of L tokens, l are masked (l uniform in 1 ... L, which ones at random), and the sample
is L/l times the sum of log p over the masked tokens; the estimate is the mean over `mc_num` samples
(arXiv 2502.09992, Eq. 6). It is a lower bound of the log-likelihood in expectation.

**The noise is fixed.** The masks of a request follow from the seed, its context and L alone, so the
answers to choose from share theirs where they are equally long, and neither order nor number of
the requests matters. The numbers l are spread evenly over 1 ... L from a random start, as the
original's are within a batch: each is uniform, and their mean has less variance.

**So is the program.** One call takes samples of a single request, as many as fill `TOKENS` columns:
from there on a forward is bound by arithmetic, so larger batches would gain nothing. A result
therefore does not depend on any batch size, in no dtype.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from r2jax.batches import generate_many
from r2jax.clock import Clock
from r2jax.decode_config import DecodeConfig
from r2jax.digest import of_json
from r2jax.family import family_of
from r2jax.generate import bucket
from r2jax.model import Transformer
from r2jax.sharding import batch_axes, named_sharding
from r2jax.spread import mesh_of

TOKENS = 2048
"""Columns of one call."""
_AHEAD = 4  # requests that are handed to the device before the first of them is fetched


class Request(NamedTuple):
    """An answer whose likelihood is asked for, as token ids."""

    context: Int[np.ndarray, " C"]
    answer: Int[np.ndarray, " L"]


@dataclasses.dataclass(frozen=True)
class Score:
    """An estimate, and the time it took."""

    index: int
    """Of the request in the list."""
    value: float
    """log p(answer | context), in nats."""
    seconds: float
    compile_seconds: float


def draw_masks(request: Request, samples: int, seed: int) -> Bool[np.ndarray, "S L"]:
    """Which tokens of the answer each sample masks."""
    length = len(request.answer)
    rng = np.random.default_rng([seed, int(of_json(request.context.tolist())[:16], 16)])
    masked = (rng.integers(length) + np.arange(samples) * length // samples) % length + 1
    places = rng.permuted(np.tile(np.arange(length), (samples, 1)), axis=1)
    return places < masked[:, None]


@functools.partial(jax.jit, static_argnames="answer_width")
def _negative_log_likelihood(
    model: Transformer,
    tokens: Int[Array, "S T"],
    first: Int[Array, ""],
    length: Int[Array, ""],
    answer: Int[Array, " A"],
    masked: Bool[Array, "S A"],
    answer_width: int,
) -> Float[Array, " S"]:
    """Σ -log p over the masked tokens of each sample.

    Args:
      model: its parameters are arguments of the program.
      tokens: [context | answer with its masks | padding].
      first: column of the answer's first token.
      length: tokens of context and answer.
      answer, masked: padded to `answer_width`; padding is not masked.
      answer_width: columns that are predicted.
    """
    # A token is predicted in its own column, or one before it (Dream).
    start = first - int(family_of(model.config).shift)
    hidden, _ = model.hidden(
        tokens,
        jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape),
        jnp.broadcast_to(length, tokens.shape[:1]),
        wanted=lambda x: lax.dynamic_slice_in_dim(x, start, answer_width, axis=1),
    )
    z = model.logits(hidden).astype(jnp.float32)
    chosen = jnp.arange(z.shape[-1]) == answer[:, None]
    nll = jax.nn.logsumexp(z, axis=-1) - jnp.sum(jnp.where(chosen, z, 0.0), axis=-1)
    return jnp.sum(jnp.where(masked, nll, 0.0), axis=-1)


def log_likelihoods(
    model: Transformer,
    requests: Sequence[Request],
    *,
    mc_num: int,
    seed: int,
    skip: Collection[int] = (),
) -> Iterator[Score]:
    """Estimates for a list of requests, the longest first.

    Args:
      model: from `r2jax.load`.
      requests: of at most the model's positions; with a family that predicts a token in the column
        before it, contexts of at least one token.
      mc_num: samples of each.
      seed: of the masks.
      skip: indices that are done already.
    """
    order = sorted(
        (i for i in range(len(requests)) if i not in skip), key=lambda i: (_shape(requests[i]), -i)
    )
    flying: deque[tuple[int, Array, np.ndarray, float]] = deque()
    last = time.perf_counter()
    compiled = 0.0

    def land() -> Score:
        nonlocal last, compiled
        index, losses, weights, compiling = flying.popleft()
        value = -float(np.mean(weights * np.asarray(losses, np.float64)[: len(weights)]))
        now = time.perf_counter()
        # Compiling happened while the requests before this one were under way.
        seconds, last, compiled = now - last - compiled, now, 0.0
        return Score(index, value, max(seconds, 0.0), compiling)

    for index in reversed(order):
        with Clock() as clock:
            losses, weights = _start(model, requests[index], mc_num, seed)
        compiled += clock.compiling
        flying.append((index, losses, weights, clock.compiling))
        if len(flying) > _AHEAD:
            yield land()
    while flying:
        yield land()


def greedy_matches(
    model: Transformer,
    requests: Sequence[Request],
    *,
    batch_size: int,
    skip: Collection[int] = (),
) -> Iterator[tuple[int, bool]]:
    """Whether each answer is what greedy decoding would give: everything masked, and the surest
    token committed at each of L steps (of Dream by its own schedule, which commits none at the
    first and two at the last)."""
    by_length: dict[int, list[int]] = {}
    for i, request in enumerate(requests):
        if i not in skip:
            by_length.setdefault(len(request.answer), []).append(i)
    for length, indices in sorted(by_length.items()):
        config = DecodeConfig.vanilla(
            gen_length=length, block_length=length, spatial_threshold=None, temporal_threshold=None
        )
        contexts = [requests[i].context for i in indices]
        for batch in generate_many(model, contexts, config, batch_size=batch_size):
            for row, k in enumerate(batch.indices):
                index = indices[k]
                found = np.asarray(batch.output.tokens)[row]
                yield index, bool((found == requests[index].answer).all())


def _shape(request: Request) -> tuple[int, int]:
    """The widths of a request's program: all its columns, and those that are predicted."""
    answer = 1 << max(len(request.answer) - 1, 7).bit_length()
    return bucket(len(request.context) + answer), answer


def _start(
    model: Transformer, request: Request, mc_num: int, seed: int
) -> tuple[Array, Float[np.ndarray, " M"]]:
    """Hand all samples of a request to the device: their sums, on their way, and their weights."""
    width, answer_width = _shape(request)
    first, length = len(request.context), len(request.answer)
    masked = np.zeros((mc_num, answer_width), bool)
    masked[:, :length] = draw_masks(request, mc_num, seed)
    answer = np.zeros(answer_width, np.int32)
    answer[:length] = request.answer
    tokens = np.full((mc_num, width), model.config.pad_id, np.int32)
    tokens[:, :first] = request.context
    tokens[:, first : first + length] = np.where(
        masked[:, :length], model.config.mask_id, request.answer
    )
    mesh = mesh_of(model)
    parts = 1 if mesh is None else mesh.shape["data"]
    rows = min(-(-max(TOKENS // width, 1) // parts), -(-mc_num // parts)) * parts
    filled = np.minimum(np.arange(-(-mc_num // rows) * rows), mc_num - 1)

    def put(x: np.ndarray) -> Any:
        if mesh is None:
            return jnp.asarray(x)
        axes = ("batch",) if batch_axes(mesh, len(x)) else (None,)
        return jax.device_put(x, named_sharding(mesh, axes))

    parts_of_all = [
        _negative_log_likelihood(
            model,
            put(tokens[chosen]),
            jnp.int32(first),
            jnp.int32(first + length),
            jnp.asarray(answer),
            put(masked[chosen]),
            answer_width,
        )
        for chosen in np.split(filled, len(filled) // rows)
    ]
    weights = length / masked.sum(1)
    return jnp.concatenate(parts_of_all), weights
