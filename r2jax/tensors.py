"""Tensors of a checkpoint before they are arrays: shape, dtype, and how to read the values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Sharding

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# The number formats that parameters may be stored in, by their safetensors name.
DTYPES = {"BF16": BFLOAT16, "F16": np.dtype(np.float16), "F32": np.dtype(np.float32)}


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read or written; the message says what would be right."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tensor:
    """One tensor of a checkpoint on disk or of a model in memory; `read` brings it to the host.

    Holding thousands of these costs nothing: memory is used while a value returned by `read` lives.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    """The whole tensor, in `dtype`."""
    read_sharded: Callable[[Sharding, np.dtype], jax.Array] | None = None
    """Read and cast only the parts that this host's devices hold, where the format can do that."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self, dtype: np.dtype, sharding: Sharding | None) -> jax.Array:
        """The tensor on its devices, cast to `dtype`; by then the host copy is free to go."""
        if sharding is None:
            out = jax.device_put(self.read().astype(dtype, copy=False))
        elif self.read_sharded is not None:
            out = self.read_sharded(sharding, dtype)
        else:
            host = self.read()
            out = jax.make_array_from_callback(
                self.shape, sharding, lambda index: host[index].astype(dtype, copy=False)
            )
        # Transfers are asynchronous: without the wait the host copies of several tensors pile up.
        return out.block_until_ready()


def check(
    found: Mapping[str, Tensor],
    wanted: Mapping[str, tuple[int, ...]],
    source: object,
    narrow: np.dtype | None = None,
) -> None:
    """Compare a checkpoint's tensors with those that its configuration asks for.

    Raises:
      CheckpointError: naming every missing, unexpected and misshapen tensor at once, and every
        tensor whose number format is not bfloat16, float16 or float32 (or, beside a scale,
        `narrow`).
    """

    def scaled(name: str) -> bool:
        return name.endswith("weight") and name.removesuffix("weight") + "scale" in wanted

    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    shapes = [
        f"{name} is {list(found[name].shape)}, should be {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != shape
    ]
    dtypes, narrower = [], []
    for name, tensor in found.items():
        if name in wanted and scaled(name) and tensor.dtype != narrow:
            narrower.append(f"{name} is {tensor.dtype}")
        elif name in wanted and not scaled(name) and tensor.dtype not in DTYPES.values():
            dtypes.append(f"{name} is {tensor.dtype}")
    faults = [
        f"{len(names)} {what}: {', '.join(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", extra),
            ("of the wrong shape", shapes),
            ("neither bfloat16, float16 nor float32", dtypes),
            (f"not {narrow} beside a scale", narrower),
        )
        if names
    ]
    if faults:
        raise CheckpointError(
            f"{source}: the tensors are not those of config.json. " + "; ".join(faults)
        )
