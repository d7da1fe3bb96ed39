"""Time a few layers alone: `python -m eval.layers --size llada-8b --quantize none int8`.

A model of few layers draws and compiles in seconds, and its step is the same kernels: for work on
kernels, where a whole run of eval.bench would cost minutes. Each row is timed as decoding runs it
and, where our kernels apply, without them. Head and embedding are next to nothing (2,048 tokens of
vocabulary); the loop itself and the embedding count to the layers, a few µs each.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax import Array, lax
from rich.console import Console
from rich.table import Table

import r2jax
from eval.bench_cases import QUANTIZE
from eval.device import describe, timed, warm_result
from eval.profile_summary import kernel_table, summarise
from eval.random_model import SIZES, random_model
from r2jax import kernels
from r2jax.cli import Parser, check_output, run, write_json

STEPS = 100  # of one compiled loop, as in decoding: a step is then one launch
COLUMNS, LENGTH = 1056, 32  # a prompt of 800, 256 generated; a block


@jax.jit
def refresh(model: r2jax.Transformer, tokens: Array, lengths: Array) -> tuple[Array, Any]:
    """A full pass: the last layer's output, and the cache."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return model.hidden(tokens, positions, lengths)


@jax.jit
def steps(model: r2jax.Transformer, cache: Any, tokens: Array, lengths: Array) -> Any:
    """Block steps one after the other, each on the cache of the one before."""
    positions = jnp.broadcast_to(jnp.arange(LENGTH) + COLUMNS - LENGTH, tokens.shape)

    def step(i: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
        cache, tokens = carry
        hidden, cache = model.hidden(tokens, positions, lengths, cache, 64 + 0 * i)
        # Never true, which no compiler knows: the next step depends on this one.
        return cache, jnp.where(hidden[:, :, 0] > 1e30, 0, tokens)

    return lax.fori_loop(0, STEPS, step, (cache, tokens))


def time_layers(model: r2jax.Transformer, batch: int, profile: str | None) -> dict[str, Any]:
    """Microseconds a layer of a block step and of a refresh; kernels of the steps if asked for."""
    layers = model.config.num_layers
    lengths = jnp.full((batch,), COLUMNS)
    tokens = jax.random.randint(jax.random.key(0), (batch, COLUMNS), 0, 2000)
    (_, cache), _ = warm_result(lambda: refresh(model, tokens, lengths), 1)
    wide = timed(lambda: [refresh(model, tokens, lengths) for _ in range(4)], 5) / 4

    def narrow() -> Any:
        return steps(model, cache, tokens[:, :LENGTH], lengths)

    jax.block_until_ready(narrow())
    result: dict[str, Any] = {
        "step_us": 1e6 * timed(narrow, 5) / STEPS / layers,
        "refresh_us": 1e6 * wide / layers,
    }
    if profile is not None:
        directory = Path(tempfile.mkdtemp(dir=profile))
        with jax.profiler.trace(directory):
            jax.block_until_ready(narrow())
        result["profile"] = summarise(directory)
    return result


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m eval.layers", description=__doc__)
    parser.add_argument("--size", required=True, choices=SIZES, help="whose layers")
    parser.add_argument("--layers", type=int, default=4, metavar="N", help="how many [4]")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="rows [1]")
    parser.add_argument("--quantize", nargs="+", default=["none"], choices=QUANTIZE)
    parser.add_argument("--profile", metavar="DIR", help="write traces here and sum them up")
    parser.add_argument("--output", help="JSON with all numbers")
    args = parser.parse_args(argv)
    if args.layers < 1 or args.batch < 1:
        raise ValueError("--layers and --batch must be at least 1")
    check_output(args.output)
    if args.profile is not None:
        Path(args.profile).mkdir(parents=True, exist_ok=True)

    size = SIZES[args.size]
    few = {"num_layers": args.layers, "vocab_size": 2048, "mask_id": 2047}
    config = dataclasses.replace(size, **few, eos_id=0, pad_id=0)
    console = Console(width=120)
    table = Table("weights", "kernels", "step, µs a layer", "refresh, µs a layer")
    rows = []
    for kind in args.quantize:
        quantize = None if kind == "none" else kind
        model = random_model(config, jnp.bfloat16, quantize=quantize)
        for ours in (True, False) if kernels.available() else (False,):
            jax.clear_caches()  # which kernels run is decided when a program is traced
            with mock.patch.object(kernels, "available", lambda ours=ours: ours):
                row = {
                    "quantize": quantize,
                    "kernels": ours,
                    **time_layers(model, args.batch, args.profile),
                }
            rows.append(row)
            table.add_row(
                kind,
                "ours" if ours else "XLA's",
                f"{row['step_us']:.1f}",
                f"{row['refresh_us']:.1f}",
            )
            if "profile" in row:
                console.print(kernel_table(row["profile"], f"{kind}, {'ours' if ours else 'XLA'}"))
    console.print(table)
    settings = {"size": args.size, "layers": args.layers, "batch": args.batch}
    write_json(args.output, {"settings": settings, "results": rows, **describe()})


if __name__ == "__main__":
    sys.exit(run("python -m eval.layers", main))
