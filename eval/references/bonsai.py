"""LLaDA of jax-ml/bonsai (JAX): its sampler is a Python loop over whole forwards, without a cache.

Its forward is not jitted by the program, and it is run as it is. A step costs the same however many
tokens it commits, so a few are timed. Its weights are kept as [in, out]: each of ours is transposed
into a copy.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from eval.device import timed
from eval.references import checkout
from r2jax import DecodeConfig, ModelConfig
from r2jax.fuse import separate

PACKAGES = ("tqdm",)
FILES = ("bonsai/models/llada/modeling.py", "bonsai/utils/rope.py")
MOST_STEPS = 16
_BLOCK = {
    "attn_norm.weight": "attn_norm.weight",
    "q_proj.weight": "q_proj.kernel",
    "k_proj.weight": "k_proj.kernel",
    "v_proj.weight": "v_proj.kernel",
    "o_proj.weight": "attn_out.kernel",
    "mlp_norm.weight": "ff_norm.weight",
    "gate_proj.weight": "ff_proj.kernel",
    "up_proj.weight": "up_proj.kernel",
    "down_proj.weight": "ff_out.kernel",
}
_TOP = {
    "embed.weight": "wte.embedding",
    "norm.weight": "ln_f.weight",
    "head.weight": "ff_out.kernel",
}


def find(path: str, model_type: str | None = None) -> Path:
    """The checkout; its model is always LLaDA.

    Raises:
      ValueError: it is none.
    """
    return checkout.find(path, FILES, "jax-ml/bonsai")


def unsupported_model(config: ModelConfig) -> list[str]:
    """Models that its class cannot be, in words."""
    wrong = []
    if config.model_type != "llada":
        wrong.append(f"model_type {config.model_type!r} (only 'llada')")
    if config.num_kv_heads != config.num_heads:
        wrong.append(f"num_kv_heads {config.num_kv_heads} (only num_heads, {config.num_heads})")
    if config.num_heads * config.head_dim != config.hidden_size or config.qkv_bias:
        wrong.append("q/k/v bias, or a head_dim other than hidden_size / num_heads")
    return wrong


def unsupported(config: ModelConfig, decode: DecodeConfig) -> list[str]:
    """Options that its sampler does not have, in words."""
    wrong = checkout.unsupported_anywhere(decode)
    if decode.cache != "none":
        wrong.append(f"cache {decode.cache!r} (only 'none')")
    for name in ("threshold", "factor"):
        if getattr(decode, name) is not None:
            wrong.append(f"{name} {getattr(decode, name)} (only None: the schedule of steps)")
    if checkout.rules_on(decode):
        wrong.append("R²'s rules (only apply_rules=False)")
    return wrong


def timed_steps(decode: DecodeConfig) -> int:
    """How many steps are run: those asked for, but no more than 16, or one a block."""
    blocks = decode.gen_length // (decode.block_length or decode.gen_length)
    return min(decode.steps or decode.gen_length, max(1, MOST_STEPS // blocks) * blocks)


def its_name(ours: str) -> str:
    """Its parameter path for ours ("layers.3.q_proj.weight")."""
    if ours.startswith("layers."):
        _, layer, rest = ours.split(".", 2)
        return f"blocks.{layer}.{_BLOCK[rest]}"
    return _TOP[ours]


def _load(folder: Path) -> ModuleType:
    """Its LLaDA alone: bonsai.models imports every model of the collection, and needs what they
    need."""
    with checkout.first_on_path(folder, ("bonsai",)):
        for package in ("bonsai", "bonsai.models", "bonsai.utils"):
            bare = ModuleType(package)
            bare.__path__ = [str(folder.joinpath(*package.split(".")))]
            sys.modules[package] = bare
        return importlib.import_module("bonsai.models.llada.modeling")


def _build(
    program: ModuleType, config: ModelConfig, weights: dict[str, jax.Array], mesh: Any
) -> Any:
    """Its model with our values, one copied array after the other."""
    described = program.ModelConfig(
        dtype=weights["embed.weight"].dtype,
        d_model=config.hidden_size,
        n_heads=config.num_heads,
        n_kv_heads=config.num_kv_heads,
        n_layers=config.num_layers,
        embedding_dropout=0.0,
        max_sequence_length=config.max_sequence_length,
        rope_theta=config.rope_theta,
        include_qkv_bias=False,
        include_bias=False,
        vocab_size=config.vocab_size,
        embedding_size=config.vocab_size,
        mlp_hidden_size=config.intermediate_size,
        shd_cfg=program.ShardingConfig.default(False, False),
        return_hidden_states=False,
        rms_norm_eps=config.rms_norm_eps,
    )

    def place(array: jax.Array) -> jax.Array:
        spec = PartitionSpec(*(None,) * array.ndim)
        return jax.device_put(array, NamedSharding(mesh, spec)).block_until_ready()

    named = {}
    for fused, array in weights.items():
        for ours, part in separate(fused, array, config).items():
            name = its_name(ours)
            named[name] = place(part.T if name.endswith(".kernel") else part)

    def value(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        name = ".".join(map(str, path))  # it has zero biases as well, and adds them
        return named[name] if name in named else place(jnp.zeros(leaf.shape, leaf.dtype))

    graph, state = nnx.split(
        nnx.eval_shape(lambda: program.LLaDAModel(described, rngs=nnx.Rngs(0)))
    )
    flat = []
    for path, leaf in nnx.to_flat_state(state):
        if isinstance(leaf, nnx.Variable):
            flat.append((path, leaf.replace(value(path, leaf.get_value()))))
        else:
            flat.append((path, value(path, leaf)))
    return nnx.merge(graph, nnx.from_flat_state(flat))


@contextlib.contextmanager
def _quiet(program: ModuleType) -> Iterator[None]:
    """Without its progress bars."""
    bars = program.trange
    program.trange = range  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        program.trange = bars  # pyright: ignore[reportAttributeAccessIssue]


def run(
    path: str,
    config: ModelConfig,
    weights: dict[str, jax.Array],
    decode: DecodeConfig,
    prompt: list[int],
    repeats: int,
) -> dict[str, Any]:
    """Time the program; see `eval.references.time_reference`. "nfe" is the number of steps."""
    folder = find(path)
    program = _load(folder)
    device = next(iter(weights["embed.weight"].sharding.device_set))
    # Its own example runs on such a mesh of one; its shardings need one with explicit axes.
    axes = ("fsdp", "tp")
    mesh = jax.make_mesh((1, 1), axes, axis_types=(AxisType.Explicit,) * 2, devices=[device])
    block = decode.block_length or decode.gen_length
    steps = timed_steps(decode)
    with jax.set_mesh(mesh), _quiet(program):
        model = _build(program, config, weights, mesh)
        tokens = jnp.asarray([prompt], jnp.int32)
        answers: list[jax.Array] = []

        def generate(steps: int) -> jax.Array:
            out = program.generate(
                model,
                tokens,
                np.ones(tokens.shape, bool),
                steps=steps,
                gen_length=decode.gen_length,
                block_length=block,
                mask_id=config.mask_id,
            )
            answers.append(out)
            return out

        jax.block_until_ready(generate(decode.gen_length // block))  # every block has own shapes
        seconds = timed(lambda: generate(steps), repeats)
    del model  # the caller's next timing gets its memory back
    gc.collect()
    whole = decode.steps or decode.gen_length
    return {
        "program": "bonsai.models.llada.modeling.generate",
        "ran": f"no cache, {steps} steps" + ("" if steps == whole else f" (of {whole})"),
        "attention": "its own",
        "device": device.device_kind,
        "seconds": seconds,
        "runs": len(answers) - 1,
        "whole_run": steps == whole,
        "nfe": steps,
        "tokens": np.asarray(answers[-1])[0, len(prompt) :].tolist(),
        "versions": {
            "jax": jax.__version__,
            "flax": version("flax"),
            "python": platform.python_version(),
        },
        "source": checkout.fingerprint(folder, FILES),
    }
