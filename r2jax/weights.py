"""From separate tensors to a model: fused, quantised, sharded, one matrix at a time."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, Sharding

from r2jax.attention import on_nvidia
from r2jax.config import ModelConfig
from r2jax.fuse import fuse, parts_of, separate
from r2jax.model import Transformer
from r2jax.quantize import DTYPES, Quantization, quantize_rows
from r2jax.sharding import named_sharding
from r2jax.tensors import Tensor

Parameters = Mapping[str, nnx.Variable]


@functools.lru_cache(maxsize=4)  # 1.3 s with 32 layers, and loading needs it twice
def abstract(
    config: ModelConfig,
    *,
    dtype: Any = jnp.float32,
    fused: bool = False,
    quantize: Quantization | None = None,
    mesh: Mesh | None = None,
) -> tuple[nnx.GraphDef, Parameters]:
    """A model without values: its graph, and its parameters by path ("layers.3.q_proj.weight")."""

    def make() -> Transformer:
        return Transformer(
            config, dtype=dtype, fused=fused, quantize=quantize, mesh=mesh, rngs=nnx.Rngs(0)
        )

    graph, state = nnx.split(nnx.eval_shape(make))
    return graph, parameters_of(state)


def parameters_of(model: Transformer | nnx.State) -> dict[str, Any]:
    """The parameters by path with dots."""
    state = nnx.state(model, nnx.Param) if isinstance(model, Transformer) else model
    return {".".join(map(str, path)): param for path, param in nnx.to_flat_state(state)}


def assemble(
    config: ModelConfig,
    read: Callable[[str, np.dtype, Sharding | None], Array],
    *,
    dtype: Any,
    fused: bool | None = None,
    quantize: Quantization | None = None,
    stored: bool = False,
    mesh: Mesh | None = None,
) -> Transformer:
    """A model of separate parameters, the largest first.

    Args:
      config: sizes.
      read: a parameter of a separate model by its path, dtype and sharding.
      dtype: of the parameters that are not quantised.
      fused: as for `Transformer`; None: on NVIDIA GPUs.
      quantize, mesh: as for `Transformer`.
      stored: what `read` gives is quantised already.
    """
    fused = on_nvidia() if fused is None else fused
    graph, parameters = abstract(config, dtype=dtype, fused=fused, quantize=quantize, mesh=mesh)
    values: dict[str, Array] = {}

    def sharding(name: str) -> Sharding | None:
        axes = parameters[name].get_metadata("logical_axes")
        return None if mesh is None else named_sharding(mesh, axes)

    def size(name: str) -> int:
        return parameters[name].get_value().size

    for name in sorted(parameters, key=size, reverse=True):
        scale = name.removesuffix("weight") + "scale"
        narrow = name.endswith(".weight") and scale in parameters
        if name.endswith(".scale"):
            continue
        target = np.dtype(parameters[name].get_value().dtype)
        wanted = np.dtype(dtype) if narrow and not stored else target
        parts = [read(part, wanted, sharding(name)) for part in parts_of(name)]
        if narrow:
            scales = None
            if stored:
                scales = [read(p, np.dtype(np.float32), sharding(scale)) for p in parts_of(scale)]
            run = _narrow(_any(name), config, target, sharding(name), sharding(scale))
            out = run(parts, scales)
            values[name], values[scale] = out
        elif len(parts) == 1:
            values[name] = parts[0]
        else:
            values[name] = _fused(_any(name), config, sharding(name))(parts)
        # Dispatch is asynchronous: without the wait, the parts of many matrices would pile up.
        jax.block_until_ready(values[name])
    state = [(_path(name), param.replace(values[name])) for name, param in parameters.items()]
    return nnx.merge(graph, nnx.from_flat_state(state))


def for_decoding(model: Transformer, quantize: Quantization | None = None) -> Transformer:
    """A separate model, fused, and quantised on request.

    Args:
      model: with its weights apart, as it is trained. What is neither fused nor quantised is shared
        with it: do not donate its arrays while the result is in use.
      quantize: "fp8" or "int8".
    """
    parameters = parameters_of(model)

    def read(name: str, dtype: np.dtype, sharding: Sharding | None) -> Array:
        return parameters[name].get_value()

    return assemble(
        model.config, read, dtype=model.dtype, fused=True, quantize=quantize, mesh=model.mesh
    )


def apart(model: Transformer) -> dict[str, Tensor]:
    """The separate parameters of a model, fused or not, by path: as checkpoints hold them."""
    parameters = parameters_of(model)

    def tensor(name: str, part: str) -> Tensor:
        value = parameters[name].get_value()

        def pieces(whole: Any) -> Any:
            return separate(name, whole, model.config)[part]

        return Tensor(
            shape=jax.eval_shape(pieces, value).shape,
            dtype=np.dtype(value.dtype),
            read=lambda: np.ascontiguousarray(pieces(np.asarray(value))),
        )

    return {part: tensor(name, part) for name in parameters for part in parts_of(name)}


def quantized(
    tensors: Mapping[str, Tensor], config: ModelConfig, kind: Quantization
) -> dict[str, Tensor]:
    """A checkpoint's tensors with the layers' projections in 8 bits and their scales beside them.

    Nothing is read before each tensor's own `read`.
    """
    _, parameters = abstract(config, quantize=kind)
    out: dict[str, Tensor] = {}

    def narrow(tensor: Tensor, which: int) -> np.ndarray:
        return np.asarray(_rows(DTYPES[kind])(tensor.read())[which])

    for name in parameters:
        weight = name.removesuffix("scale") + "weight"
        if name.endswith(".scale"):
            read = functools.partial(narrow, tensors[weight], 1)
            shape = tensors[weight].shape[:1]
            out[name] = Tensor(shape=shape, dtype=np.dtype(np.float32), read=read)
        elif name.removesuffix("weight") + "scale" in parameters:
            read = functools.partial(narrow, tensors[name], 0)
            out[name] = Tensor(shape=tensors[name].shape, dtype=DTYPES[kind], read=read)
        else:
            out[name] = tensors[name]
    return out


@functools.cache
def _rows(dtype: np.dtype) -> Any:
    return jax.jit(lambda x: quantize_rows(x, dtype))


def _any(name: str) -> str:
    """The same for every layer, so that each kind of matrix compiles once."""
    return re.sub(r"\.\d+\.", ".i.", name)


@functools.cache
def _fused(name: str, config: ModelConfig, sharding: Sharding | None) -> Any:
    return jax.jit(lambda parts: fuse(name, parts, config), out_shardings=sharding)


@functools.cache
def _narrow(
    name: str,
    config: ModelConfig,
    dtype: np.dtype,
    sharding: Sharding | None,
    scale_sharding: Sharding | None,
) -> Any:
    def run(parts: list[Array], scales: list[Array] | None) -> tuple[Array, Array]:
        if scales is None:
            parts, scales = map(list, zip(*(quantize_rows(p, dtype) for p in parts), strict=True))
        return fuse(name, parts, config), fuse(name, scales, config)

    return jax.jit(run, out_shardings=(sharding, scale_sharding))


def _path(name: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))
