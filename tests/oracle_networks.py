"""LLaDA and Dream networks in plain NumPy for the oracle to run on, and the golden cases.

`python -m tests.oracle_networks tests/golden/*/*-*` replays every case of those folders with the
oracle (all 629: about a minute on one core).
"""

import gzip
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from safetensors.numpy import load_file

from tests import oracle

Array = np.ndarray

# ---- networks for the loop to call (specification 1.1, 1.2, 3.3, 3.4) ----------------------------


class Network:
    """A checkpoint (Hugging Face folder) as an `oracle.Forward`.

    Subclasses say under which names their checkpoints keep what all of them have.
    """

    CONFIG: ClassVar[Mapping[str, str]]
    TENSORS: ClassVar[Mapping[str, str]]  # in layer i "{i}" stands for it
    SHIFT: ClassVar[int]  # how far ahead of a position its output predicts
    family: ClassVar[oracle.Family]

    def __init__(self, folder: Path, dtype: type[np.floating] = np.float32):
        self.config = json.loads((folder / "config.json").read_text())
        self.width, self.layers, self.heads, self.kv_heads = (
            self.config[self.CONFIG[key]] for key in ("width", "layers", "heads", "kv_heads")
        )
        weights = load_file(folder / "model.safetensors")
        self.weights = {k: w.astype(dtype) for k, w in weights.items()}
        self.cache: list[tuple[Array, Array]] = []  # per layer K, V [L, KV, h], before rope

    def __call__(
        self, tokens: Array, start: int, end: int, kind: oracle.Pass, seen: Array | None = None
    ) -> Array:
        """Logits [end - start, V] that decide the block after a pass of that kind over `tokens`
        [L], of which the positions `seen` exist (None: all).

        Where a position's predecessor is wanted but not fed, its own output stands in.
        """
        seen = np.arange(len(tokens)) if seen is None else seen
        if kind == "full":
            shape = (len(tokens), self.kv_heads, self.width // self.heads)
            self.cache = [(np.zeros(shape), np.zeros(shape)) for _ in range(self.layers)]
        low = 0 if kind == "full" else start
        fed = seen[(seen >= low) & ((seen < end) | (kind != "dual"))]
        here = np.flatnonzero((fed >= start) & (fed < end))
        return self.run(tokens, fed, seen)[np.maximum(here - self.SHIFT, 0)]

    def run(
        self, tokens: Int[Array, " L"], fed: Int[Array, " N"], seen: Int[Array, " S"]
    ) -> Float[Array, "N V"]:
        """Outputs at the positions `fed`; keys and values of the rest of `seen` are cached."""
        theta = self.config["rope_theta"]
        x = self.weights[self.TENSORS["embedding"]][tokens[fed]]
        for i in range(self.layers):
            h = self.norm(x, "attention_norm", i)
            q, k, v = (
                self.linear(h, name, i).reshape(len(fed), -1, self.width // self.heads)
                for name in ("query", "key", "value")
            )
            keys, values = (old.astype(x.dtype) for old in self.cache[i])
            keys[fed], values[fed] = k, v
            self.cache[i] = keys, values
            heads = attend(rope(q, fed, theta), rope(keys[seen], seen, theta), values[seen])
            x = x + self.linear(heads, "output", i)
            h = self.norm(x, "mlp_norm", i)
            gate = self.linear(h, "gate", i)
            gated = gate / (1 + np.exp(-gate)) * self.linear(h, "up", i)
            x = x + self.linear(gated, "down", i)
        return self.linear(self.norm(x, "norm"), "head")

    def norm(self, x: Float[Array, "N D"], name: str, layer: int = 0) -> Float[Array, "N D"]:
        """RMSNorm over the last axis."""
        variance = np.mean(x * x, -1, keepdims=True)
        scale = self.weights[self.TENSORS[name].format(i=layer)]
        return x / np.sqrt(variance + x.dtype.type(self.config["rms_norm_eps"])) * scale

    def linear(self, x: Float[Array, "N D"], name: str, layer: int = 0) -> Float[Array, "N O"]:
        """x @ weight.T, plus a bias if the checkpoint has one. By einsum, not BLAS: its threads
        fight over busy cores (30 times slower)."""
        tensor = self.TENSORS[name].format(i=layer)
        bias = self.weights.get(tensor.removesuffix("weight") + "bias", 0)
        return np.einsum("nd,od->no", x, self.weights[tensor]) + bias


class Llada(Network):
    """LLaDA, LLaDA-1.5."""

    CONFIG: ClassVar = {
        "width": "d_model", "layers": "n_layers", "heads": "n_heads", "kv_heads": "n_kv_heads",
    }  # fmt: skip
    TENSORS: ClassVar = {
        "embedding": "model.transformer.wte.weight",
        "attention_norm": "model.transformer.blocks.{i}.attn_norm.weight",
        "query": "model.transformer.blocks.{i}.q_proj.weight",
        "key": "model.transformer.blocks.{i}.k_proj.weight",
        "value": "model.transformer.blocks.{i}.v_proj.weight",
        "output": "model.transformer.blocks.{i}.attn_out.weight",
        "mlp_norm": "model.transformer.blocks.{i}.ff_norm.weight",
        "gate": "model.transformer.blocks.{i}.ff_proj.weight",
        "up": "model.transformer.blocks.{i}.up_proj.weight",
        "down": "model.transformer.blocks.{i}.ff_out.weight",
        "norm": "model.transformer.ln_f.weight",
        "head": "model.transformer.ff_out.weight",
    }
    SHIFT = 0
    family = "llada"


class Dream(Network):
    """Dream-7B."""

    CONFIG: ClassVar = {
        "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
    }  # fmt: skip
    TENSORS: ClassVar = {
        "embedding": "model.embed_tokens.weight",
        "attention_norm": "model.layers.{i}.input_layernorm.weight",
        "query": "model.layers.{i}.self_attn.q_proj.weight",
        "key": "model.layers.{i}.self_attn.k_proj.weight",
        "value": "model.layers.{i}.self_attn.v_proj.weight",
        "output": "model.layers.{i}.self_attn.o_proj.weight",
        "mlp_norm": "model.layers.{i}.post_attention_layernorm.weight",
        "gate": "model.layers.{i}.mlp.gate_proj.weight",
        "up": "model.layers.{i}.mlp.up_proj.weight",
        "down": "model.layers.{i}.mlp.down_proj.weight",
        "norm": "model.norm.weight",
        "head": "lm_head.weight",
    }
    SHIFT = 1
    family = "dream"


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


def load(folder: Path, dtype: type[np.floating] = np.float32) -> Network:
    """The network of a checkpoint."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    return {"llada": Llada, "Dream": Dream}[kind](folder, dtype)


# ---- golden cases --------------------------------------------------------------------------------


def golden_cases(folder: Path) -> list[dict[str, Any]]:
    """The cases of a golden folder (its README says what they hold)."""
    return json.loads(gzip.decompress((folder / "cases.json.gz").read_bytes()))


def golden_options(case: Mapping[str, Any]) -> dict[str, Any]:
    """A golden case's options; a rule that it does not name is off."""
    off = ("threshold", "confidence_cluster_size", "spatial_threshold", "token_cluster")
    off += ("confidence_cluster_unmasked", "temporal_steps", "temporal_threshold")
    named = {k: case[k] for k in ("gen_length", "block_length", "steps")}
    if "alg" in case:  # Dream
        named |= {k: case[k] for k in ("cache", "threshold")} | {"temporal_eval": "ave"}
        names = {"maskgit_plus": "confidence", "confidence_threshold": "confidence"}
        named["alg"] = names.get(case["alg"], case["alg"])
        return dict.fromkeys(off) | named | case["rules"]
    if "rules" in case:
        return dict.fromkeys(off) | named | {"cache": case["cache"]} | case["rules"]
    named |= {k: case[k] for k in ("threshold", "factor", "window_size", "confidence_alpha")}
    stops = case["eos_id"] >= 0  # Streaming-dLLM: -1 stands for never
    return dict.fromkeys(off) | named | {"cache": "prefix", "stop_at_eos": stops}


def golden_differences(case: Mapping[str, Any], network: Network) -> list[str]:
    """Which of tokens, nfe, the program's own count and states the oracle does not reproduce."""
    eos = (case.get("eos_id", -1),)
    options = golden_options(case)
    row = oracle.decode(
        network, case["prompt"], options, case["mask_id"], family=network.family, eos_ids=eos
    )
    same = {
        "tokens": row.tokens.tolist() == case["output"],
        "nfe": row.nfe == case["nfe"],
        "reported": row.reported == case.get("reported_steps", case["nfe"]),
        "states": row.states.tolist() == case["states"],
    }
    return [name for name, equal in same.items() if not equal]


def main(folders: Sequence[str]) -> int:
    """Replay every case of the folders; the exit status says whether all agree."""
    bad = total = 0
    for folder in map(Path, folders):
        network = load(folder)
        for case in golden_cases(folder):
            differences = golden_differences(case, network)
            total, bad = total + 1, bad + bool(differences)
            if differences:
                print(case["id"], *differences)
    print(f"{total - bad} of {total} golden cases exact")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
