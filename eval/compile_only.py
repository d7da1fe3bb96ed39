"""Compile decoding for devices that are not here: `python -m eval.bench --compile-only`.

    python -m eval.bench --compile-only --topology v5e-8 --size llada-8b

For every topology, mesh and batch: the memory that each device needs and whether it has that much,
operations, bytes moved, what is exchanged between devices, and how long compilation took. No
weights are drawn or read. TPUs need the package libtpu, GPUs JAX's CUDA plugin; neither needs a
device.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

import r2jax
from eval.bench_cases import RULES, command_line, mesh_sizes
from eval.random_model import SIZES
from r2jax.checkpoint import open_checkpoint, resolve
from r2jax.cli import Parser, check_output, write_json
from r2jax.generate import bucket, check_config
from r2jax.program import Cost, cost, summary
from r2jax.quantize import Quantization
from r2jax.sharding import check_mesh, make_mesh, named_sharding
from r2jax.spread import decode_on
from r2jax.topology import (
    GIB,
    Topology,
    absent_devices,
    abstract_model,
    bytes_per_device,
    default_mesh,
)

GPU_NOTE = (
    "without the GPU nothing is autotuned and attention is XLA's (with it: cuDNN's, our kernels); "
    "the memory of CUDA and NCCL themselves is not counted"
)
# Where a collective stands in a decode program, by the loops around it. With a cache the loop over
# blocks holds the refresh, and the loop inside it the block step.
PLACES = {True: ("start", "refresh", "block step"), False: ("start", "block", "full pass")}


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; what cannot be is refused."""
    parser = Parser(prog="python -m eval.bench --compile-only", description=__doc__)
    parser.add_argument("--compile-only", action="store_true", required=True)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--size", choices=SIZES, help="a model of this size")
    what.add_argument("--checkpoint", help="path, hub id or bundled name: its configuration")
    parser.add_argument(
        "--topology", nargs="+", required=True, metavar="KIND-N",
        help="v5e-8, v6e-8, v5p-8 (four chips: the name counts cores), h100-2, h200-4, ...",
    )  # fmt: skip
    parser.add_argument(
        "--mesh", metavar="AXIS=N", help="such as tensor=8 or data=2,tensor=4 [tensor first]"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--quantize", default="none", choices=["none", "fp8", "int8"])
    parser.add_argument("--rules", default="r2", choices=RULES, help="preset of DecodeConfig [r2]")
    parser.add_argument("--cache", choices=["none", "prefix", "dual"], help="not the preset's")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], metavar="N", help="rows [1]")
    for name, default, text in (
        ("prompt-length", 800, "tokens of the longest prompt"),
        ("gen-length", 256, "tokens of the answer"),
        ("block-length", 32, "tokens of a block"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{text} [{default}]"
        )
    parser.add_argument("--output", help="write the JSON here as well")
    args = parser.parse_args(argv)
    if min(args.prompt_length, *args.batch) < 1:
        raise ValueError("--batch and --prompt-length must be at least 1")
    check_output(args.output)
    return args


def compile_decode(
    config: r2jax.ModelConfig,
    decoding: r2jax.DecodeConfig,
    topology: Topology,
    sizes: dict[str, int],
    *,
    batch: int,
    prompt_length: int,
    dtype: Any = jnp.bfloat16,
    quantize: Quantization | None = None,
) -> dict[str, Any]:
    """Compile one decode program for absent devices.

    Args:
      config: the model's.
      decoding: how to decode.
      topology: from `absent_devices`.
      sizes: of the mesh's axes.
      batch: rows; padded to a multiple of the data axis.
      prompt_length: of the longest prompt; padded as `generate` does.
      dtype: of the weights that are not quantised.
      quantize: as for `r2jax.load`.

    Returns:
      A JSON object: all bytes are one device's. With `fits` false there may be an `error`, the
      compiler's.

    Raises:
      ValueError: a mesh that does not have the topology's number of devices or cannot hold the
        model.
    """
    mesh = make_mesh(**sizes, devices=topology.devices)
    check_mesh(mesh, config)
    check_config(decoding, config)

    def make(mesh: Mesh | None = None) -> r2jax.Transformer:
        return r2jax.Transformer(
            config, dtype=dtype, fused=False, quantize=quantize, mesh=mesh, rngs=nnx.Rngs(0)
        )

    model = abstract_model(lambda: make(mesh), mesh)
    rows = batch + -batch % mesh.shape["data"]
    place = named_sharding(mesh, ("batch",))
    tokens, lengths = (
        jax.ShapeDtypeStruct(shape, jnp.int32, sharding=place)
        for shape in ((rows, bucket(prompt_length)), (rows,))
    )
    static, scalars = decoding.split(config.eos_id)
    start = time.perf_counter()
    lowered = decode_on(mesh).lower(model, tokens, lengths, static, scalars)
    lowering = time.perf_counter() - start
    result: dict[str, Any] = {
        "topology": topology.name,
        "devices": len(topology.devices),
        "chip": topology.chip.name,
        "hbm_bytes": topology.chip.hbm_bytes,
        "hbm_source": topology.chip.source,
        "mesh": sizes,
        "batch": batch,
        "rows_fed": rows,
        "weight_bytes": bytes_per_device(nnx.state(model)),
        "note": GPU_NOTE if topology.chip.platform == "cuda" else None,
        "lower_seconds": round(lowering, 2),
    }
    start, cpu = time.perf_counter(), time.process_time()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**result, "fits": False, "error": str(error).partition("\n")[0]}
    result["compile_seconds"] = round(time.perf_counter() - start, 2)
    result["compile_cpu_seconds"] = round(time.process_time() - cpu, 2)
    found = cost(compiled)
    if found.flops is None:
        total = _operations(make, tokens.shape, static, scalars)
        found = found._replace(flops=total and total / len(topology.devices))
    return {**result, **_report(found, topology, PLACES[static.cache != "none"])}


def _operations(
    make: Callable[[], r2jax.Transformer], shape: tuple[int, ...], static: Any, scalars: Any
) -> float | None:
    """Of the whole program before it is compiled and split up, for a compiler that says nothing."""
    tokens, lengths = (jax.ShapeDtypeStruct(s, jnp.int32) for s in (shape, shape[:1]))
    lowered = r2jax.decode.lower(nnx.eval_shape(make), tokens, lengths, static, scalars)
    return (lowered.cost_analysis() or {}).get("flops")


def _report(found: Cost, topology: Topology, places: tuple[str, ...]) -> dict[str, Any]:
    exchanges = sorted(summary(found.collectives), key=lambda item: item[0].depth)
    return {
        "fits": found.total_bytes <= topology.chip.hbm_bytes,
        "total_bytes": found.total_bytes,
        "argument_bytes": found.argument_bytes,
        "output_bytes": found.output_bytes,
        "temporary_bytes": found.temporary_bytes,
        "code_bytes": found.code_bytes,
        "flops": found.flops,
        "bytes_accessed": found.bytes_accessed,
        "collectives": [
            {
                "where": places[min(one.depth, len(places) - 1)],
                "kind": one.kind,
                "shapes": list(one.shapes),
                "bytes": one.bytes,
                "count": count,
            }
            for one, count in exchanges
        ],
    }


def _print(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table("topology (devices)", "mesh", "batch", title="Memory of one device, GiB")
    for column in ("weights", "temporaries", "code", "total", "has", "fits", "GFLOP", "GB moved"):
        table.add_column(column, justify="right")
    table.add_column("compile s", justify="right")
    table.add_column("of CPU", justify="right")

    def number(value: float | None, unit: float) -> str:
        return "-" if value is None else f"{value / unit:.2f}"

    for row in rows:
        table.add_row(
            f"{row['topology']} ({row['devices']})",
            ",".join(f"{axis}={n}" for axis, n in row["mesh"].items() if n > 1) or "none",
            str(row["batch"]),
            number(row["weight_bytes"], GIB),
            *(number(row.get(f"{name}_bytes"), GIB) for name in ("temporary", "code", "total")),
            number(row["hbm_bytes"], GIB),
            "yes" if row["fits"] else "NO",
            number(row.get("flops"), 1e9),
            number(row.get("bytes_accessed"), 1e9),
            *(number(row.get(f"compile_{kind}seconds"), 1) for kind in ("", "cpu_")),
        )
    console.print(table)
    console.print("GFLOP, GB moved: one refresh and one block step (XLA counts a loop once).")
    for row in rows:
        for remark in filter(None, (row.get("error"), row["note"])):
            console.print(f"{row['topology']}: {remark}", highlight=False)
        table = Table(
            "where", "exchange", "of (one device)", title=f"{row['topology']}, {row['batch']} rows"
        )
        for column in ("times", "kB each", "kB"):
            table.add_column(column, justify="right")
        for one in row.get("collectives", []):
            table.add_row(
                one["where"],
                one["kind"],
                ", ".join(one["shapes"]),
                str(one["count"]),
                f"{one['bytes'] / 1e3:.1f}",
                f"{one['bytes'] * one['count'] / 1e3:.1f}",
            )
        if table.row_count:
            console.print(table)


def main(argv: list[str]) -> None:
    """The command line."""
    args = parse(argv)
    # No device takes part, and looking for some takes time and (libtpu without a TPU) warnings.
    jax.config.update("jax_platforms", "cpu")
    config = SIZES[args.size] if args.size else open_checkpoint(resolve(args.checkpoint)).config
    options = {} if args.cache is None else {"cache": args.cache}
    decoding = getattr(r2jax.DecodeConfig, args.rules)(
        gen_length=args.gen_length, block_length=args.block_length, **options
    )
    result: dict[str, Any] = {
        "command": command_line(argv),
        "versions": {
            name: metadata.version(name)
            for name in ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin")
            if any(metadata.distributions(name=name))
        },
        "settings": {
            name: getattr(args, name)
            for name in (
                "size", "checkpoint", "dtype", "quantize", "rules",
                "prompt_length", "gen_length", "block_length",
            )
        }
        | {"cache": decoding.cache},
        "results": [],
    }  # fmt: skip
    for name, batch in itertools.product(args.topology, args.batch):
        topology = absent_devices(name)
        devices = len(topology.devices)
        sizes = mesh_sizes(args.mesh) if args.mesh else default_mesh(config, devices)
        row = compile_decode(
            config,
            decoding,
            topology,
            sizes,
            batch=batch,
            prompt_length=args.prompt_length,
            dtype=jnp.dtype(args.dtype),
            quantize=None if args.quantize == "none" else args.quantize,
        )
        result["results"].append(row)
        write_json(args.output, result)
    _print(result["results"], Console(stderr=args.output is None, width=140))
    if args.output is None:
        print(json.dumps(result, indent=1))
    if not all(row["fits"] for row in result["results"]):
        sys.exit(1)
