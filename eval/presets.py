"""The paper's tasks and the strategies it compares, by name.

A preset says which task of lm-eval it is, with how many examples, and what the papers set for it:
answers of 256 tokens in blocks of 32, R²'s thresholds (arXiv 2604.18995, Table 8) and the window
and alpha of Streaming-dLLM's scripts.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from r2jax.decode_config import DecodeConfig, Task

STRATEGIES = ("vanilla", "fast_dllm", "local_leap", "streaming", "r2")
Thresholds = Literal["paper", "released"]

LENGTHS = {"gen_length": 256, "block_length": 32}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """A task of the paper."""

    name: str
    task: str
    """Its name in lm-eval."""
    folder: str
    """Where lm-eval keeps it, below lm_eval/tasks."""
    num_fewshot: int
    decode: Task
    """Its name in the tables of decoding parameters."""
    fields: tuple[str, ...]
    """Of every problem in its data."""
    accuracy: str
    """Which of lm-eval's metrics the result calls accuracy ("metric,filter")."""
    runs_code: bool = False
    """Grading runs what the model wrote."""


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="gsm8k",
            task="gsm8k",
            folder="gsm8k",
            num_fewshot=5,
            decode="gsm8k",
            fields=("question", "answer"),
            accuracy="exact_match,flexible-extract",
        ),
        Preset(
            name="minerva_math",  # all seven subjects as one list
            task="minerva_math_algebra",
            folder="minerva_math",
            num_fewshot=4,
            decode="math",
            fields=("problem", "solution"),
            accuracy="exact_match,none",
        ),
        Preset(
            name="math500",
            task="minerva_math500",
            folder="minerva_math",
            num_fewshot=4,
            decode="math",
            fields=("problem", "solution"),
            accuracy="exact_match,none",
        ),
        Preset(
            name="humaneval",
            task="humaneval",
            folder="humaneval",
            num_fewshot=0,
            decode="humaneval",
            fields=("task_id", "prompt", "entry_point", "test"),
            accuracy="pass@1,none",
            runs_code=True,
        ),
        Preset(
            name="mbpp",
            task="mbpp",
            folder="mbpp",
            num_fewshot=3,
            decode="mbpp",
            fields=("task_id", "text", "test_list"),
            accuracy="pass@1,none",
            runs_code=True,
        ),
    )
}

# Streaming-dLLM's scripts (spec §6.4): window and alpha by family, task and length of the answer.
_STREAMING: dict[str, dict[Task, dict[int, tuple[int, float]]]] = {
    "llada": {
        "humaneval": {256: (96, 0.3), 512: (96, 0.4)},
        "mbpp": {256: (96, 0.3), 512: (96, 0.3)},
        "gsm8k": {256: (96, 0.4), 512: (128, 0.6)},
        "math": {256: (96, 0.4), 512: (192, 0.3)},
    },
    "Dream": {
        "mbpp": {256: (192, 0.3), 512: (192, 0.6)},
        "gsm8k": {256: (32, 0.3), 512: (32, 0.3)},
        "math": {256: (32, 0.1), 512: (32, 0.3)},
    },
}


def decode_config(
    strategy: str,
    *,
    task: Task | None,
    model_type: str,
    thresholds: Thresholds = "paper",
    defaults: dict[str, Any] | None = None,
    overrides: dict[str, Any] | None = None,
) -> DecodeConfig:
    """How a strategy decodes a task.

    Args:
      strategy: one of `STRATEGIES`.
      task: of the paper; None: the strategy's own defaults.
      model_type: the checkpoint's family.
      thresholds: R²'s for the task: the paper's Table 8, or the released program's (0.8 and 0.8).
        Every strategy takes them, since those without the rules count what the rules would do.
      defaults: lengths and EOS, where `overrides` name none.
      overrides: options of `DecodeConfig` that the user asks for.

    Raises:
      ValueError: naming the strategy, and the option that does not go with it.
    """
    if strategy not in STRATEGIES:
        raise ValueError(unknown("strategy", strategy, STRATEGIES))
    chosen = {**(defaults or {}), **(overrides or {})}
    own: dict[str, Any] = {}
    try:
        if task is not None and thresholds == "paper":
            paper = DecodeConfig.r2(task=task, model_type=model_type)
            own = {
                "temporal_threshold": paper.temporal_threshold,
                "spatial_threshold": paper.spatial_threshold,
            }
        if task is not None and strategy == "streaming":
            lengths = _STREAMING.get(model_type, {}).get(task, {})
            if found := lengths.get(chosen.get("gen_length", LENGTHS["gen_length"])):
                own |= {"window_size": found[0], "confidence_alpha": found[1]}
        if strategy == "vanilla" and model_type == "Dream":  # its own sampler has no blocks
            own |= {"block_length": None, "alg": "entropy"}
        return getattr(DecodeConfig, strategy)(**{**(defaults or {}), **own, **(overrides or {})})
    except ValueError as error:
        raise ValueError(f"strategy {strategy}: {error}") from None


def unknown(what: str, name: str, known: Any, more: str = "") -> str:
    """The message that refuses a name."""
    return f"unknown {what} {name!r}; known are {', '.join(known)}{more}"
