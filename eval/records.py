"""Generations and scores, kept one by one as they are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from eval.likelihood import Request, greedy_matches, log_likelihoods
from eval.results_file import RULES
from r2jax.batches import Batch, generate_many
from r2jax.clock import Meter
from r2jax.decode_config import DecodeConfig
from r2jax.model import Transformer

Record = dict[str, Any]


class Keeper(Protocol):
    """Where records are kept while they are made: a `Journal`, or memory."""

    @property
    def done(self) -> Collection[int]: ...
    def append(self, records: Mapping[int, Any]) -> None: ...
    def records(self) -> Iterator[Any]: ...


class Memory:
    """Records that are gone with the process."""

    def __init__(self) -> None:
        self._kept: dict[int, Any] = {}

    @property
    def done(self) -> Collection[int]:
        return self._kept.keys()

    def append(self, records: Mapping[int, Any]) -> None:
        self._kept |= records

    def records(self) -> Iterator[Any]:
        return (self._kept[index] for index in sorted(self._kept))


def keep_generations(
    model: Transformer,
    prompts: list[np.ndarray],
    config: DecodeConfig,
    keeper: Keeper,
    *,
    batch_size: int,
    seed: int,
    what: str,
) -> None:
    """Decode what is not kept yet: of each row all its tokens, its counts and its share of time.

    Args:
      model: from `r2jax.load`.
      prompts: token ids of all requests.
      config: with its EOS.
      keeper: takes the records.
      batch_size: rows decoded together.
      seed: of sampling.
      what: goes on, for the progress.
    """
    done = frozenset(keeper.done)
    batches = generate_many(
        model, prompts, config, batch_size=batch_size, key=jax.random.key(seed), skip=done
    )
    with Meter(_titled(what, done), len(prompts), len(done)) as meter:
        for batch in batches:
            records = _records(batch)
            keeper.append(records)
            meter.add(
                prompts=len(records),
                tokens=int((np.asarray(batch.output.tokens) != model.config.eos_id).sum()),
                nfe=int(batch.output.nfe.sum()),
                seconds=batch.seconds,
                compiling=batch.compile_seconds,
            )


def _titled(what: str, done: Collection[int]) -> str:
    return f"{what} ({len(done)} are done)" if done else what


def _records(batch: Batch) -> dict[int, Record]:
    out, rows = batch.output, len(batch.indices)
    return {
        index: {
            "ids": np.asarray(out.tokens)[i].tolist(),
            "nfe": int(out.nfe[i]),
            "refreshes": int(out.refreshes[i]),
            **{
                kind: {name: int(getattr(getattr(out.counts, kind), name)[i]) for name in RULES}
                for kind in ("actual", "potential")
            },
            "seconds": batch.seconds / rows,
            "compile_seconds": batch.compile_seconds / rows,
        }
        for i, index in enumerate(batch.indices)
    }


def keep_scores(
    model: Transformer,
    requests: list[Request],
    keeper: Keeper,
    *,
    mc_num: int,
    check_greedy: bool,
    batch_size: int,
    seed: int,
    what: str,
) -> None:
    """Score what is not kept yet: of each request value, greedy, seconds and compile_seconds.

    Args:
      model: from `r2jax.load`.
      requests: all of them.
      keeper: takes the records.
      mc_num: samples of each.
      check_greedy: say whether an answer is the greedy one; else False.
      batch_size: rows of the greedy check.
      seed: of the masks.
      what: goes on, for the progress.
    """
    done = frozenset(keeper.done)
    greedy: dict[int, bool] = {}
    if check_greedy:
        greedy |= greedy_matches(model, requests, batch_size=batch_size, skip=done)
    scores = log_likelihoods(model, requests, mc_num=mc_num, seed=seed, skip=done)
    with Meter(_titled(what, done), len(requests), len(done)) as meter:
        for score in scores:
            record = dataclasses.asdict(score) | {"greedy": greedy.get(score.index, False)}
            keeper.append({record.pop("index"): record})
            meter.add(
                prompts=1,
                tokens=len(requests[score.index].answer),
                nfe=mc_num,
                seconds=score.seconds,
                compiling=score.compile_seconds,
            )
