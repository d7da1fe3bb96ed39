"""Train a masked-diffusion model: `python -m train.sft CONFIG --corpus DIR --out DIR`.

`main` reads top to bottom in the order things happen: configuration, mesh, data, model, optimiser,
loop, export. The same command runs on one CPU, one GPU or all GPUs of a host, and resumes from
OUT/checkpoints if there is a checkpoint.

The host starts `steps_per_call` optimisation steps at once. Everything a step needs (its rows, its
masks, its learning rate) is a pure function of (seed, step), so that a run that was stopped and
resumed computes what an uninterrupted one computes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from r2jax.checkpoint import load, save_hf
from r2jax.cli import Parser, run
from r2jax.sharding import make_mesh, named_sharding
from train.config import read_config
from train.data import read_corpus, row_indices
from train.optimizer import make_optimizer
from train.run import Log, StopRequest, refuse_non_finite, restore, save, tokenizer_files
from train.step import Template, make_evaluation, make_initial, make_train_steps


def main(argv: Sequence[str] | None = None) -> None:
    """The whole run, top to bottom."""
    started = time.monotonic()
    args = parse(argv)

    config = read_config(args.config, args.set)
    devices = jax.devices()
    if args.fsdp < 1 or len(devices) % args.fsdp:
        raise ValueError(f"--fsdp {args.fsdp} must divide the {len(devices)} devices")
    mesh = make_mesh(data=len(devices) // args.fsdp, fsdp=args.fsdp)
    examples = config.batch_size // (2 if config.loss.complementary else 1)
    place = named_sharding(mesh, (None, "batch"), (config.steps_per_call, examples))
    files = tokenizer_files(args.tokenizer)
    args.out.mkdir(parents=True, exist_ok=True)

    corpus = read_corpus(args.corpus, config.model, config.gen_length)
    if corpus.rows <= config.held_out:
        raise ValueError(
            f"{args.corpus}: {corpus.rows} rows, of which {config.held_out} are held out"
        )
    everywhere = NamedSharding(mesh, PartitionSpec())
    train, held_out = jax.device_put(corpus.split(config.held_out), everywhere)
    width = corpus.prompt_width + corpus.answer_width

    template = Template(config, mesh)
    optimizer = make_optimizer(config.optimizer, config.steps)
    train_steps = make_train_steps(config, template, optimizer)
    evaluate = make_evaluation(config, template)
    checkpoints = ocp.CheckpointManager(
        (args.out / "checkpoints").absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=2)
    )
    initial, abstract = make_initial(template, optimizer)
    state = restore(checkpoints, abstract, config)
    if state is None:
        state = initial()
        if args.init:
            model = load(args.init, fused=False)
            if model.config != config.model:
                raise ValueError(f"--init {args.init} is {model.config}, not {config.model}")
            state = state._replace(params=template.read(model))

    step = saved = int(state.step)
    size = sum(param.size for param in state.params.values())
    print(
        f"{size:,} parameters; {train.rows:,} rows of {width} columns; "
        f"{len(devices)} x {devices[0].device_kind}; step {step} of {config.steps}",
        flush=True,
    )
    compiled = False
    pace: list[float] = []  # seconds a step of every call but the first, which compiles
    with StopRequest() as stop, Log(args.out / "metrics.jsonl", step) as log:
        while step < config.steps and not stop.requested:
            # Leave time for one more call like the slowest, and as much for saving.
            ahead = 2 * config.steps_per_call * max(pace, default=0.0)
            if time.monotonic() - started + ahead > args.max_seconds:
                break
            tick = time.monotonic()
            count = config.steps_per_call
            rows = row_indices(config.seed, step, count, examples, train.rows)
            state, metrics = train_steps(state, train, jax.device_put(rows, place))
            metrics = {name: np.asarray(value) for name, value in metrics.items()}
            refuse_non_finite(metrics["loss"], step)
            step += count
            elapsed = time.monotonic() - tick
            if compiled:
                pace.append(elapsed / count)
            compiled = True
            log.write(
                step=step,
                loss=metrics["loss"].mean(),
                grad_norm=metrics["grad_norm"].mean(),
                learning_rate=metrics["learning_rate"][-1],
                milliseconds=1e3 * elapsed / count,
                tokens_per_second=config.batch_size * width * count / elapsed,
                eta_seconds=(config.steps - step) * elapsed / count,
            )
            if step % config.eval_every == 0 or step == config.steps:
                log.write(step=step, **evaluate(state.params, held_out))
            if step % config.save_every == 0:
                save(checkpoints, state, config)
                saved = step
    if saved != step:
        save(checkpoints, state, config)
    checkpoints.close()  # waits for what is being written
    model = template.build(state.params, jnp.dtype("bfloat16"))
    save_hf(model, args.out / "model", files=files, force=True)
    milliseconds = 1e3 * float(np.median(pace)) if pace else float("nan")
    print(
        f"ended at step {step} of {config.steps} after {time.monotonic() - started:.0f} s; "
        f"{milliseconds:.2f} ms a step; weights in {args.out / 'model'}",
        flush=True,
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="python -m train.sft", description=__doc__)
    parser.add_argument("config", type=Path, help="JSON file, see train/config.py")
    parser.add_argument("--corpus", type=Path, required=True, help="written by train.corpus")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, log, model")
    parser.add_argument(
        "--init", help="start from this checkpoint's weights (path, hub id or name)"
    )
    parser.add_argument("--tokenizer", type=Path, help="directory whose tokenizer is exported too")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a field of the configuration, e.g. loss.block_fraction=0.5",
    )
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=float("inf"),
        help="save, export and end after this long; the same command resumes",
    )
    parser.add_argument("--fsdp", type=int, default=1, help="devices that split the parameters")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run("python -m train.sft", main))
