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
from r2jax.trace import AFTER_EOS, TEMPORAL

ROOT = Path(__file__).parent / "golden" / "llada"
NAMES = ("tiny-a", "tiny-b")
STREAMING = ("stream-a", "stream-b")
DREAM = ("dream-a", "dream-b")


def folder(name: str) -> Path:
    family = {"tiny": "llada", "stream": "streaming", "dream": "dream"}[name.split("-")[0]]
    return ROOT.parent / family / name


@functools.cache
def model(name: str) -> r2jax.Transformer:
    return r2jax.load(str(folder(name)))


@functools.cache
def cases(name: str) -> list[dict[str, Any]]:
    with gzip.open(folder(name) / "cases.json.gz") as file:
        return json.load(file)


def config(case: dict[str, Any]) -> r2jax.DecodeConfig:
    """The options under which the original program made this case; a rule not named was off."""
    if "rules" not in case:
        same = ("gen_length", "block_length", "steps", "threshold", "factor", "window_size")
        stops = case["eos_id"] >= 0
        return r2jax.DecodeConfig(
            cache="prefix",
            confidence_alpha=case["confidence_alpha"],
            stop_at_eos=stops,
            eos_id=case["eos_id"] if stops else None,
            spatial_threshold=None,
            temporal_steps=None,
            **{name: case[name] for name in same},
        )
    rules = case["rules"]
    names = (
        "confidence_cluster_size",
        "spatial_threshold",
        "confidence_cluster_unmasked",
        "token_cluster",
        "temporal_steps",
        "temporal_threshold",
    )
    named = {name: rules.get(name) for name in names}
    dream = "alg" in case
    if dream:
        named |= {"alg": case["alg"], "threshold": case["threshold"]}
        named["token_cluster_size"] = rules.get("token_cluster_size", 2)
    else:
        named |= {name: rules.get(name) for name in ("threshold", "factor")}
    return r2jax.DecodeConfig(
        gen_length=case["gen_length"],
        block_length=case["block_length"],
        steps=case["steps"],
        cache=case["cache"],
        temporal_eval=rules.get("temporal_eval", "ave" if dream else "last"),
        **named,
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
    left = np.array(case["output"]) == case["mask_id"]  # Dream's schedule of a single step
    last_rule = AFTER_EOS if case.get("eos_id", -1) >= 0 else TEMPORAL
    wrong = {
        "tokens": not np.array_equal(out.tokens[row], case["output"]),
        "nfe": int(out.nfe[row]) != nfe,
        "states": not np.array_equal(states[: len(case["states"])], case["states"]),
        "unused states": (states[nfe:] != -1).any(),
        "committed_by": ((committed_by < 0) != left).any() or (committed_by > last_rule).any(),
        "reported": int(out.reported[row]) != case.get("reported_steps", nfe),
    }
    return [f"{case['id']}: {what}" for what, is_wrong in wrong.items() if is_wrong]


def run(name: str, group: list[dict[str, Any]]) -> list[str]:
    """Differences of a batch of cases with one configuration."""
    prompts = [case["prompt"] for case in group]
    out = r2jax.generate(model(name), prompts, config(group[0]), trace=True)
    return [wrong for row, case in enumerate(group) for wrong in differences(out, row, case)]


def run_among_others(name: str, case: dict[str, Any]) -> list[str]:
    """Differences of a case between a shorter and a longer prompt (a batch of its own: an end
    token or an alpha that no other case has)."""
    shorter, longer = case["prompt"][:5], case["prompt"] * 2
    prompts = [shorter, case["prompt"], longer]
    out = r2jax.generate(model(name), prompts, config(case), trace=True)
    return differences(out, 1, case)


def forward_difference(name: str) -> float:
    """Largest difference of the logits of one plain forward, and of one at positions with gaps."""
    network = model(name)
    with np.load(folder(name) / "forward.npz") as file:
        ids = jnp.asarray(file["input_ids"])
        found = [(network(ids), file["logits"])]
        if "pruned_logits" in file:
            positions = jnp.broadcast_to(file["pruned_position_ids"], ids.shape)
            hidden, _ = network.hidden(ids, positions, None)
            found.append((network.logits(hidden), file["pruned_logits"]))
        return max(float(np.abs(np.asarray(ours) - theirs).max()) for ours, theirs in found)


def main() -> None:
    total = wrong = 0
    for name in STREAMING + DREAM:
        print(f"{name}: forward within {forward_difference(name):.1e}")
        for case in cases(name):
            found = run(name, [case]) + run_among_others(name, case)
            jax.clear_caches()
            total += 1
            wrong += len(found)
            print(case["id"], *found, sep="  ", flush=True)
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
