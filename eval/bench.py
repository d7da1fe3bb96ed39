"""Time a whole generation at a given size: `python -m eval.bench --size llada-8b`.

Random weights of a named size (or a checkpoint), bf16 by default. Prints JSON: compile time apart,
warm seconds, NFE, ms per NFE, per refresh and per block step, peak device memory, and the floor of
a block step (bytes of the weights over the device's measured copy bandwidth).
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import r2jax
from r2jax.cli import Parser, check_output, run, write_json
from r2jax.config import LLADA_8B
from r2jax.decode import decode
from r2jax.generate import BUCKET

SIZES = {
    "llada-8b": LLADA_8B,
    "tiny": r2jax.ModelConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=192,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        max_sequence_length=4096,
        rope_theta=500000.0,
        rms_norm_eps=1e-5,
        mask_id=511,
        eos_id=0,
        pad_id=0,
    ),
}
# Weights of 1.5 / sqrt(fan in) and a sharp head give predictions that differ from position to
# position and confidences from near 0 to near 1, so that every rule has work (the goldens' recipe).
GAIN, HEAD_GAIN = 1.5, 9.0


@functools.partial(jax.jit, static_argnums=(2, 3))
def _normal(key: jax.Array, scale: float, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return (scale * jax.random.normal(key, shape, dtype)).astype(dtype)


def random_model(config: r2jax.ModelConfig, dtype: Any, seed: int = 0) -> r2jax.Transformer:
    """A model of random weights, each made on the device in its own dtype."""
    graph, state = nnx.split(
        nnx.eval_shape(lambda: r2jax.Transformer(config, dtype=dtype, rngs=nnx.Rngs(0)))
    )

    def fill(path: tuple[Any, ...], param: nnx.Variable) -> nnx.Variable:
        shape = param.get_value().shape
        if len(shape) == 1:
            return param.replace(jnp.ones(shape, dtype))
        gain = {"head": HEAD_GAIN, "embed": shape[-1] ** 0.5}.get(path[0], GAIN)
        nonlocal key
        key, one = jax.random.split(key)
        return param.replace(_normal(one, gain / shape[-1] ** 0.5, shape, dtype))

    key = jax.random.key(seed)
    flat = nnx.to_flat_state(state)
    return nnx.merge(
        graph, nnx.from_flat_state([(path, fill(path, param)) for path, param in flat])
    )


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """Median wall time of `run`, which returns arrays to wait for."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def copy_bandwidth(size: int) -> float:
    """Bytes read plus bytes written per second by a large copy on the device."""
    x = jnp.zeros((size // 4,), jnp.float32)
    step = jax.jit(lambda x: x + 1)
    jax.block_until_ready(step(x))
    return 2 * x.nbytes / seconds(lambda: step(x), 10)


def bench(model: r2jax.Transformer, args: argparse.Namespace) -> dict[str, Any]:
    """Time one configuration on `model`."""
    config = getattr(r2jax.DecodeConfig, args.rules)(
        gen_length=args.gen_length, block_length=args.block_length
    )
    rng = np.random.default_rng(args.seed)
    lengths = np.full((args.batch,), args.prompt_length, np.int32)
    if args.unequal:
        lengths = rng.integers(1, args.prompt_length + 1, (args.batch,)).astype(np.int32)
    width = -(-args.prompt_length // BUCKET) * BUCKET
    tokens = rng.integers(0, model.config.mask_id, (args.batch, width)).astype(np.int32)
    inputs = (jnp.asarray(tokens), jnp.asarray(lengths))
    static, scalars = config.split(model.config.eos_id)

    start = time.perf_counter()
    compiled = decode.lower(model, *inputs, static, scalars).compile()
    compile_seconds = time.perf_counter() - start
    out = jax.block_until_ready(compiled(model, *inputs, scalars))
    whole = seconds(lambda: compiled(model, *inputs, scalars), args.repeats)
    nfe, refreshes = int(np.max(out.nfe)), int(np.max(out.refreshes))
    result: dict[str, Any] = {
        "compile_seconds": compile_seconds,
        "seconds": whole,
        "nfe": np.asarray(out.nfe).tolist(),
        "refreshes": np.asarray(out.refreshes).tolist(),
        "ms_per_nfe": 1e3 * whole / nfe,
    }
    if config.cache != "none" and config.threshold is not None:
        # Threshold 0 commits a whole block in its refresh: what is left is refreshes alone. The
        # threshold is traced, so this is the same program.
        refresh = seconds(
            lambda: compiled(model, *inputs, scalars._replace(threshold=0.0)), args.repeats
        )
        per_refresh = refresh / static.num_blocks
        result["ms_per_refresh"] = 1e3 * per_refresh
        if args.batch == 1 and nfe > refreshes:
            result["ms_per_block_step"] = (
                1e3 * (whole - refreshes * per_refresh) / (nfe - refreshes)
            )
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:  # a CPU does not say
        result["peak_memory_gb"] = stats["peak_bytes_in_use"] / 1e9
    return result


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m eval.bench", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--size", choices=SIZES, help="random weights of this size")
    what.add_argument("--checkpoint", help="path, hub id or bundled name instead")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rules", default="r2", choices=["r2", "fast_dllm", "vanilla"])
    for name, default, what_for in (
        ("batch", 1, "rows decoded together"),
        ("prompt-length", 800, "tokens of the longest prompt"),
        ("gen-length", 256, "tokens of the answer"),
        ("block-length", 32, "tokens of a block"),
        ("repeats", 3, "timed runs, of which the median counts"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{what_for} [{default}]"
        )
    parser.add_argument("--unequal", action="store_true", help="prompt lengths 1..prompt-length")
    parser.add_argument("--attention", default="xla", choices=["xla", "cudnn"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="write the JSON here as well")
    args = parser.parse_args(argv)
    for name in ("batch", "prompt_length", "repeats"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    check_output(args.output)

    dtype = jnp.dtype(args.dtype)
    if args.checkpoint:
        model = r2jax.load(args.checkpoint, dtype=dtype)
    else:
        model = random_model(SIZES[args.size], dtype, args.seed)
    for layer in model.layers:
        layer.attention_kernel = args.attention
    jax.block_until_ready(nnx.state(model))
    weights = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model)))
    table = model.embed.weight[...].nbytes  # a few rows of it are read, the rest never
    bandwidth = copy_bandwidth(min(weights, 4_000_000_000))
    result = {
        "command": "python -m eval.bench " + " ".join(sys.argv[1:] if argv is None else argv),
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "arguments": vars(args),
        "weights_gb": weights / 1e9,
        "copy_bandwidth_gb_per_s": bandwidth / 1e9,
        "floor_ms_per_block_step": 1e3 * (weights - table) / bandwidth,
        **bench(model, args),
    }
    print(json.dumps(result, indent=2))
    write_json(args.output, result)


if __name__ == "__main__":
    sys.exit(run("python -m eval.bench", main))
