"""What the adapters have in common: options they refuse, and imports from a user's checkout."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from r2jax import DecodeConfig

R2_OPTIONS = (
    "confidence_cluster_size",
    "spatial_threshold",
    "confidence_cluster_unmasked",
    "token_cluster",
    "temporal_steps",
    "temporal_threshold",
    "temporal_eval",
)
_KNOWN = {
    "gen_length",
    "block_length",
    "steps",
    "cache",
    "threshold",
    "factor",
    "remasking",
    "temperature",
    "top_p",  # nothing at temperature 0
    *R2_OPTIONS,
    "token_cluster_size",
    "apply_rules",
    "stop_at_eos",
    "eos_id",  # nothing without stop_at_eos
}


def unsupported_anywhere(decode: DecodeConfig, known: tuple[str, ...] = ()) -> list[str]:
    """Options that no reference can be timed with, in words.

    An option that neither this file nor the adapter (`known`) knows is refused unless it is at its
    default: a reference must not silently run something else than ours.
    """
    wrong = []
    if decode.temperature:
        wrong.append(f"temperature {decode.temperature} (only 0: it draws other noise)")
    if decode.remasking != "low_confidence":
        wrong.append(f"remasking {decode.remasking!r} (only 'low_confidence')")
    if decode.stop_at_eos:
        wrong.append("stop_at_eos (it decodes every block)")
    for field in dataclasses.fields(decode):
        value = getattr(decode, field.name)
        if field.name not in (*_KNOWN, *known) and value != field.default:
            wrong.append(f"{field.name} {value!r} (only {field.default!r})")
    return wrong


def rules_on(decode: DecodeConfig) -> bool:
    """Whether any rule of R² commits tokens."""
    spatial = decode.spatial_threshold is not None and (
        decode.confidence_cluster_size is not None or decode.token_cluster is not None
    )
    temporal = decode.temporal_steps is not None and decode.temporal_threshold is not None
    return decode.apply_rules and (spatial or temporal)


def find(path: str, files: tuple[str, ...], program: str) -> Path:
    """The folder `path`, which must hold `files`.

    Raises:
      ValueError: naming the first file that is not there.
    """
    for name in files:
        if not (Path(path) / name).is_file():
            raise ValueError(f"{path!r} is not a checkout of {program}: {name} is not there")
    return Path(path).resolve()


def fingerprint(folder: Path, files: tuple[str, ...]) -> str:
    """SHA-256 over the program's files, 12 digits: which version of it ran (a carried copy has no
    git to ask)."""
    digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in files))
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def first_on_path(folder: Path, names: tuple[str, ...]) -> Iterator[None]:
    """Import from `folder` inside the block; top-level modules `names` are the checkout's there.

    The original calls its modules `generate` and `model`, which may well be taken: whatever had
    those names is put back afterwards.
    """

    def take() -> dict[str, ModuleType]:
        taken = [key for key in sys.modules if key.split(".")[0] in names]
        return {key: sys.modules.pop(key) for key in taken}

    before = take()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        take()
        sys.modules.update(before)
