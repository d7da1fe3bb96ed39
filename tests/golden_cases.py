"""The golden cases of the original programs, and how ours are compared with them.

`python -m tests.golden_cases` runs every case twice, alone and in batches of unequal prompts: the
full proof, too slow for the suite.
"""

from __future__ import annotations

import collections
import functools
import gzip
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import r2jax

ROOT = Path(__file__).parent / "golden" / "llada"
NAMES = ("tiny-a", "tiny-b")


@functools.cache
def model(name: str) -> r2jax.Transformer:
    return r2jax.load(str(ROOT / name))


@functools.cache
def cases(name: str) -> list[dict[str, Any]]:
    with gzip.open(ROOT / name / "cases.json.gz") as file:
        return json.load(file)


def config(case: dict[str, Any]) -> r2jax.DecodeConfig:
    """The options under which the original program made this case; a rule not named was off."""
    rules = case["rules"]
    names = (
        "threshold",
        "factor",
        "confidence_cluster_size",
        "spatial_threshold",
        "confidence_cluster_unmasked",
        "token_cluster",
        "temporal_steps",
        "temporal_threshold",
    )
    return r2jax.DecodeConfig(
        gen_length=case["gen_length"],
        block_length=case["block_length"],
        steps=case["steps"],
        cache=case["cache"],
        temporal_eval=rules.get("temporal_eval", "last"),
        **{name: rules.get(name) for name in names},
    )


@functools.cache
def batches(name: str) -> dict[r2jax.DecodeConfig, list[dict[str, Any]]]:
    """Cases that differ in their prompt alone: prompts of 9, 17 and 33 tokens."""
    groups = collections.defaultdict(list)
    for case in cases(name):
        groups[config(case)].append(case)
    return groups


def differences(out: r2jax.DecodeOutput, row: int, case: dict[str, Any]) -> list[str]:
    """What of a traced row differs from its case."""
    assert out.states is not None and out.committed_by is not None
    states, committed_by = np.asarray(out.states[row]), np.asarray(out.committed_by[row])
    nfe = case["nfe"]
    wrong = {
        "tokens": not np.array_equal(out.tokens[row], case["output"]),
        "nfe": int(out.nfe[row]) != nfe,
        "states": not np.array_equal(states[: len(case["states"])], case["states"]),
        "unused states": (states[nfe:] != -1).any(),
        "committed_by": (committed_by < 0).any() or (committed_by > 3).any(),
    }
    return [f"{case['id']}: {what}" for what, is_wrong in wrong.items() if is_wrong]


def run(name: str, group: list[dict[str, Any]]) -> list[str]:
    """Differences of a batch of cases with one configuration."""
    prompts = [case["prompt"] for case in group]
    out = r2jax.generate(model(name), prompts, config(group[0]), trace=True)
    return [wrong for row, case in enumerate(group) for wrong in differences(out, row, case)]


def forward_difference(name: str) -> float:
    """Largest difference of the logits of one plain forward."""
    with np.load(ROOT / name / "forward.npz") as file:
        logits = model(name)(jnp.asarray(file["input_ids"]))
        return float(np.abs(np.asarray(logits) - file["logits"]).max())


def main() -> None:
    total = wrong = 0
    for name in NAMES:
        print(f"{name}: forward within {forward_difference(name):.1e}")
        for group in batches(name).values():
            found = run(name, group)
            for case in group:
                found += run(name, [case])
            jax.clear_caches()  # hundreds of compiled programs would not fit into memory
            total += len(group)
            wrong += len(found)
            print(group[0]["id"], len(group), *found, sep="  ", flush=True)
    print(f"{total} cases, alone and in batches: {wrong} differences")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
