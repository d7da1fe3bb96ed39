"""Devices that are not here, by name, to compile for them ahead of time.

A TPU's compiler is the PyPI package `libtpu`, an NVIDIA GPU's the plugin `jax-cuda13-plugin` with
`jax-cuda13-pjrt`: both run on a plain CPU machine, without a driver and without the CUDA libraries.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh

from r2jax.config import ModelConfig
from r2jax.sharding import param_shardings

M = TypeVar("M", bound=nnx.Module)
GIB = 1 << 30


class Chip(NamedTuple):
    """One kind of device."""

    platform: str
    name: str
    hbm_bytes: int
    source: str
    """Of hbm_bytes."""


_CLOUD_TPU = "Cloud TPU documentation, system architecture"
_NVIDIA = "NVIDIA data sheet"
CHIPS = {
    "v5e": Chip("tpu", "TPU v5e", 16 * GIB, _CLOUD_TPU),
    "v5p": Chip("tpu", "TPU v5p", 95 * GIB, _CLOUD_TPU),
    "v6e": Chip("tpu", "TPU v6e", 32 * GIB, _CLOUD_TPU),
    "h100": Chip("cuda", "NVIDIA H100 SXM", 80_000_000_000, _NVIDIA),
    "h200": Chip("cuda", "NVIDIA H200 SXM", 141_000_000_000, _NVIDIA),
}
# Chips in a slice -> their layout, as the Cloud offers them. v5e and v6e are a torus of two
# dimensions, v5p of three.
_PLANE = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBE = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"}
_GPUS = range(1, 9)  # of one host

# What XLA asks of a Hopper GPU (CUDA's device properties of compute capability 9.0; both kinds have
# 132 multiprocessors and 18 NVLinks). Memory and its bandwidth are the chip's own.
_HOPPER = """
gpu_device_info {{
  name: "{name}"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: {memory}
  memory_bandwidth: {bandwidth}
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
  device_interconnect_info {{ active_links: 18 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""
_BANDWIDTH = {"h100": 3_350_000_000_000, "h200": 4_800_000_000_000}


class Topology(NamedTuple):
    """Devices that programs can be compiled for, though they are not here."""

    name: str
    chip: Chip
    devices: Sequence[Any]


def absent_devices(name: str) -> Topology:
    """The devices of a machine or slice that need not exist here.

    Args:
      name: "v5e-8", "v6e-16": so many chips; "v5p-8": the Cloud's name, which counts TensorCores,
        two a chip, so four devices; "h100-2", "h200-4": so many GPUs of one host.

    Raises:
      ValueError: no such name, or the package that compiles for it is not installed.
    """
    match = re.fullmatch(r"([a-z0-9]+)-([0-9]+)", name)
    if match is None or match[1] not in CHIPS:
        raise ValueError(f"topology {name!r} must be KIND-N, with KIND one of {', '.join(CHIPS)}")
    kind, count = match[1], int(match[2])
    chip = CHIPS[kind]
    sizes = {
        "v5e": {n: f"v5e:{shape}" for n, shape in _PLANE.items()},
        "v6e": {n: f"v6e:{shape}" for n, shape in _PLANE.items()},
        "v5p": {2 * n: f"v5p:{shape}" for n, shape in _CUBE.items()},
    }.get(kind, {n: f"1x1x{n}" for n in _GPUS})
    if count not in sizes:
        raise ValueError(f"topology {name!r}: {kind} comes in sizes {', '.join(map(str, sizes))}")
    if chip.platform == "tpu":
        return Topology(name, chip, _tpus(name, sizes[count]))
    return Topology(name, chip, _gpus(name, kind, sizes[count]))


def _tpus(name: str, layout: str) -> Sequence[Any]:
    if find_spec("libtpu") is None:
        raise ValueError(
            f"topology {name!r} needs the package libtpu: in a checkout set up by make, set "
            "PYTHONPATH=.venv/aot; else pip install 'jax[tpu]'"
        )
    # Where no TPU is, libtpu asks the Cloud's metadata server which one this machine has, and warns
    # at length when none answers. What these say is of no account: the layout is given. A lock
    # file keeps two processes from one TPU; there is none to share.
    for variable, value in (
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
    ):
        os.environ.setdefault(variable, value)
    return topologies.get_topology_desc(layout, platform="tpu").devices


def _gpus(name: str, kind: str, layout: str) -> Sequence[Any]:
    if not any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise ValueError(
            f"topology {name!r} needs JAX's CUDA plugin (no GPU, no CUDA libraries): pip install "
            f"jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt=={jax.__version__}"
        )
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # else it looks for cuDNN
    target = _HOPPER.format(
        name=CHIPS[kind].name, memory=CHIPS[kind].hbm_bytes, bandwidth=_BANDWIDTH[kind]
    )
    return topologies.get_topology_desc(
        kind, platform="cuda", target_config=target, topology=layout
    ).devices


def default_mesh(config: ModelConfig, devices: int) -> dict[str, int]:
    """Mesh sizes for decoding: tensor as large as the model's heads, MLP and vocabulary allow, the
    rest data."""
    sizes = (config.num_heads, config.num_kv_heads, config.intermediate_size, config.vocab_size)
    tensor = next(
        n for n in range(devices, 0, -1) if devices % n == 0 and not any(s % n for s in sizes)
    )
    return {"data": devices // tensor, "tensor": tensor}


def abstract_model(make: Callable[[], M], mesh: Mesh) -> M:
    """What `make` makes, as shapes with their places on `mesh`: nothing is allocated.

    Args:
      make: builds a module whose Params carry `logical_axes`, such as a Transformer.
      mesh: on devices present or absent.
    """
    graph, state = nnx.split(nnx.eval_shape(make))
    placed = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        param_shardings(state, mesh),
    )
    return nnx.merge(graph, placed)


def bytes_per_device(tree: Any) -> int:
    """Bytes of a tree of arrays (or shapes with their places) that one device holds."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )
