"""The decode rules and the loops of LLaDA and Dream in plain NumPy: slow, one row, position by
position.

Written from the specification alone, without a look at the jitted modules, so that agreement means
something. Arithmetic is float64. Within a step candidates are ranked by `rest`, the residual mass
(ascending, ties to the lowest position), and thresholds compare `confidence` = 1 / (1 + rest).
tests/oracle_networks.py has a NumPy LLaDA and Dream to run it on; with those it reproduces all 452
golden cases of LLaDA and R2, all 63 of Streaming-dLLM and all 114 of Dream.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

Array = np.ndarray
Pass = Literal["full", "prefix", "dual"]
Family = Literal["llada", "dream"]
# (all tokens [P + G], first and one-past-last position of the block, kind of pass, the positions
# attended to, ascending) -> the logits that decide the block's positions
Forward = Callable[[Array, int, int, Pass, Array], Array]
# (block logits [B, V], the row's own NFE index, block start) -> (token [B], rest [B])
Sample = Callable[[Array, int, int], tuple[Array, Array]]

# ---- predictions ---------------------------------------------------------------------------------


def top1(
    logits: Float[Array, "*B V"], mask_id: int
) -> tuple[Int[Array, "*B"], Float[Array, "*B"], Float[Array, "*B"]]:
    """The most likely token other than the mask, its residual mass and its confidence.

    rest = sum over all other ids, the mask included, of exp(z_j - z_top); ties: lowest id.
    """
    allowed = np.array(logits, np.float64)
    allowed[..., mask_id] = -np.inf
    token = allowed.argmax(-1)
    rest = residual(logits, token)
    return token, rest, 1 / (1 + rest)


def residual(logits: Float[Array, "*B V"], token: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """The mass of all ids but `token` relative to that of `token`."""
    z = np.array(logits, np.float64)
    chosen = np.expand_dims(token, -1)
    with np.errstate(over="ignore"):  # a hopeless token may have rest = inf, confidence 0
        mass = np.exp(z - np.take_along_axis(z, chosen, -1))
    np.put_along_axis(mass, chosen, 0.0, -1)
    return mass.sum(-1)


def score(logits: Float[Array, "*B V"], alg: str) -> Float[Array, "*B"]:
    """How sure a distribution is by another measure than its largest probability; larger is surer.

    "entropy": minus the entropy, sum of p log(p + 1e-10); "topk_margin": the largest probability
    minus the second largest.
    """
    z = np.array(logits, np.float64)
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    if alg == "entropy":
        return (p * np.log(p + 1e-10)).sum(-1)
    first, second = np.moveaxis(np.sort(p, -1)[..., :-3:-1], -1, 0)
    return {"topk_margin": first - second}[alg]


# ---- transfer: which masked positions of one block to commit (specification 3.1, 3.2) ------------


def ranked(masked: Bool[Array, " B"], rest: Float[Array, " B"]) -> list[int]:
    """The masked positions from most to least certain; equal ones in order of position."""
    return sorted((j for j in range(len(masked)) if masked[j]), key=lambda j: (rest[j], j))


def schedule(masked: Bool[Array, " B"], rest: Float[Array, " B"], quota: int) -> Bool[Array, " B"]:
    """The `quota` most certain masked positions, or all of them when there are fewer."""
    commit = np.zeros(len(masked), bool)
    commit[ranked(masked, rest)[:quota]] = True
    return commit


def quotas(masks: int, steps: int) -> list[int]:
    """How many positions each of a block's `steps` passes commits: even, the remainder first."""
    return [masks // steps + (1 if i < masks % steps else 0) for i in range(steps)]


def freed(masks: int, step: int, steps: int) -> int:
    """How many of the `masks` left Dream's schedule commits at step 0 .. steps - 1: the share 1 -
    s / t of them, rounded down, as time passes from t to s; the last step commits all.

    Times run from 1 to 0.001 in `steps` equal parts; all in float32.
    """
    if step == steps - 1:
        return masks
    time = np.linspace(1, 1e-3, steps + 1).astype(np.float32)
    return int(np.float32(masks) * (np.float32(1) - time[step + 1] / time[step]))


def room(masked: Bool[Array, " B"], step: int, each: int) -> int:
    """How many positions Dream's plain sampler considers at a step: `each`, and those that it
    refused before. That is what `each` a step allows by now, without what has been written."""
    return min(each * (step + 1), len(masked)) - int((~masked).sum())


def threshold(
    masked: Bool[Array, " B"],
    rest: Float[Array, " B"],
    confidence: Float[Array, " B"],
    limit: float | Float[Array, " B"],
    most: int | None = None,
) -> Bool[Array, " B"]:
    """The most certain masked position always, and every other one with confidence >= limit (one
    for all, or each its own). most: only the so many most certain are considered (None: all)."""
    limits = np.broadcast_to(limit, len(masked))
    commit = schedule(masked, rest, 1)
    for j in ranked(masked, rest)[: None if most is None else max(most, 0)]:
        if confidence[j] >= limits[j]:
            commit[j] = True
    return commit


def leap(
    masked: Bool[Array, " B"],
    confidence: Float[Array, " B"],
    limit: float,
    lower: float,
    radius: int,
) -> Float[Array, " B"]:
    """LocalLeap's limits: `lower` within `radius` positions of a masked one with confidence >=
    limit (an anchor), `limit` elsewhere."""
    limits = np.full(len(masked), limit)
    for anchor in range(len(masked)):
        if masked[anchor] and confidence[anchor] >= limit:
            limits[max(0, anchor - radius) : anchor + radius + 1] = lower
    return limits


def factor(
    masked: Bool[Array, " B"],
    rest: Float[Array, " B"],
    confidence: Float[Array, " B"],
    scale: float,
) -> Bool[Array, " B"]:
    """Fast-dLLM's rank-dependent bound, with its quirk: if only the last rank fails, it passes too.

    Rank k = 2, 3, ... (1 = most certain) fails when its confidence < 1 - scale / (k + 1).
    """
    order = ranked(masked, rest)
    n = len(order)
    count = n
    for k in range(2, n):  # rank n is never asked: whether it fails or not, it is committed
        if confidence[order[k - 1]] < 1 - scale / (k + 1):
            count = k - 1
            break
    commit = np.zeros(len(masked), bool)
    commit[order[:count]] = True
    return commit


# ---- redundancy rules of R2 on one block (specification 4.3 - 4.5) -------------------------------


def confidence_cluster(
    masked: Bool[Array, " B"],
    confidence: Float[Array, " B"],
    size: int,
    limit: float,
    unmasked_limit: int | None,
    dtype: Any = np.float64,
) -> tuple[Bool[Array, " B"], int]:
    """Masked positions of all windows whose masked ones have mean confidence >= limit.

    Windows of `size` lie inside the block, overlap, and are all judged on the same state. One with
    more than `unmasked_limit` unmasked positions (None: no limit) or without a mask does not count.
    The mean is rounded to `dtype`.
    Returns (positions, number of qualifying windows); a window longer than the block: none.
    """
    hit = np.zeros(len(masked), bool)
    windows = 0
    for a in range(len(masked) - size + 1):
        inside = [j for j in range(a, a + size) if masked[j]]
        if not inside:
            continue
        if unmasked_limit is not None and size - len(inside) > unmasked_limit:
            continue
        mean = sum(float(confidence[j]) for j in inside) / len(inside)
        if float(dtype(mean)) >= limit:
            hit[inside] = True
            windows += 1
    return hit, windows


def token_cluster(
    masked: Bool[Array, " B"],
    tokens: Int[Array, " B"],
    confidence: Float[Array, " B"],
    limit: float,
    min_size: int,
    mode: str,
) -> tuple[Bool[Array, " B"], int]:
    """One position of every run of masked neighbours that predict the same token.

    A run is maximal, has at least `min_size` positions, and its highest confidence is > limit.
    mode "confidence": the first position of that confidence; "mid": start + length // 2.
    Returns (positions, number of runs).
    """
    picked = np.zeros(len(masked), bool)
    runs = 0
    start = 0
    while start < len(masked):
        stop = start + 1
        if masked[start]:
            while stop < len(masked) and masked[stop] and tokens[stop] == tokens[start]:
                stop += 1
            best = max(range(start, stop), key=lambda j: confidence[j])  # max keeps the first
            if stop - start >= min_size and confidence[best] > limit:
                picked[{"confidence": best, "mid": start + (stop - start) // 2}[mode]] = True
                runs += 1
        start = stop
    return picked, runs


class Temporal:
    """How long each position of one block has kept its top-1 token. A new block takes a new one."""

    def __init__(self, length: int):
        self.count, self.total = [0] * length, [0.0] * length
        self.token, self.highest = [-1] * length, [0.0] * length

    def reset(self, j: int) -> None:
        """Forget what position `j` has shown."""
        self.count[j], self.total[j], self.token[j], self.highest[j] = 0, 0.0, -1, 0.0

    def update(
        self,
        active: Bool[Array, " B"],
        candidate_before: Bool[Array, " B"],
        tokens: Int[Array, " B"],
        confidence: Float[Array, " B"],
        steps: int,
        limit: float,
        evaluate: str,
    ) -> Bool[Array, " B"]:
        """Observe one pass and return the positions to finalise.

        `candidate_before`: masked when the pass began; `active`: those still masked when this rule
        comes on. A streak of `steps` or more passes with value >= limit fires and is forgotten; one
        that fails the limit is kept. `evaluate`: "last" confidence, "ave" or "max" of the streak.
        """
        fired = np.zeros(len(active), bool)
        for j in range(len(active)):
            if not candidate_before[j]:
                continue
            if not active[j]:
                self.reset(j)
                continue
            c = float(confidence[j])
            if self.token[j] != tokens[j]:
                self.reset(j)
                self.token[j] = int(tokens[j])
            self.count[j] += 1
            self.total[j] += c
            self.highest[j] = max(self.highest[j], c)
            average = self.total[j] / self.count[j]
            value = {"last": c, "ave": average, "max": self.highest[j]}[evaluate]
            if self.count[j] >= steps and value >= limit:
                fired[j] = True
                self.reset(j)
        return fired


# ---- Streaming-dLLM (specification 6) ------------------------------------------------------------


def seen(total: int, end: int, window: int | None) -> Int[Array, " N"]:
    """Positions attended to: all up to the block's end, then the window and the last position, or
    the whole suffix if that fits into the window (None: always)."""
    suffix = list(range(end, total))
    if window is not None and len(suffix) > window:
        suffix = [*suffix[:window], total - 1]
    return np.array([*range(end), *suffix])


# ---- the loop ------------------------------------------------------------------------------------


@dataclass
class Counts:
    """Redundancy: qualifying windows, runs, finalised positions."""

    confidence: int = 0
    token: int = 0
    temporal: int = 0


@dataclass
class Decoded:
    """One decoded row. `committed_by`: 0 transfer, 1 window, 2 run, 3 temporal, 4 after EOS, -1
    nobody (still a mask)."""

    tokens: Int[Array, " G"]
    nfe: int
    refreshes: int  # full passes; without a cache every pass is one
    reported: int  # what the family's own program counts
    states: Int[Array, "nfe G"]
    blocks: Int[Array, " nfe"]
    predictions: Int[Array, "nfe L"]  # top-1 of the block, and its probability
    confidences: Float[Array, "nfe L"]
    committed_by: Int[Array, " G"]
    actual: Counts = field(default_factory=Counts)
    potential: Counts = field(default_factory=Counts)


# The names and defaults of r2jax.DecodeConfig (those that concern a greedy row).
DEFAULTS: dict[str, Any] = dict(
    gen_length=256, block_length=32, steps=None, cache="dual", threshold=0.9, factor=None,
    alg="confidence",
    confidence_cluster_size=3, spatial_threshold=0.8, confidence_cluster_unmasked=1,
    token_cluster="confidence", token_cluster_size=2,
    temporal_steps=3, temporal_threshold=0.8, temporal_eval="last",
    apply_rules=True, leap_radius=None, leap_threshold=0.75,
    window_size=None, confidence_alpha=0.0, stop_at_eos=False,
)  # fmt: skip


@dataclass
class Rules:
    """R2's rules with their parameters bound; a rule that is off finds nothing."""

    options: Mapping[str, Any]

    def confidence(self, masked: Array, confidence: Array) -> tuple[Array, int]:
        """`confidence_cluster` as configured."""
        o = self.options
        size, limit = o["confidence_cluster_size"], o["spatial_threshold"]
        if size is None or limit is None:
            return np.zeros(len(masked), bool), 0
        unmasked = o["confidence_cluster_unmasked"]
        return confidence_cluster(masked, confidence, size, limit, unmasked)

    def token(self, masked: Array, tokens: Array, confidence: Array) -> tuple[Array, int]:
        """`token_cluster` as configured. It does not need a window size."""
        o = self.options
        mode, limit = o["token_cluster"], o["spatial_threshold"]
        if mode is None or limit is None:
            return np.zeros(len(masked), bool), 0
        return token_cluster(masked, tokens, confidence, limit, o["token_cluster_size"], mode)

    def temporal(
        self, streaks: Temporal, active: Array, before: Array, tokens: Array, confidence: Array
    ) -> Array:
        """`Temporal.update` as configured."""
        o = self.options
        steps, limit = o["temporal_steps"], o["temporal_threshold"]
        if steps is None or limit is None:
            return np.zeros(len(active), bool)
        return streaks.update(active, before, tokens, confidence, steps, limit, o["temporal_eval"])


def decode(
    forward: Forward,
    prompt: Sequence[int],
    options: Mapping[str, Any],
    mask_id: int,
    *,
    family: Family = "llada",
    eos_ids: Sequence[int] = (),
    sample: Sample | None = None,
) -> Decoded:
    """Decode one row. `options` overrides DEFAULTS (R2 with a dual cache).

    family: whose loop. Dream's with a cache (specification 4.8) commits a block's first token in
    the full pass and nothing else by transfer, and makes a block call even if none is needed; its
    scheduled block calls go by entropy. Without a cache its threshold is capped by `steps`.
    eos_ids: what ends the row under stop_at_eos; the rest is filled with the first of them.
    sample: tokens and residual masses for transfer and windows instead of top-1 (temperature,
    random remasking); runs and streaks always use the raw top-1.
    Raises ValueError for an unknown option, lengths that do not divide, or a stop without eos_ids.
    """
    if unknown := sorted(set(options) - set(DEFAULTS)):
        raise ValueError(f"options the oracle does not know: {unknown}")
    o = DEFAULTS | dict(options)
    length, size = o["gen_length"], o["block_length"] or o["gen_length"]
    steps = length if o["steps"] is None else o["steps"]
    if length % size or steps % (length // size):
        raise ValueError(f"gen_length={length}, block_length={size}, steps={steps} do not divide")
    if o["stop_at_eos"] and not eos_ids:
        raise ValueError("stop_at_eos=True needs eos_ids")
    steps //= length // size
    dream = family == "dream"
    opens = dream and o["cache"] != "none"  # Dream's block sampler
    scheduled = o["factor"] is None and o["threshold"] is None
    rules, first = Rules(o), len(prompt)
    x = np.array([*prompt, *[mask_id] * length], np.int64)
    by = np.full(length, -1, np.int8)
    actual, potential = Counts(), Counts()
    states: list[Array] = []
    predicted: list[tuple[int, Array, Array]] = []
    refreshes = 0

    for start in range(first, first + length, size):
        block, writer = x[start : start + size], by[start - first :][:size]  # views
        streaks, imagined = Temporal(size), Temporal(size)
        step = 0
        while (block == mask_id).any() or (opens and step < 2):
            kind: Pass = "full" if step == 0 or o["cache"] == "none" else o["cache"]
            refreshes += kind == "full"
            attended = seen(len(x), start + size, o["window_size"])
            logits = forward(x.copy(), start, start + size, kind, attended)
            states.append(x[first:].copy())
            top, top_rest, top_confidence = top1(logits, mask_id)
            predicted.append(((start - first) // size, top, top_confidence))
            if opens and scheduled and step == steps:
                break  # a schedule of one step: its only time has passed with the full pass

            chosen, rest = sample(logits, len(states) - 1, start) if sample else (top, top_rest)
            confidence = 1 / (1 + rest)
            alg = o["alg"] if scheduled else "confidence"
            if opens:
                alg = "entropy" if scheduled and kind != "full" else "confidence"
            if alg != "confidence":
                confidence = score(logits, alg)
                rest = -confidence

            before = block == mask_id
            if opens and kind == "full":
                commit = np.arange(size) == 0
            elif o["factor"] is not None:
                commit = factor(before, rest, confidence, o["factor"])
            elif o["threshold"] is not None:
                scale = 1.0
                if kind != "full":  # the masked share of what the block call was fed
                    fed = block if kind == "dual" else x[attended[attended >= start]]
                    scale -= o["confidence_alpha"] * (1 - np.mean(fed == mask_id))
                limit = scale * o["threshold"]
                if o["leap_radius"] is not None:
                    lower = scale * o["leap_threshold"]
                    limit = leap(before, confidence, limit, lower, o["leap_radius"])
                capped = dream and o["cache"] == "none" and o["steps"] is not None
                most = room(before, step, size // steps) if capped else None
                commit = threshold(before, rest, confidence, limit, most)
            elif dream:
                commit = schedule(before, rest, freed(int(before.sum()), step, steps))
            else:
                commit = schedule(before, rest, quotas(size, steps)[step])
            block[commit], writer[commit] = chosen[commit], 0

            after = block == mask_id  # potential: every rule alone on this state
            potential.confidence += rules.confidence(after, confidence)[1]
            potential.token += rules.token(after, top, top_confidence)[1]
            potential.temporal += int(
                rules.temporal(imagined, after, before, top, top_confidence).sum()
            )
            if o["apply_rules"]:  # actual: in sequence, each on what the one before has left
                where, windows = rules.confidence(after, confidence)
                block[where], writer[where] = chosen[where], 1
                actual.confidence += windows
                where, runs = rules.token(block == mask_id, top, top_confidence)
                block[where], writer[where] = top[where], 2
                actual.token += runs
                where = rules.temporal(streaks, block == mask_id, before, top, top_confidence)
                block[where], writer[where] = top[where], 3
                actual.temporal += int(where.sum())
            step += 1

        ended = not (block == mask_id).any() and np.isin(block, list(eos_ids)).any()
        if o["stop_at_eos"] and ended:
            x[start + size :] = eos_ids[0]
            by[start + size - first :] = 4
            break

    nfe = len(states)
    reported = nfe - refreshes if opens else nfe
    blocks, predictions, confidences = (np.array(found) for found in zip(*predicted, strict=True))
    return Decoded(
        x[first:],
        nfe,
        refreshes,
        reported,
        np.array(states),
        blocks,
        predictions,
        confidences,
        by,
        actual,
        potential,
    )
