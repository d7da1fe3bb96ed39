"""Hugging Face tensor names: one table per model_type, read in both directions.

A new model family is a new table (and a reader of its config.json in config.py). Weights are stored
in Hugging Face's orientation, [out, in], so a name is all that differs: no tensor is transposed,
split or joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# Our parameter path -> Hugging Face name; "{i}" is the layer.
_LLADA = {
    "embed.weight": "model.transformer.wte.weight",
    "layers.{i}.attn_norm.weight": "model.transformer.blocks.{i}.attn_norm.weight",
    "layers.{i}.q_proj.weight": "model.transformer.blocks.{i}.q_proj.weight",
    "layers.{i}.k_proj.weight": "model.transformer.blocks.{i}.k_proj.weight",
    "layers.{i}.v_proj.weight": "model.transformer.blocks.{i}.v_proj.weight",
    "layers.{i}.o_proj.weight": "model.transformer.blocks.{i}.attn_out.weight",
    "layers.{i}.mlp_norm.weight": "model.transformer.blocks.{i}.ff_norm.weight",
    "layers.{i}.gate_proj.weight": "model.transformer.blocks.{i}.ff_proj.weight",
    "layers.{i}.up_proj.weight": "model.transformer.blocks.{i}.up_proj.weight",
    "layers.{i}.down_proj.weight": "model.transformer.blocks.{i}.ff_out.weight",
    "norm.weight": "model.transformer.ln_f.weight",
    "head.weight": "model.transformer.ff_out.weight",
}
_NAMES: Mapping[str, Mapping[str, str]] = {"llada": _LLADA}

# Buffers, not parameters: old exports hold the rotary frequencies, which follow from rope_theta.
_BUFFERS = ("rotary_emb.inv_freq",)


def hf_names(model_type: str, parameters: Iterable[str]) -> dict[str, str]:
    """The Hugging Face name of each of our parameter paths (such as "layers.3.q_proj.weight").

    Raises:
      KeyError: a model_type without a table, or a parameter that its table lacks.
    """
    table = _NAMES[model_type]
    names = {}
    for ours in parameters:
        layer = next((part for part in ours.split(".") if part.isdigit()), "")
        template = ours.replace(f".{layer}.", ".{i}.") if layer else ours
        names[ours] = table[template].replace("{i}", layer)
    return names


def is_buffer(name: str) -> bool:
    """Whether a tensor is a derived buffer, which we compute and neither read nor write."""
    return name.endswith(_BUFFERS)
