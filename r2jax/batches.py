"""`generate_many`: a list of prompts of any length and number, decoded in batches.

**Batches.** Prompts are sorted by length, the longest first, and cut into batches. That is the
least number of batches, of the least total width; the widest come first, so that a batch too large
for the memory is found at once. Two rules keep the number of compiled programs small:
- A batch keeps the width of the one before it while that is at most an eighth wider than it needs.
- The last batch is filled up with copies of its last row, which are dropped. They take the very
  steps of that row, so they never make a batch last longer.

**Rows do not see their batch.** Row i of the list has the random key `fold_in(key, i)`; its result
is the same for every batch size (exactly in float32; in bfloat16, or with 8-bit weights, up to
near-ties).

**Overlap.** The next batch is handed to the device (and compiled, where its shape is new) before
the last one is waited for, so the device has work while the host reads and writes results.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np

from r2jax.clock import Clock
from r2jax.decode import DecodeOutput
from r2jax.decode_config import DecodeConfig
from r2jax.generate import bucket, check_config, check_prompts, dispatch, row_keys
from r2jax.model import Transformer

# How much wider than needed a batch may be, so as to share a program with the batch before it. Only
# refreshes and attention pay for width (below 1/8 of a refresh here), and a compilation costs as
# much as dozens of batches.
SLACK = 1 / 8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Some rows of a long list."""

    indices: list[int]
    """Which prompts of the list, one a row."""
    output: DecodeOutput
    """Their results, as NumPy arrays."""
    seconds: float
    """From the batch before it (or, if the device was idle, from its own start) to its end."""
    compile_seconds: float
    """Spent compiling before it could start."""


def generate_many(
    model: Transformer,
    prompts: Sequence[Sequence[int] | np.ndarray],
    config: DecodeConfig | None = None,
    *,
    batch_size: int,
    key: jax.Array | None = None,
    skip: Collection[int] = (),
    trace: bool = False,
) -> Iterator[Batch]:
    """Decode a list of prompts in batches, grouped by length.

    Example, resumable (`Journal` keeps records on the disk)::

        with Journal("out.jsonl", settings, len(prompts)) as journal:
            for batch in generate_many(model, prompts, batch_size=64, skip=journal.done):
                rows = batch.output.tokens.tolist()
                journal.append(dict(zip(batch.indices, rows)))
            journal.finish()

    Args:
      model: from `r2jax.load`, on one device or sharded on a mesh.
      prompts: token ids; K candidates of a prompt are the prompt K times.
      config: default R²-dLLM (`DecodeConfig()`).
      batch_size: rows decoded together; shorter lists are one batch of their own size.
      key: one random key (row i of the list uses `fold_in(key, i)`), or one a row.
      skip: indices that are done already.
      trace: as for `generate`.

    Returns:
      An iterator over batches, not in the list's order: `Batch.indices` says which rows. While one
      is used the next is being decoded.

    Raises:
      ValueError: whatever `generate` refuses, before anything is decoded.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    config = DecodeConfig() if config is None else config
    check_config(config, model.config)
    rows = check_prompts(prompts, model.config, config.gen_length)
    static, scalars = config.split(model.config.eos_id, trace=trace)
    keys = row_keys(key, len(rows), static.needs_key)
    left = [i for i in range(len(rows)) if i not in skip]
    size = min(batch_size, len(left))

    def start(indices: list[int], width: int) -> tuple[list[int], DecodeOutput, Clock]:
        filled = np.array(indices + indices[-1:] * (size - len(indices)))
        with Clock() as clock:
            output = dispatch(
                model,
                [rows[i] for i in filled],
                static,
                scalars,
                None if keys is None else keys[filled],
                width=width,
            )
        return indices, output, clock

    plan = plan_batches([len(row) for row in rows], left, batch_size, config.gen_length)
    return _overlapped(start(*batch) for batch in plan)


def plan_batches(
    lengths: Sequence[int], indices: Sequence[int], batch_size: int, gen_length: int
) -> list[tuple[list[int], int]]:
    """Batches of a list: the rows of each, and the width that its prompts are padded to.

    Args:
      lengths: of all prompts, in tokens.
      indices: the prompts to batch.
      batch_size: rows of each batch; the last may have fewer.
      gen_length: the columns that every row has beside its prompt.
    """
    order = sorted(indices, key=lambda i: (-bucket(lengths[i]), i))
    plan: list[tuple[list[int], int]] = []
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        width = bucket(lengths[batch[0]])
        if plan and gen_length + plan[-1][1] <= (1 + SLACK) * (gen_length + width):
            width = plan[-1][1]
        plan.append((batch, width))
    return plan


def _overlapped(started: Iterator[tuple[list[int], DecodeOutput, Clock]]) -> Iterator[Batch]:
    """Results of batches, each fetched after the next has been started."""
    flying: deque[tuple[list[int], Clock, float, Future[tuple[DecodeOutput, float]]]] = deque()
    before = 0.0

    def land() -> Batch:
        nonlocal before
        indices, clock, start, future = flying.popleft()
        output, end = future.result()
        begin, before = max(start, before), end
        return Batch(
            indices=indices,
            output=jax.tree.map(lambda x: x[: len(indices)], output),
            seconds=end - begin,
            compile_seconds=clock.compiling,
        )

    # A thread waits for the device, so that a batch's end is seen while the next one compiles.
    waiter = ThreadPoolExecutor(1)
    try:
        began = time.perf_counter()
        for indices, output, clock in started:
            # From before the dispatch: on several CPU devices it returns when all is done.
            start = began + clock.compiling
            flying.append((indices, clock, start, waiter.submit(_fetch, output)))
            if len(flying) > 1:
                yield land()
            began = time.perf_counter()
        while flying:
            yield land()
    finally:
        waiter.shutdown(wait=False, cancel_futures=True)


def _fetch(output: DecodeOutput) -> tuple[DecodeOutput, float]:
    return jax.device_get(output), time.perf_counter()
