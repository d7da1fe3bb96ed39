"""What the device is and what it can do: names and versions, copy bandwidth, matmul rate."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

import r2jax
from eval.floors import Rates

ENOUGH_SECONDS = 5.0  # a timing that has taken this long is not repeated


T = TypeVar("T")


def timed_result(run: Callable[[], T], repeats: int) -> tuple[T, float]:
    """What `run` returns, arrays to wait for, and its median wall time in seconds."""
    times: list[float] = []
    while True:
        start = time.perf_counter()
        result = jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
        if len(times) >= repeats or sum(times) >= ENOUGH_SECONDS:
            return result, float(np.median(times))


def timed(run: Callable[[], Any], repeats: int) -> float:
    """The time alone."""
    return timed_result(run, repeats)[1]


def warm_result(run: Callable[[], T], repeats: int) -> tuple[T, float]:
    """As `timed_result`, after a first run that is not counted unless it took long by itself (what
    a first run costs more, some 0.1 s, is nothing then)."""
    result, first = timed_result(run, 1)
    return (result, first) if first >= ENOUGH_SECONDS else timed_result(run, repeats)


def _back_to_back(step: Callable[[jax.Array], jax.Array], x: jax.Array, times: int) -> float:
    """Seconds of one `step`, launched again and again without waiting in between."""

    def run() -> jax.Array:
        y = step(x)
        for _ in range(times - 1):
            y = step(x)
        return y

    return warm_result(run, 3)[1] / times


def copy_bandwidth(nbytes: int) -> float:
    """Bytes read plus bytes written per second by a large copy of random numbers (zeros go
    faster)."""
    x = jax.random.uniform(jax.random.key(0), (nbytes // 4,), jnp.float32)
    return 2 * x.nbytes / _back_to_back(jax.jit(lambda x: x + 1), x, 10)


def matmul_rate(dtype: Any, size: int) -> float:
    """Operations per second of a product [size, size] x [size, size]ᵀ of random numbers.

    int8 sums are int32; fp8 is written in bfloat16, as a wide product of the model is (float32 took
    1.3 s on an H200: XLA found no 8-bit kernel). float32 runs at full precision.
    """
    dtype = jnp.dtype(dtype)
    a, b = jax.random.normal(jax.random.key(0), (2, size, size), jnp.float32)
    if dtype == jnp.int8:
        a, b, out = 30 * a, 30 * b, jnp.dtype(jnp.int32)
    else:
        out = jnp.dtype(jnp.bfloat16) if dtype.itemsize == 1 else dtype
    a, b = a.astype(dtype), b.astype(dtype)

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        precision = "highest" if dtype == jnp.float32 else None
        contract = (((1,), (1,)), ((), ()))
        return jax.lax.dot_general(a, b, contract, precision, preferred_element_type=out)

    step = jax.jit(product)
    return 2 * size**3 / _back_to_back(lambda a: step(a, b), a, 20)


def measure_rates(dtypes: set[str]) -> Rates:
    """The rates of device 0, for products of these dtypes; one that the device cannot do is left
    out."""
    small = jax.default_backend() == "cpu"
    size = 512 if small else 8192
    rates: dict[str, float] = {}
    for dtype in sorted(dtypes):
        try:
            rates[dtype] = matmul_rate(dtype, size)
        except jax.errors.JaxRuntimeError:
            continue
    return Rates(copy_bandwidth(50_000_000 if small else 2_000_000_000), rates)


def describe() -> dict[str, Any]:
    """Device, versions and XLA_FLAGS: what a result depends on."""
    first = jax.devices()[0]
    versions = {"r2jax": r2jax.__version__}  # a bare checkout on PYTHONPATH is no distribution
    versions |= {name: version(name) for name in ("jax", "jaxlib", "flax")}
    versions["python"] = platform.python_version()
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if not f.startswith("--xla_dump_")]
    if flags:
        versions["XLA_FLAGS"] = " ".join(flags)  # as good as another version
    if first.platform == "gpu" and (program := shutil.which("nvidia-smi")):
        query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(query, capture_output=True, text=True, check=False).stdout
        versions["driver"] = said.splitlines()[0].strip() if said.strip() else "unknown"
    return {
        "device": {"kind": first.device_kind, "platform": first.platform},
        "versions": versions,
    }


def peak_memory_gb(devices: list[Any]) -> float | None:
    """Most bytes in use so far on any of the devices, since the process began; None: it does not
    say (a CPU)."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
    known = [peak for peak in peaks if peak is not None]
    return max(known) / 1e9 if known else None
