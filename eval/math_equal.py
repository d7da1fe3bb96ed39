"""What the processes of `eval/math_grading.py` do. No import of r2jax: each would load JAX."""

from __future__ import annotations

import logging
import resource

_SECONDS = 5  # math-verify's own default, for reading and again for comparing
_MEMORY_BYTES = 8_000_000_000


def prepare() -> None:
    """Once in each process: import what takes long, limit memory, be silent."""
    import math_verify  # noqa: F401

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs every answer that fails


def equal(found: str, wanted: str) -> bool:
    """Whether math-verify takes an answer in LaTeX for the wanted one; in a main thread only."""
    from math_verify import parse, verify

    def read(answer: str) -> list:
        return parse(f"\\boxed{{{answer}}}", parsing_timeout=_SECONDS)

    return bool(verify(read(wanted), read(found), timeout_seconds=_SECONDS))
