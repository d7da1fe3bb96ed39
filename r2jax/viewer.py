"""A page of one decoded answer, step by step: one HTML file that needs nothing else.

`page` puts a trace into the template in assets/: what each forward of each strategy predicted, and
which rule committed what. The page's own policy (Content-Security-Policy) forbids it every request,
and every script but the template's.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.resources
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from r2jax.decode_config import DecodeConfig
from r2jax.text import TextOutput
from r2jax.trace import Trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# By the values of `committed_by` (trace.py).
RULES = ("transfer", "confidence cluster", "token cluster", "temporal", "after the end")
_DIGITS = 4  # of a confidence


def page(
    outputs: Mapping[str, TextOutput],
    row: int,
    tokenizer: PreTrainedTokenizerFast,
    *,
    prompt: str,
    configs: Mapping[str, DecodeConfig],
    about: str = "",
) -> str:
    """An HTML page that shows how strategies decode an answer, side by side, forward by forward.

    Args:
      outputs: of each strategy, by the name it is shown with: what
        `r2jax.generate_text(..., trace=True)` returned.
      row: which prompt of theirs.
      tokenizer: of the model.
      prompt: its text.
      configs: with which each was decoded, by the same names.
      about: a line on the circumstances, such as the checkpoint.

    Returns:
      The page, to be written as UTF-8. Whatever prompt and tokens hold is data in it, never markup.

    Raises:
      ValueError: no output, one without a trace, no such row, or configurations of other names.
    """
    if not outputs or outputs.keys() != configs.keys():
        raise ValueError(
            f"outputs and configs need the same names, got {list(outputs)} and {list(configs)}"
        )
    strategies = [_strategy(name, out, row, configs[name]) for name, out in outputs.items()]
    ids = {token for strategy in strategies for token in strategy["tokens"]}
    for strategy in strategies:
        ids.update(*(forward["predictions"] for forward in strategy["forwards"]))
    ends = set(tokenizer.all_special_ids)
    for strategy in strategies:
        ends.update(strategy["tokens"][strategy["answer_length"] :][:1])  # what has cut the answer
    data = {
        "prompt": prompt,
        "about": about,
        "rules": RULES,
        "texts": {i: str(tokenizer.decode([i])) for i in sorted(ids - {None})},
        "ends": sorted(ids & ends),
        "strategies": strategies,
    }
    return _fill(json.dumps(data, separators=(",", ":")))


def _strategy(name: str, out: TextOutput, row: int, config: DecodeConfig) -> dict[str, Any]:
    """One strategy's part of the data.

    `committed_at` counts forwards from 1; None: never. `forwards` holds what each predicted at the
    positions of its block that were masked before it; None at the others.
    """
    trace = [getattr(out.output, name) for name in Trace._fields]
    if trace[0] is None:
        raise ValueError(f"{name}: there is nothing to show: decode with trace=True")
    if not 0 <= row < len(out.texts):
        raise ValueError(f"{name}: row must be between 0 and {len(out.texts) - 1}, got {row}")
    nfe, tokens = int(out.nfe[row]), np.asarray(out.output.tokens[row])
    states, blocks, predictions, confidences, committed_by = (np.asarray(x[row]) for x in trace)
    length = predictions.shape[1]
    mask_id = states[0, 0]  # before its first forward an answer is nothing but masks
    masked = states[:nfe] == mask_id
    only_full = out.refreshes[row] == nfe  # no cache; with one, the first forward of every block is
    forwards = []
    for k, block in enumerate(blocks[:nfe].tolist()):
        there = masked[k, block * length :][:length]
        rounded = np.round(confidences[k].astype(float), _DIGITS)
        forwards.append(
            {
                "block": block,
                "full": bool(only_full or k == 0 or block != blocks[k - 1]),
                "predictions": _where(there, predictions[k]),
                "confidences": _where(there & np.isfinite(rounded), rounded),
            }
        )
    return {
        "name": name,
        "options": dataclasses.asdict(config),
        "nfe": nfe,
        "text": out.texts[row],
        "answer_length": len(out.tokens[row]),
        "block_length": length,
        "tokens": tokens.tolist(),
        "committed_at": _where(tokens != mask_id, masked.sum(axis=0)),
        "committed_by": committed_by.tolist(),
        "forwards": forwards,
    }


def _where(wanted: np.ndarray, values: np.ndarray) -> list[Any]:
    """Plain values for JSON, None where they are not wanted."""
    return [value if there else None for there, value in zip(wanted, values.tolist(), strict=True)]


def _fill(data: str) -> str:
    """The template with its style, its script and the data, which may hold anything."""
    assets = importlib.resources.files("r2jax") / "assets"
    html, style, answer, player = (
        (assets / name).read_text(encoding="utf-8")
        for name in ("viewer.html", "viewer.css", "answer.js", "player.js")
    )
    script = answer + player
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    parts = {
        "{{policy}}": policy,
        "{{style}}": style,
        "{{script}}": script,
        # Inside <script> only "<" can end or change anything: </script, <!--.
        "{{data}}": data.replace("<", "\\u003c"),
    }
    return re.sub(r"{{\w+}}", lambda match: parts[match[0]], html)
