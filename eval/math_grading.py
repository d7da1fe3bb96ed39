"""Grading of MATH: whether the boxed answer is mathematically the reference's, by math-verify.

Simplifying what a model wrote may take for ever or all memory, and math-verify's own time limit is
an alarm signal, which works in a main thread only. So the comparing is done in processes of their
own, which are ended when they overrun.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError

from pebble import ProcessExpired, ProcessPool

from eval import math_equal
from r2jax.grading import last_boxed, same_latex

_LAST_SECONDS = 30  # for a comparison that math-verify's own alarm does not end


def grade_boxed(
    texts: Sequence[str],
    references: Sequence[str],
    *,
    workers: int,
    advance: Callable[[], object] = lambda: None,
) -> list[bool]:
    """Whether what is in the last box of each solution equals the reference's.

    Equal is what is written alike (`r2jax.grading.same_latex`) or what math-verify takes for equal:
    1/2 and 0.5, x=5 and 5, sets in any order. A comparison that does not end is a wrong answer.

    Args:
      texts: solutions; one without a box is wrong.
      references: for each a solution with a box, or the bare answer.
      workers: processes that compare.
      advance: called after each.

    Raises:
      ValueError: a reference is empty.
    """
    right = [False] * len(texts)
    undecided = {}
    for i, (text, reference) in enumerate(zip(texts, references, strict=True)):
        wanted = last_boxed(reference) or reference.strip()
        if not wanted:
            raise ValueError(f"reference answer {i} is empty")
        found = last_boxed(text)
        if found and same_latex(found, wanted):
            right[i] = True
        elif found:
            undecided[i] = (found, wanted)
    for _ in range(len(texts) - len(undecided)):
        advance()
    if undecided:
        # Not forked: the parent may hold an accelerator, and threads.
        context = multiprocessing.get_context("spawn")
        with ProcessPool(workers, context=context, initializer=math_equal.prepare) as pool:
            verdicts = {
                i: pool.schedule(math_equal.equal, args=pair, timeout=_LAST_SECONDS)
                for i, pair in undecided.items()
            }
            for i, verdict in verdicts.items():
                try:
                    right[i] = verdict.result()
                except (TimeoutError, ProcessExpired, MemoryError):
                    right[i] = False
                advance()
    return right
