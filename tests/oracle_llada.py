"""A LLaDA network in plain NumPy for the oracle to run on, and the golden cases.

`python -m tests.oracle_llada tests/golden/*/*-*` replays every case of those folders with the
oracle (all 515: about a minute on one core).
"""

import gzip
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from safetensors.numpy import load_file

from tests import oracle

Array = np.ndarray
LAYER = (
    "attn_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_norm", "ff_proj", "up_proj", "ff_out"
)  # fmt: skip

# ---- a LLaDA network for the loop to call (specification 1.1, 3.3, 3.4) --------------------------


class Llada:
    """A LLaDA checkpoint (Hugging Face folder) as an `oracle.Forward`."""

    def __init__(self, folder: Path, dtype: type[np.floating] = np.float32):
        self.config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
        self.weights = {k: w.astype(dtype) for k, w in weights.items()}
        self.cache: list[tuple[Array, Array]] = []  # per layer K, V [L, KV, h], before rope

    def __call__(
        self, tokens: Array, start: int, end: int, kind: oracle.Pass, seen: Array | None = None
    ) -> Array:
        """Logits [end - start, V] of the block after a pass of that kind over `tokens` [L], of
        which the positions `seen` exist (None: all)."""
        seen = np.arange(len(tokens)) if seen is None else seen
        if kind == "full":
            c = self.config
            shape = (len(tokens), c["n_kv_heads"], c["d_model"] // c["n_heads"])
            self.cache = [(np.zeros(shape), np.zeros(shape)) for _ in range(c["n_layers"])]
        low = 0 if kind == "full" else start
        fed = seen[(seen >= low) & ((seen < end) | (kind != "dual"))]
        return self.run(tokens, fed, seen)[start - low : end - low]

    def run(
        self, tokens: Int[Array, " L"], fed: Int[Array, " N"], seen: Int[Array, " S"]
    ) -> Float[Array, "N V"]:
        """Logits of the positions `fed`; keys and values of the rest of `seen` are in the cache."""
        c = self.config
        x = self.weights["model.transformer.wte.weight"][tokens[fed]]
        for i in range(c["n_layers"]):
            w = {
                name: self.weights[f"model.transformer.blocks.{i}.{name}.weight"] for name in LAYER
            }
            h = self.norm(x, w["attn_norm"])
            q, k, v = (
                linear(h, w[name]).reshape(len(fed), -1, c["d_model"] // c["n_heads"])
                for name in ("q_proj", "k_proj", "v_proj")
            )
            keys, values = (old.astype(x.dtype) for old in self.cache[i])
            keys[fed], values[fed] = k, v
            self.cache[i] = keys, values
            heads = attend(
                rope(q, fed, c["rope_theta"]),
                rope(keys[seen], seen, c["rope_theta"]),
                values[seen],
            )
            x = x + linear(heads, w["attn_out"])
            h = self.norm(x, w["ff_norm"])
            gate = linear(h, w["ff_proj"])
            gated = gate / (1 + np.exp(-gate)) * linear(h, w["up_proj"])
            x = x + linear(gated, w["ff_out"])
        x = self.norm(x, self.weights["model.transformer.ln_f.weight"])
        return linear(x, self.weights["model.transformer.ff_out.weight"])

    def norm(self, x: Array, weight: Array) -> Array:
        """RMSNorm over the last axis."""
        variance = np.mean(x * x, -1, keepdims=True)
        return x / np.sqrt(variance + x.dtype.type(self.config["rms_norm_eps"])) * weight


def rope(x: Float[Array, "N H h"], positions: Int[Array, " N"], theta: float) -> Array:
    """Rotate the halves of every head by angle position * theta^(-2j / h), j < h / 2."""
    half = x.shape[-1] // 2
    angle = positions[:, None, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attend(q: Float[Array, "N H h"], k: Float[Array, "L KV h"], v: Float[Array, "L KV h"]) -> Array:
    """Bidirectional attention; each key head serves H / KV consecutive query heads. [N, H * h]"""
    k, v = (np.repeat(t, q.shape[1] // t.shape[1], axis=1) for t in (k, v))
    score = np.einsum("nhd,lhd->hnl", q, k) / np.sqrt(q.dtype.type(q.shape[-1]))
    weight = np.exp(score - score.max(-1, keepdims=True))
    weight /= weight.sum(-1, keepdims=True)
    return np.einsum("hnl,lhd->nhd", weight, v).reshape(len(q), -1)


def linear(x: Float[Array, "N D"], weight: Float[Array, "O D"]) -> Float[Array, "N O"]:
    """x @ weight.T. By einsum, not BLAS: its threads fight over busy cores (30 times slower)."""
    return np.einsum("nd,od->no", x, weight)


# ---- golden cases --------------------------------------------------------------------------------


def golden_cases(folder: Path) -> list[dict[str, Any]]:
    """The cases of a golden folder (its README says what they hold)."""
    return json.loads(gzip.decompress((folder / "cases.json.gz").read_bytes()))


def golden_options(case: Mapping[str, Any]) -> dict[str, Any]:
    """A golden case's options; a rule that it does not name is off."""
    off = ("threshold", "confidence_cluster_size", "spatial_threshold", "token_cluster")
    off += ("confidence_cluster_unmasked", "temporal_steps", "temporal_threshold")
    named = {k: case[k] for k in ("gen_length", "block_length", "steps")}
    if "rules" in case:
        return dict.fromkeys(off) | named | {"cache": case["cache"]} | case["rules"]
    named |= {k: case[k] for k in ("threshold", "factor", "window_size", "confidence_alpha")}
    stops = case["eos_id"] >= 0  # Streaming-dLLM: -1 stands for never
    return dict.fromkeys(off) | named | {"cache": "prefix", "stop_at_eos": stops}


def golden_differences(case: Mapping[str, Any], network: oracle.Forward) -> list[str]:
    """Which of tokens, nfe and states the oracle does not reproduce."""
    eos = (case.get("eos_id", -1),)
    options = golden_options(case)
    row = oracle.decode(network, case["prompt"], options, case["mask_id"], eos_ids=eos)
    same = {
        "tokens": row.tokens.tolist() == case["output"],
        "nfe": row.nfe == case["nfe"],
        "states": row.states.tolist() == case["states"],
    }
    return [name for name, equal in same.items() if not equal]


def main(folders: Sequence[str]) -> int:
    """Replay every case of the folders; the exit status says whether all agree."""
    bad = total = 0
    for folder in map(Path, folders):
        network = Llada(folder)
        for case in golden_cases(folder):
            differences = golden_differences(case, network)
            total, bad = total + 1, bad + bool(differences)
            if differences:
                print(case["id"], *differences)
    print(f"{total - bad} of {total} golden cases exact")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
