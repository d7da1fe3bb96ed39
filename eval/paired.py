"""Two runs over the same problems: how far apart they are, and how sure that is.

Problems differ far more from one another than two ways of decoding do, so everything here works on
the differences of a problem to itself. Intervals are of 95 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95


class Difference(NamedTuple):
    """A mean difference, second minus first, and its interval."""

    value: float
    low: float
    high: float


class Discordant(NamedTuple):
    """Problems that one of two runs alone got right."""

    first: int
    second: int
    p: float
    """McNemar's exact test, two-sided: how probable so unequal a split (or a more unequal one)
    is where neither run is better."""


def of_means(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The difference of two means over the same problems, with Student's interval.

    Args:
      first, second: a value a problem, in the same order; at least two.
    """
    change = np.asarray(second, float) - np.asarray(first, float)
    value = float(change.mean())
    error = float(change.std(ddof=1)) / np.sqrt(len(change))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(change) - 1)) * error
    return Difference(value, value - half, value + half)


def of_scores(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The difference of two accuracies over the same problems.

    Scores of 0 and 1 get the interval of Bonett and Price (2012): Wald's, with one problem more
    that the first alone got right and one that the second did. Where few problems, or none, come
    out differently, Student's is too narrow. Other scores (a share of tests passed) get Student's.

    Args:
      first, second: a score a problem, in the same order; at least two.
    """
    if not binary(first, second):
        return of_means(first, second)
    lost, gained, _ = discordant(first, second)
    n = len(first)
    p_lost, p_gained = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    centre = p_gained - p_lost
    error = np.sqrt((p_gained + p_lost - centre**2) / (n + 2))
    half = float(stats.norm.ppf((1 + LEVEL) / 2) * error)
    return Difference((gained - lost) / n, max(-1.0, centre - half), min(1.0, centre + half))


def discordant(first: Sequence[float], second: Sequence[float]) -> Discordant:
    """McNemar's exact test of scores that are 0 or 1."""
    change = np.asarray(second, float) - np.asarray(first, float)
    lost, gained = int((change < 0).sum()), int((change > 0).sum())
    if lost + gained == 0:
        return Discordant(0, 0, 1.0)
    return Discordant(lost, gained, float(stats.binomtest(lost, lost + gained).pvalue))


def binary(*scores: Sequence[float]) -> bool:
    """Whether all scores are 0 or 1."""
    return bool(np.isin(np.concatenate([np.asarray(s, float) for s in scores]), (0, 1)).all())
