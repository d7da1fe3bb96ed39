"""What a forward must at least read and compute, counted on true lengths, and the time it takes at
the rates measured on the device.

Counted is what any program that gives the same answer has to do: no padding, no column that is fed
and ignored, the language-model head on the block only, the embedding table not at all (a few of its
rows are read).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from r2jax import DecodeConfig, Transformer


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one forward on one device."""

    bytes: float
    """Read, and for a refresh written: weights as stored, keys and values."""
    flops: Mapping[str, float]
    """Operations (a multiplication and an addition count as two) by the dtype of the weights;
    attention counts under the dtype of the activations."""


@dataclasses.dataclass(frozen=True)
class Rates:
    """Of one device, measured."""

    bytes_per_second: float
    flops_per_second: Mapping[str, float]
    """By dtype."""

    def seconds(self, work: Work) -> tuple[float, float] | None:
        """The floors of `work`: by its bytes and by its operations; None if a rate is missing."""
        products = {dtype: n for dtype, n in work.flops.items() if n}  # scales multiply nothing
        if not set(products) <= set(self.flops_per_second):
            return None
        flops = sum(n / self.flops_per_second[dtype] for dtype, n in products.items())
        return work.bytes / self.bytes_per_second, flops


def columns(config: DecodeConfig, block: int) -> tuple[int, int]:
    """Columns of the answer that count while `block` is decoded: (in a refresh, fed in a step).

    Without a cache a step is a full pass. With a suffix window, positions beyond it are left out,
    all but the last.
    """
    length = config.block_length or config.gen_length
    end = (block + 1) * length
    suffix = config.gen_length - end
    if config.window_size is not None and suffix > config.window_size:
        suffix = config.window_size + 1
    if config.cache == "none":
        return end + suffix, end + suffix
    if config.cache == "prefix":
        return end + suffix, length + suffix
    return end + suffix, length


def _weights(model: Transformer) -> Iterator[tuple[jax.Array, float, float]]:
    """Every parameter but the embedding table; the share of it that multiplies every column fed,
    and the share that multiplies the block's columns alone.

    The block's alone are the head and, of the last layer, everything but its keys and values.
    """
    sizes = model.config
    keys_and_values = 2 * sizes.num_kv_heads / (sizes.num_heads + 2 * sizes.num_kv_heads)
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        value = leaf.get_value()
        if path[0] == "embed":
            continue
        every = 1.0
        if path[-1] != "weight" or value.ndim < 2:
            yield value, 0.0, 0.0
            continue
        if path[0] == "head":
            every = 0.0
        elif path[1] == sizes.num_layers - 1:
            name = str(path[2])
            every = {"qkv_proj": keys_and_values, "k_proj": 1.0, "v_proj": 1.0}.get(name, 0.0)
        yield value, every, 1.0 - every


def _add(flops: dict[str, float], dtype: Any, count: float) -> None:
    flops[str(dtype)] = flops.get(str(dtype), 0.0) + count


def work(
    model: Transformer, config: DecodeConfig, prompt_lengths: Sequence[int], *, refresh: bool
) -> Work:
    """The work of a refresh or of a block step, averaged over the answer's blocks.

    Args:
      model: on one device or on a mesh; the work is then that of the device with most rows.
      config: how it decodes. Without a cache refresh and step are the same full pass.
      prompt_lengths: true tokens of each row's prompt.
      refresh: a full pass that fills the cache, or a step that reads it.
    """
    length = config.block_length or config.gen_length
    blocks = config.gen_length // length
    batch = len(prompt_lengths)
    prompt = float(sum(prompt_lengths))
    sizes = model.config
    mesh = getattr(model.head.weight[...].sharding, "mesh", None)
    shape = dict(mesh.shape) if mesh is not None else {}
    tensor = shape.get("tensor", 1)
    parts = tensor * batch / math.ceil(batch / shape.get("data", 1))  # of the fullest device

    nbytes, flops = 0.0, {}
    per_column: dict[str, float] = {}
    for value, every, block_alone in _weights(model):
        nbytes += int(np.prod(value.sharding.shard_shape(value.shape))) * value.dtype.itemsize
        _add(flops, value.dtype, 2 * value.size * block_alone * batch * length / parts)
        _add(per_column, value.dtype, 2 * value.size * every / parts)

    fed = keys = pairs = 0.0  # sums over rows, means over blocks
    for block in range(blocks):
        kept, step = columns(config, block)
        all_keys = batch * kept + prompt
        full = refresh or config.cache == "none"
        fed += (all_keys if full else batch * step) / blocks
        keys += all_keys / blocks
        for p in prompt_lengths:
            queries = kept + p if full else step
            last = length / sizes.num_layers + queries * (1 - 1 / sizes.num_layers)
            pairs += last * (kept + p) / blocks
    for dtype, count in per_column.items():
        _add(flops, dtype, count * fed)
    width = sizes.num_heads * sizes.head_dim
    _add(flops, model.dtype, 4 * sizes.num_layers * width * pairs / parts)
    # A refresh writes every key and value once, a step reads them; a pass without cache does not.
    if config.cache != "none":
        kv = 2 * sizes.num_layers * sizes.num_kv_heads * sizes.head_dim * model.dtype.itemsize
        nbytes += kv * keys / parts
    return Work(nbytes, flops)


def floor(rates: Rates, work: Work, measured_ms: float | None) -> dict[str, Any]:
    """The floors of a forward in ms beside what it took."""
    seconds = rates.seconds(work)
    result: dict[str, Any] = {"bytes": work.bytes, "flops": dict(work.flops)}
    if seconds is None:
        return result
    by_bytes, by_flops = 1e3 * seconds[0], 1e3 * seconds[1]
    result |= {"ms_by_bytes": by_bytes, "ms_by_flops": by_flops, "ms": max(by_bytes, by_flops)}
    if measured_ms is not None:
        result["ratio"] = measured_ms / result["ms"]
    return result
