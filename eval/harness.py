r"""Accuracy, NFE and time of decoding strategies on lm-eval's tasks: `python -m eval.harness`.

  python -m eval.harness --checkpoint llada-gsm-6m --tasks eval/problems/gsm_symbolic_500.jsonl \
      --strategies vanilla fast_dllm r2 --output-dir results
  python -m eval.harness --checkpoint GSAI-ML/LLaDA-8B-Instruct --tasks gsm8k math500 \
      --data gsm8k=gsm8k_test.jsonl.gz gsm8k:train=gsm8k_train.jsonl.gz math500=math500.jsonl.gz \
      --output-dir results

Tasks: the paper's by name (gsm8k, minerva_math, math500, humaneval, mbpp: answers of 256 tokens in
blocks of 32, the paper's thresholds), any other single task of lm-eval, or a JSONL file of
questions and answers, graded by the number after "####". Data come from the hub, or by --data from
files.

Each task and strategy gives one file, with every answer and all that the numbers depend on
(eval/results_file.py). A run that was interrupted goes on where it was when the same command is
given again; results that are there already are not made again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import lm_eval
from lm_eval.tasks import TaskManager

from eval import presets, report, results_file
from eval.lazy_model import LazyModel
from eval.lm_tasks import EvalTask, check_names, load_task, quiet
from eval.local_data import parse_data
from eval.plan import Plan, adapter, configs, finished, plans
from eval.task_data import Grade
from r2jax import options
from r2jax.cli import Parser, run
from r2jax.journal import Journal
from r2jax.quantize import Quantization


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog="python -m eval.harness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--tasks", nargs="+", required=True, metavar="TASK", help="names, or FILE.jsonl")
    add(
        "--strategies",
        nargs="+",
        default=list(presets.STRATEGIES),
        metavar="NAME",
        help=f"of {', '.join(presets.STRATEGIES)} [all]",
    )
    add("--output-dir", required=True, metavar="DIR", help="a file for each task and strategy")
    add_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of all programs that evaluate tasks."""
    add = parser.add_argument
    add("--checkpoint", default="llada-gsm-6m", help="path, hub id or bundled name [llada-gsm-6m]")
    add(
        "--data",
        nargs="+",
        default=[],
        metavar="TASK=FILE",
        help="local JSONL(.gz) instead of the hub; TASK:train=FILE for the data of the examples",
    )
    add("--limit", type=int, metavar="N", help="only the first N problems of each task")
    add("--num-fewshot", type=int, metavar="N", help="examples [the paper's, or the task's]")
    style = parser.add_mutually_exclusive_group()
    style.add_argument(
        "--chat",
        action="store_true",
        default=None,
        help="prompts in the chat template, examples included, as the user's one turn [the default "
        "for tokenizers that have a template]",
    )
    style.add_argument("--raw", dest="chat", action="store_false", help="prompts as plain text")
    add("--truncate", action="store_true", help="cut prompts that are too long at their beginning")
    add(
        "--thresholds",
        choices=get_args(presets.Thresholds),
        default="paper",
        help="R²'s on the paper's tasks: of its Table 8, or the released program's [paper]",
    )
    add("--allow-code", action="store_true", help="run the programs the model writes, in a sandbox")
    add("--batch-size", type=int, default=64, metavar="N", help="answers decoded together [64]")
    add("--dtype", choices=["bfloat16", "float32"], help="default: as stored")
    add("--quantize", choices=get_args(Quantization), help="the projections in 8 bits")
    add("--mesh", metavar="AXIS=N,...", help="devices: data=4 spreads the rows [one device]")
    add("--seed", type=int, default=0, help="of sampling and of the masks of likelihoods [0]")
    add("--mc-num", type=int, default=128, metavar="N", help="samples of a likelihood [128]")
    group = parser.add_argument_group(
        "decoding", "Every option of r2jax.DecodeConfig, for all strategies of the call."
    )
    options.add_fields(group)


class Job(NamedTuple):
    """What a command line asks for, opened and checked."""

    source: LazyModel
    chat: bool
    """Prompts in the chat template."""
    tasks: dict[str, EvalTask]
    """By their names on the command line."""


def prepared(args: argparse.Namespace) -> Job:
    """Open checkpoint and tasks.

    Raises:
      ValueError, OSError: what the user can put right.
    """
    _check(args)
    files = parse_data(args.data, args.tasks)
    source = LazyModel(
        args.checkpoint,
        dtype=args.dtype,
        quantize=args.quantize,
        mesh=options.mesh(args.mesh) if args.mesh else None,
    )
    chat = bool(source.tokenizer.chat_template) if args.chat is None else args.chat
    if chat and not source.tokenizer.chat_template:
        raise ValueError(f"{args.checkpoint}: its tokenizer has no chat template; pass --raw")
    for name in args.tasks:
        configs(name, args, source)  # refused before data are had from the hub
    tasks = {
        name: load_task(
            name, files.get(name, {}), num_fewshot=args.num_fewshot, grade=_grader(name, chat)
        )
        for name in args.tasks
    }
    return Job(source, chat, tasks)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program.

    Raises:
      ValueError, OSError: what the user can put right; found before the model is loaded.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(options.dashes(words))
    source, chat, tasks = prepared(args)
    todo: dict[str, list[Plan]] = {}
    for name, task in tasks.items():
        if task.name in todo:
            raise ValueError(f"--tasks {name}: its results would take those of another's place")
        todo[task.name] = list(plans(task, configs(name, args, source), args, source, chat=chat))
    done = {plan.path: finished(plan) for each in todo.values() for plan in each}
    Path(args.output_dir).mkdir(exist_ok=True)
    command = command_line("eval.harness", words)
    for each in todo.values():
        results = []
        for plan in each:
            result = done[plan.path]
            if result is not None:
                print(f"{plan.path} is there already", file=sys.stderr)
            results.append(result or evaluate(plan, args, source, command))
        report.show(results)


def _check(args: argparse.Namespace) -> None:
    """What needs neither checkpoint nor data."""
    for name in args.strategies:
        if name not in presets.STRATEGIES:
            raise ValueError(presets.unknown("strategy", name, presets.STRATEGIES))
    if len(set(args.strategies)) < len(args.strategies):
        raise ValueError("--strategies names one twice")
    for option, least in (("limit", 1), ("num_fewshot", 0), ("batch_size", 1), ("mc_num", 1)):
        value = getattr(args, option)
        if value is not None and value < least:
            name = option.replace("_", "-")
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    options.check_seed(args.seed)
    directory = Path(args.output_dir).absolute()
    if (directory.exists() and not directory.is_dir()) or not directory.parent.is_dir():
        raise ValueError(f"--output-dir {args.output_dir!r}: there can be no such directory")
    check_names(args.tasks)
    for name in args.tasks:
        if name in presets.PRESETS and presets.PRESETS[name].runs_code and not args.allow_code:
            raise ValueError(
                f"{name} runs the programs that the model writes: allow it with --allow-code"
            )


def _grader(name: str, chat: bool) -> Grade | None:
    """What judges the programs of a task, if it has any.

    Raises:
      ValueError: they cannot be contained on this machine.
    """
    if name not in presets.PRESETS or not presets.PRESETS[name].runs_code:
        return None
    from eval import code_tasks, sandbox

    sandbox.check()
    read = code_tasks.humaneval_problem if name == "humaneval" else code_tasks.mbpp_problem
    # As originally evaluated: of chats on HumanEval the fenced block, of MBPP the text itself.
    fenced = chat and name == "humaneval"

    def grade(docs: list[dict[str, Any]], texts: list[str]) -> list[bool]:
        outcomes = code_tasks.grade(
            [read(doc) for doc in docs],
            texts,
            fenced=fenced,
            allow_code=True,
            workers=os.cpu_count() or 1,
        )
        return [outcome.passed for outcome in outcomes]

    return grade


def settings_of(plan: Plan, args: argparse.Namespace) -> dict[str, Any]:
    """All that a result file depends on."""
    environment = report.environment(args.mesh, "")
    return {
        **plan.circumstances,
        "requests": plan.digest,
        "batch_size": args.batch_size,
        "device": environment["device"],
        "versions": environment["versions"],
    }


def evaluate(
    plan: Plan, args: argparse.Namespace, source: LazyModel, command: str, what: str | None = None
) -> dict[str, Any]:
    """Make one result file.

    Args:
      plan: which.
      args: of the command line.
      source: the checkpoint.
      command: for the result.
      what: goes on, for the progress.
    """
    environment = report.environment(args.mesh, command)
    settings = settings_of(plan, args)
    with Journal(plan.path, settings, plan.requests) as journal, _said_what_is_kept(journal):
        model = adapter(
            plan.task,
            plan.config,
            args,
            source,
            keeper=journal,
            what=what or f"{plan.task.name}, {plan.strategy}",
        )
        simple_evaluate: Any = lm_eval.simple_evaluate  # its decorator hides its arguments
        with quiet():
            found = simple_evaluate(
                model,
                tasks=[plan.task.task],
                limit=args.limit,
                bootstrap_iters=0,
                apply_chat_template=plan.circumstances["prompt"]["chat_template"],
                fewshot_as_multiturn=False,
                task_manager=TaskManager(include_defaults=False),
            )
        result = report.result(
            plan.circumstances, plan.task, found, model.answers, args.batch_size, environment
        )
        results_file.write(plan.path, result)
        journal.discard()
    print(f"wrote {plan.path}", file=sys.stderr)
    return result


@contextlib.contextmanager
def _said_what_is_kept(journal: Journal) -> Iterator[None]:
    """When a run breaks off, say that it can go on; leave no journal that holds nothing."""
    try:
        yield
    except BaseException:
        if journal.done:
            print(
                f"{len(journal.done)} of {journal.count} answers are kept in {journal.partial}; "
                "the same command goes on from there",
                file=sys.stderr,
            )
        else:
            journal.discard()
        raise


def command_line(program: str, words: Sequence[str]) -> str:
    """The command, as results keep it: without the directories of this machine."""

    def public(word: str) -> str:
        name, equals, path = word.rpartition("=")
        return name + equals + Path(path).name if Path(path).is_absolute() else word

    return f"python -m {program} " + shlex.join(map(public, words))


if __name__ == "__main__":
    sys.exit(run("python -m eval.harness", main))
