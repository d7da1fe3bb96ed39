"""Time decoding: `python -m eval.bench --size llada-8b --batch 1 4 16 --output bench.json`.

Random weights of a named size, or a checkpoint. Every option with [...] values may have several:
all combinations are run. The output file is rewritten after each, and what stands in it already
(same settings, device and versions) is not run again. docs/performance.md says what each number
means.

With --compile-only --topology v5e-8 it compiles for devices that are not here instead; see
`python -m eval.bench --compile-only --help`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

import r2jax
from eval import compile_only
from eval.bench_cases import (
    QUANTIZE,
    RULES,
    Case,
    Results,
    cases,
    command_line,
    make_mesh,
    mesh_sizes,
)
from eval.bench_table import further, headline, table
from eval.device import describe, measure_rates
from eval.floors import Rates
from eval.measure import Program, measure
from eval.profile_summary import kernel_table, summarise
from eval.random_model import HEAD_GAIN, SIZES, random_model
from eval.references import ADAPTERS, parse_reference, time_reference
from r2jax.cli import Parser, check_output, run
from r2jax.quantize import DTYPES


def _model(args: argparse.Namespace, case: Case) -> tuple[r2jax.Transformer, dict[str, Any]]:
    """The model of a configuration on its devices, and how long that took."""
    dtype, mesh = jnp.dtype(args.dtype), make_mesh(case.mesh)
    start = time.perf_counter()
    if args.checkpoint:
        model = r2jax.load(args.checkpoint, dtype=dtype, mesh=mesh, quantize=case.quantize)
    else:
        size = SIZES[args.size]
        model = random_model(
            size, dtype, args.seed, mesh, quantize=case.quantize, head_gain=args.head_gain
        )
    arrays = jax.block_until_ready(jax.tree.leaves(nnx.state(model)))
    seconds = time.perf_counter() - start
    return model, {"seconds": seconds, "weights_gb": sum(x.nbytes for x in arrays) / 1e9}


def _references(
    args: argparse.Namespace, case: Case, program: Program, result: dict[str, Any]
) -> dict[str, Any]:
    """Each reference program on the same prompt, and how much longer it takes."""
    timed = {}
    for name in case.settings["references"]:
        try:
            theirs = time_reference(
                name,
                args.reference[name],
                model=program.model,
                config=program.model.config,
                decode=case.config,
                prompt=case.prompts[0],
                repeats=args.repeats,
            )
        except Exception as error:  # of another program: anything
            timed[name] = {"error": _first_line(error)}
            continue
        theirs["times_ours_at_equal_nfe"] = theirs["ms_per_nfe"] / result["ms_per_nfe"]
        tokens = theirs.pop("tokens")
        if theirs["whole_run"]:
            theirs["times_ours_whole_run"] = theirs["seconds"] / result["seconds"]
            theirs["same_tokens"] = float(np.mean(np.asarray(program.run().tokens)[0] == tokens))
        timed[name] = theirs
    return timed


def _profile(directory: str, case: Case, program: Program, result: dict[str, Any]) -> Any:
    """Trace one warm run (the one at the target NFE where there is one) and sum it up."""
    changes = {}
    if result.get("run_at_target_nfe"):
        changes["threshold"] = result["run_at_target_nfe"]["threshold"]
    path = Path(directory) / case.label
    with jax.profiler.trace(path):
        jax.block_until_ready(program.run(**changes))
    try:
        return summarise(path)
    except ValueError as error:  # the trace itself is kept
        return {"error": str(error)}


def _failure(error: Exception) -> dict[str, Any]:
    """An error as a result."""
    text = str(error).lower()
    memory = "resource_exhausted" in text or "out of memory" in text
    return {"status": "out of memory" if memory else "failed", "error": _first_line(error)}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


def bench(
    args: argparse.Namespace,
    case: Case,
    model: r2jax.Transformer,
    rates: Rates,
    keep: Callable[[dict[str, Any]], Any],
) -> dict[str, Any]:
    """Time one configuration; an error is a result as well. Profiles are read by code that may
    crash, and other programs take minutes: before either, `keep` gets what there is."""
    try:
        program, result = measure(
            model,
            case.config,
            case.prompts,
            rates,
            batch=case.batch,
            mesh=make_mesh(case.mesh),
            repeats=args.repeats,
            target_nfe=case.settings["target_nfe"],
            trace_rows=case.settings["lock_step"],
        )
        result = {"status": "ok", **result}
        if args.profile:
            keep(result)
            result["profile"] = _profile(args.profile, case, program, result)
        if case.settings["references"]:
            keep(result)
            result["references"] = _references(args, case, program, result)
        return result
    except Exception as error:  # one configuration must not cost the results of the others
        return _failure(error)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; what cannot be is refused."""
    parser = Parser(prog="python -m eval.bench", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--size", choices=SIZES, help="random weights of this size")
    what.add_argument("--checkpoint", help="path, hub id or bundled name instead")
    parser.add_argument("--problems", help="JSONL: prompts are these questions, not random tokens")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])

    def several(name: str, default: list[Any], text: str, **options: Any) -> None:
        parser.add_argument(f"--{name}", nargs="+", default=default, help=text, **options)

    several("rules", ["r2"], "presets of DecodeConfig [r2]", choices=RULES)
    several("cache", [None], "instead of the preset's", choices=["none", "prefix", "dual"])
    several("window-size", [None], "suffix columns kept, not the preset's", type=int, metavar="N")
    several("quantize", ["none"], "weights [none]", choices=QUANTIZE)
    several("mesh", ["none"], "such as tensor=2 or data=2,tensor=2 [none]", metavar="AXIS=N")
    several("batch", [1], "rows decoded together [1]", type=int, metavar="N")
    several("prompt-length", [800], "tokens of the longest prompt [800]", type=int, metavar="N")
    several("gen-length", [], "tokens of the answer [256]", type=int, metavar="N")
    parser.add_argument("--block-length", type=int, metavar="N", help="tokens of a block [32]")
    parser.add_argument(
        "--unequal", type=int, metavar="N", help="prompts of N ... prompt-length tokens"
    )
    parser.add_argument(
        "--target-nfe",
        type=int,
        metavar="N",
        help="at batch 1 also a run at about N forwards, and its time composed of the parts'",
    )
    parser.add_argument(
        "--lock-step",
        action="store_true",
        help="of batches also what it costs that rows wait for each other",
    )
    parser.add_argument(
        "--reference", action="append", default=[], metavar="NAME=PATH",
        help=f"time another program as well at batch 1 ({', '.join(ADAPTERS)}): its checkout, "
        "which is imported and run, so one that you trust",
    )  # fmt: skip
    parser.add_argument("--profile", metavar="DIR", help="write traces here and sum them up")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed runs [3]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--head-gain",
        type=float,
        default=HEAD_GAIN,
        metavar="X",
        help=f"sharpness of random weights' predictions; lower: more forwards [{HEAD_GAIN:g}]",
    )
    parser.add_argument("--output", help="JSON; complete after every configuration, resumable")
    args = parser.parse_args(argv)
    for name in ("batch", "prompt_length", "repeats", "unequal", "target_nfe"):
        values = getattr(args, name)
        if any(v is not None and v < 1 for v in (values if isinstance(values, list) else [values])):
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    if not 0 < args.head_gain < float("inf"):
        raise ValueError(f"--head-gain must be above 0, got {args.head_gain:g}")
    for mesh in args.mesh:
        if mesh != "none":
            mesh_sizes(mesh)
    args.reference = dict(parse_reference(word) for word in args.reference)
    check_output(args.output)
    return args


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    words = sys.argv[1:] if argv is None else argv
    if "--compile-only" in words:
        return compile_only.main(words)
    args = parse(words)
    older = "XLA_PYTHON_CLIENT_MEM_FRACTION" in os.environ  # both names are an error
    if args.reference and not older:  # another program needs room beside JAX, which takes 75 %
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.6")
    wanted = cases(args)
    console = Console(stderr=True, width=160)
    results = Results(args.output, describe())
    todo = [case for case in wanted if not results.done(case.settings)]
    console.print(f"{len(wanted)} configurations, {len(wanted) - len(todo)} of them done already")
    narrow = {str(DTYPES[case.quantize]) for case in todo if case.quantize}
    rates = measure_rates({args.dtype, *narrow}) if todo else Rates(1.0, {})
    command = command_line(words)
    held: tuple[Any, r2jax.Transformer, dict[str, Any]] | None = None
    for case in todo:
        key = (case.mesh, case.quantize)
        row = {
            "settings": case.settings,
            "command": command,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "rates": {
                "copy_gb_per_s": rates.bytes_per_second / 1e9,
                "matmul_tflops": {k: v / 1e12 for k, v in rates.flops_per_second.items()},
            },
        }
        try:
            if held is None or held[0] != key:
                held = None  # before the next one is drawn: two would not fit
                held = (key, *_model(args, case))
        except Exception as error:
            outcome = _failure(error)
        else:
            _, model, row["load"] = held

            def keep(part: dict[str, Any], row: dict[str, Any] = row) -> None:
                results.add({**row, **part})

            outcome = bench(args, case, model, rates, keep)
        row = results.add({**row, **outcome})
        console.print(headline(case.label, row), highlight=False, soft_wrap=True)
    rows = [(case.label, row) for case in wanted if (row := results.find(case.settings))]
    output = Console(width=165)
    output.print(table([row for _, row in rows]))
    for label, row in rows:
        for line in further(row):
            output.print(f"{label}: {line}", highlight=False)
        if "kernels" in row.get("profile", {}):
            output.print(kernel_table(row["profile"], label))
    if args.output is None:
        print(json.dumps({"results": [row for _, row in rows]}, indent=1))


if __name__ == "__main__":
    sys.exit(run("python -m eval.bench", main))
