"""What a call of the harness is to make: one result file for each task and strategy."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval import answers, presets, results_file
from eval.adapter import R2JaxLM
from eval.lazy_model import LazyModel
from eval.lm_tasks import EvalTask, build_requests
from eval.report import sha256
from r2jax import options
from r2jax.decode_config import DecodeConfig
from r2jax.digest import of_json
from r2jax.generate import check_config
from r2jax.journal import differences

SCORED = "likelihood"
"""The "strategy" of tasks whose given answers are scored: nothing is decoded."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One result file to be made."""

    task: EvalTask
    strategy: str
    config: DecodeConfig
    path: Path
    circumstances: dict[str, Any]
    """The fields of the result that are known before anything is decoded."""
    prompts: list[str]
    """SHA-256 of each problem's prompt."""
    requests: int
    """How many there are: one a problem, or one for each answer to choose from."""
    digest: str
    """SHA-256 of the requests: prompts, stop strings, answers to be scored."""


def configs(name: str, args: argparse.Namespace, source: LazyModel) -> dict[str, DecodeConfig]:
    """How each strategy of the call decodes a task.

    Args:
      name: of the task, as on the command line.
      args: thresholds, strategies, and options of `DecodeConfig`.
      source: whose family and defaults count.

    Raises:
      ValueError: options that do not go together, or that the model cannot do.
    """
    preset = presets.PRESETS.get(name)
    found = {
        strategy: presets.decode_config(
            strategy,
            task=preset.decode if preset else None,
            model_type=source.config.model_type,
            thresholds=args.thresholds,
            defaults=source.defaults | (presets.LENGTHS if preset else {}),
            overrides=options.chosen_fields(args),
        )
        for strategy in args.strategies
    }
    for config in found.values():
        check_config(config, source.config)
    return found


def adapter(
    task: EvalTask, config: DecodeConfig, args: argparse.Namespace, source: LazyModel, **more: Any
) -> R2JaxLM:
    """The model that lm-eval drives, for a task."""
    return R2JaxLM(
        source,
        config,
        batch_size=args.batch_size,
        seed=args.seed,
        mc_num=args.mc_num,
        check_greedy=task.task.OUTPUT_TYPE == "loglikelihood",
        truncate=args.truncate,
        plain=task.plain,
        **more,
    )


def plans(
    task: EvalTask,
    how: dict[str, DecodeConfig],
    args: argparse.Namespace,
    source: LazyModel,
    *,
    chat: bool,
) -> Iterator[Plan]:
    """What is to be made of a task, its prompts checked.

    Args:
      task: from `load_task`.
      how: from `configs`.
      args: of the command line.
      source: the checkpoint.
      chat: prompts in the chat template.

    Raises:
      ValueError: a prompt that the model cannot take.
    """
    if task.scored:
        how = {SCORED: DecodeConfig(gen_length=1, block_length=None)}
    # Prompts, and what there is room for, are the same for all strategies.
    model = adapter(task, next(iter(how.values())), args, source)
    requests = build_requests(task, model, limit=args.limit, chat=chat)
    prepared = model.prepare(requests)
    prompts = {r.doc_id: sha256(str(r.arguments[0])) for r in reversed(requests)}
    for strategy, config in how.items():
        circumstances = {
            "task": {
                "name": task.name,
                "num_fewshot": task.num_fewshot,
                "source": task.source,
                "problems": len(prompts),
                "limit": args.limit,
            },
            "model": {
                "checkpoint": public(args.checkpoint),
                "digest": source.digest,
                "model_type": source.config.model_type,
                "dtype": source.dtype,
                "quantize": source.quantize,
            },
            "prompt": {
                "chat_template": chat,
                "truncated": prepared.truncated,
                "longest": prepared.longest,
            },
            "strategy": strategy,
            "decode": None if task.scored else dataclasses.asdict(config),
            "seed": args.seed,
            "counting": {
                "tokens": answers.COUNTED[_counted(task, source, chat)],
                "nfe": f"{args.mc_num} Monte-Carlo samples of each given answer"
                if task.scored
                else answers.FORWARDS[source.config.model_type],
            },
        }
        yield Plan(
            task=task,
            strategy=strategy,
            config=config,
            path=results_file.path_of(args.output_dir, task.name, strategy),
            circumstances=json.loads(json.dumps(circumstances)),
            prompts=list(reversed(prompts.values())),
            requests=len(requests),
            digest=of_json([request.arguments for request in requests]),
        )


def finished(plan: Plan) -> dict[str, Any] | None:
    """The result of an earlier run of the same plan, if there is one.

    Raises:
      ValueError: there is a result of something else.
    """
    if not plan.path.exists():
        return None
    result = results_file.read(plan.path)
    changes = list(
        differences({name: result[name] for name in plan.circumstances}, plan.circumstances)
    )
    before = [sample["prompt_sha256"] for sample in result["samples"]]
    if not changes and before != plan.prompts:
        changes = ["the prompts were others"]
    if changes:
        raise ValueError(
            f"{plan.path} holds the result of other settings: {'; '.join(changes)}. Choose another "
            "--output-dir, or remove the file to make it anew"
        )
    Path(f"{plan.path}.partial").unlink(missing_ok=True)  # killed between the last two steps
    return result


def public(path: str) -> str:
    """A checkpoint's name without the directories of this machine."""
    return Path(path).resolve().name if Path(path).is_dir() else path


def _counted(task: EvalTask, source: LazyModel, chat: bool) -> str:
    """Which of the ways to count tokens applies."""
    if task.scored:
        return "scored"
    if task.plain:
        return "plain"
    whole = chat and task.name == "humaneval" and source.config.model_type == "llada"
    return "whole" if whole else source.config.model_type
