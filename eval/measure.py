"""Time one decoding configuration: the whole run, and its refreshes and block steps apart.

Thresholds are traced, so one compiled program also runs two schedules whose forwards are known:

  threshold 0                  the first forward that may commits all of a block: LLaDA's refresh,
                               the one step after it of Dream
  nothing but the best token   as many forwards as tokens, rows in lock step

The two give the times of a refresh and of a block step for any batch. Where blocks differ in size
(prefix cache, suffix window) refresh and step are means over the blocks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import r2jax
from eval.device import peak_memory_gb, timed_result, warm_result
from eval.floors import Rates, columns, floor, work
from r2jax.generate import BUCKET
from r2jax.layout import wasted_columns
from r2jax.sharding import named_sharding
from r2jax.spread import decode_on

ONE_PASS = {"threshold": 0.0, "steps_per_block": 1}
BEST_ONLY = {
    "threshold": 2.0,
    "spatial_threshold": 2.0,
    "temporal_threshold": 2.0,
    "leap_threshold": 2.0,
    "confidence_alpha": 0.0,
}


def pad(
    prompts: Sequence[Sequence[int]], width: int, mesh: Mesh | None = None
) -> tuple[jax.Array, jax.Array]:
    """Tokens [batch, width rounded up to a bucket] and lengths [batch], on the mesh (filled up to a
    multiple of its data axis with rows of length 0, which take no part)."""
    more = 0 if mesh is None else -len(prompts) % mesh.shape["data"]
    lengths = np.array([len(row) for row in prompts] + [0] * more, np.int32)
    tokens = np.zeros((len(lengths), -(-width // BUCKET) * BUCKET), np.int32)
    for out, row in zip(tokens, prompts, strict=False):
        out[: len(row)] = row
    if mesh is None:
        return jnp.asarray(tokens), jnp.asarray(lengths)
    return jax.device_put((tokens, lengths), named_sharding(mesh, ("batch",)))


class Program:
    """A compiled decode with its arguments, to be run with other scalars at will."""

    def __init__(
        self,
        model: r2jax.Transformer,
        config: r2jax.DecodeConfig,
        inputs: tuple[jax.Array, jax.Array],
        mesh: Mesh | None = None,
        *,
        trace: bool = False,
    ) -> None:
        self.model, self.inputs = model, inputs
        function = r2jax.decode if mesh is None else decode_on(mesh)
        self.static, self.scalars = config.split(model.config.eos_id, trace=trace)
        start = time.perf_counter()
        self.compiled = function.lower(model, *inputs, self.static, self.scalars).compile()
        self.compile_seconds = time.perf_counter() - start

    def run(self, **changes: Any) -> r2jax.DecodeOutput:
        """Decode; `changes` replace scalars of the same name where there are such."""
        known = {name: value for name, value in changes.items() if name in self.scalars._fields}
        return self.compiled(self.model, *self.inputs, self.scalars._replace(**known))

    def memory_gb(self) -> float | None:
        """What the program needs on each device: arguments (weights), results and temporaries."""
        sizes = self.compiled.memory_analysis()
        if sizes is None:
            return None
        names = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
        return sum(getattr(sizes, name) for name in names) / 1e9


def answer_tokens(tokens: np.ndarray, eos_ids: Sequence[int]) -> int:
    """Tokens before the first end token of each row, summed over the rows."""
    ended = np.isin(tokens, list(eos_ids))
    return int(np.where(ended.any(axis=1), ended.argmax(axis=1), tokens.shape[1]).sum())


def summary(out: r2jax.DecodeOutput, seconds: float, eos_ids: Sequence[int]) -> dict[str, Any]:
    """A run in numbers. Rows that only fill up the batch took no forward and are left out."""
    rows = np.asarray(out.nfe) > 0
    nfe = np.asarray(out.nfe)[rows]
    tokens = answer_tokens(np.asarray(out.tokens)[rows], eos_ids)
    return {
        "seconds": seconds,
        "nfe": nfe.tolist(),
        "nfe_mean": float(nfe.mean()),
        "nfe_max": int(nfe.max()),
        "refreshes": int(np.max(out.refreshes)),
        "ms_per_nfe": 1e3 * seconds / int(nfe.max()),
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
    }


def columns_fed(
    config: r2jax.DecodeConfig, program: Program, lengths: Sequence[int]
) -> dict[str, Any]:
    """Columns that a refresh and a block step need and are fed, means over blocks and rows.

    More are fed where prompts are padded and where blocks of different widths share a stretch of
    the program (layout.py).
    """
    blocks = range(program.static.num_blocks)
    needed = np.mean([columns(config, block) for block in blocks], axis=0)
    wasted = np.mean(wasted_columns(program.static), axis=0)
    prompt, padded = float(np.mean(lengths)), program.inputs[0].shape[1]
    result = {
        "refresh_needed": needed[0] + prompt,
        "refresh_fed": needed[0] + padded + wasted[0],
    }
    if program.static.cache != "none":
        result |= {"step_needed": needed[1], "step_fed": needed[1] + wasted[1]}
    return {name: float(value) for name, value in result.items()}


def split_times(program: Program, real: dict[str, Any], repeats: int) -> tuple[float | None, float]:
    """Milliseconds of a refresh (None without a cache) and of a step, from two known schedules.

    Args:
      program: already run once.
      real: the summary of its own run; it is one of the schedules where it took as many forwards.
      repeats: timed runs of each schedule.
    """

    def schedule(**changes: Any) -> tuple[int, int, float]:
        out, seconds = timed_result(lambda: program.run(**changes), repeats)
        return int(np.max(out.nfe)), int(np.max(out.refreshes)), seconds

    static = program.static
    if real["nfe_max"] == static.gen_length:
        slow = real["nfe_max"], real["refreshes"], real["seconds"]
    else:
        slow = schedule(**BEST_ONLY, steps_per_block=static.block_length)
    if static.cache == "none":
        return None, 1e3 * slow[2] / slow[0]
    fast = schedule(**ONE_PASS)
    # Two equations in the time of a refresh and of a step. Blocks of one token have no further
    # steps in the slow schedule: the few there are then count to the refresh.
    steps = [forwards - refreshes for forwards, refreshes, _ in (fast, slow)]
    more = steps[1] - steps[0] * slow[1] / fast[1]
    step = (slow[2] - fast[2] * slow[1] / fast[1]) / max(more, 1)
    refresh = (fast[2] - steps[0] * (step if more else 0.0)) / fast[1]
    return 1e3 * refresh, 1e3 * step


def run_at_nfe(program: Program, target: int, repeats: int, eos_ids: Sequence[int]) -> Any:
    """A real run at about `target` forwards: the threshold is searched on the same program.

    Returns:
      The run's summary with its threshold; None if the configuration has no threshold.
    """
    if program.static.transfer != "threshold":
        return None
    low, high, best = 0.0, 1.0, (target, 0.0)
    for _ in range(12):
        threshold = (low + high) / 2
        nfe = int(np.max(program.run(threshold=threshold).nfe))
        best = min(best, (abs(nfe - target), threshold))
        if nfe == target:
            break
        low, high = (threshold, high) if nfe < target else (low, threshold)
    out, seconds = timed_result(lambda: program.run(threshold=best[1]), repeats)
    return {"threshold": best[1], **summary(out, seconds, eos_ids)}


def forwards_per_block(states: np.ndarray, mask_id: int, length: int) -> np.ndarray:
    """How many forwards each row took in each block: [batch, blocks] from the trace's states."""
    blocks = states.shape[2] // length
    masked = states == mask_id
    # Blocks go left to right. Dream's idle step after a refresh that has completed its block counts
    # to the next one, after the last block to itself.
    first = np.where(masked.any(axis=2), masked.argmax(axis=2) // length, blocks - 1)
    used = states[:, :, 0] != -1
    rows = zip(first, used, strict=True)
    return np.stack([np.bincount(row[own], minlength=blocks) for row, own in rows])


def lock_step(
    forwards: Sequence[np.ndarray], ms_per_refresh: float | None, ms_per_step: float
) -> dict[str, Any]:
    """What it costs that rows wait for each other at the end of each block, and what rows that
    advance independently could gain at most: all steps at the same price, nothing else lost.

    Args:
      forwards: [batch, blocks] of each batch decoded.
      ms_per_refresh, ms_per_step: of such a batch; None: every forward is a step.
    """
    together = sum(int(f.max(axis=0).sum()) for f in forwards)
    alone = sum(int(f.sum(axis=1).max()) for f in forwards)
    refreshes = 0 if ms_per_refresh is None else sum(int((f > 0).any(0).sum()) for f in forwards)
    base = refreshes * (ms_per_refresh or 0.0)
    cost = [base + (n - refreshes) * ms_per_step for n in (together, alone)]
    return {
        "batches": len(forwards),
        "refreshes": refreshes,
        "forwards_in_lock_step": together,
        "forwards_if_independent": alone,
        "mean_forwards_of_a_row": float(np.mean([f.sum(axis=1).mean() for f in forwards])),
        "bound_on_gain_of_independent_rows": cost[0] / cost[1],
    }


def trajectories(
    model: r2jax.Transformer,
    config: r2jax.DecodeConfig,
    prompts: Sequence[Sequence[int]],
    batch: int,
    mesh: Mesh | None,
) -> list[np.ndarray]:
    """Forwards per row and block of all full batches of `prompts`, from traced runs."""
    width = max(map(len, prompts))
    program, forwards = None, []
    for i in range(0, len(prompts) - batch + 1, batch):
        inputs = pad(prompts[i : i + batch], width, mesh)
        if program is None:
            program = Program(model, config, inputs, mesh, trace=True)
        program.inputs = inputs
        states = np.asarray(program.run().states)[:batch]
        length = program.static.block_length
        forwards.append(forwards_per_block(states, model.config.mask_id, length))
    return forwards


def measure(
    model: r2jax.Transformer,
    config: r2jax.DecodeConfig,
    prompts: Sequence[Sequence[int]],
    rates: Rates,
    *,
    batch: int,
    mesh: Mesh | None = None,
    repeats: int = 3,
    target_nfe: int | None = None,
    trace_rows: bool = False,
) -> tuple[Program, dict[str, Any]]:
    """Everything that is measured of one configuration.

    Args:
      model: on the devices.
      config: how to decode.
      prompts: the first `batch` of them are timed; `trace_rows` looks at all full batches.
      rates: of the device, for the floors.
      batch: rows decoded together.
      mesh: on which the model lives.
      repeats: timed runs, of which the median counts.
      target_nfe: also time a run at about this many forwards.
      trace_rows: also count the forwards of each row in each block (compiles once more).
    """
    rows = prompts[:batch]
    lengths = [len(row) for row in rows]
    program = Program(model, config, pad(rows, max(lengths), mesh), mesh)
    eos_ids = config.eos_ids or (model.config.eos_id,)
    real = summary(*warm_result(program.run, repeats), eos_ids)
    refresh_ms, step_ms = split_times(program, real, repeats)

    refresh_floor = floor(rates, work(model, config, lengths, refresh=True), refresh_ms)
    step_floor = floor(rates, work(model, config, lengths, refresh=False), step_ms)
    refreshes = 0 if refresh_ms is None else real["refreshes"]
    result: dict[str, Any] = {
        "prompt_lengths": lengths,
        "compile_seconds": program.compile_seconds,
        "program_memory_gb": program.memory_gb(),
        **real,
        "columns": columns_fed(config, program, lengths),
        "ms_per_refresh": refresh_ms,
        "ms_per_step": step_ms,
        "floor_refresh": None if refresh_ms is None else refresh_floor,
        "floor_step": step_floor,
    }
    if "ms" in step_floor:
        least = refreshes * refresh_floor["ms"] + (real["nfe_max"] - refreshes) * step_floor["ms"]
        result["floor_run"] = {"ms": least, "ratio": 1e3 * real["seconds"] / least}
    if target_nfe is not None:
        steps = target_nfe - (0 if refresh_ms is None else program.static.num_blocks)
        seconds = ((target_nfe - steps) * (refresh_ms or 0.0) + steps * step_ms) / 1e3
        result["composed_at_target_nfe"] = {
            "refreshes": target_nfe - steps,
            "steps": steps,
            "seconds": seconds,
            "tokens_per_second": batch * config.gen_length / seconds,
        }
        result["run_at_target_nfe"] = run_at_nfe(program, target_nfe, repeats, eos_ids)
    if trace_rows:
        forwards = trajectories(model, config, prompts, batch, mesh)
        result["lock_step"] = lock_step(forwards, refresh_ms, step_ms)
    devices = list(mesh.devices.flat) if mesh is not None else jax.devices()[:1]
    result["peak_memory_gb"] = peak_memory_gb(devices)
    return program, result
