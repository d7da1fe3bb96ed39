"""The original R²-dLLM on LLaDA (GATECH-EIC/R2-dLLM, PyTorch), with our weights through DLPack.

Runs the functions that the program's own evaluation runs: `generate_with_dual_cache` (R² rules, or
Fast-dLLM without them), `generate_with_prefix_cache` and `generate` (LLaDA's sampler, no cache).
Its modeling file does its attention with flash-attn where that is installed (for 16-bit weights),
otherwise with torch's scaled_dot_product_attention.
"""

from __future__ import annotations

import functools
import gc
import platform
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax

from eval.device import timed
from eval.references import checkout
from r2jax import DecodeConfig, ModelConfig
from r2jax.fuse import separate
from r2jax.hf import hf_names

PACKAGES = ("torch", "transformers")
FILES = ("generate.py", "model/modeling_llada.py", "model/configuration_llada.py")
FUNCTIONS = {
    "dual": "generate_with_dual_cache",
    "prefix": "generate_with_prefix_cache",
    "none": "generate",
}
_ENDLESS = "the original program does not end here: it predicts the mask token (take another seed)"


def find(path: str) -> Path:
    """The program's folder: `path`, or `llada` in it.

    Raises:
      ValueError: neither holds its files.
    """
    inner = Path(path) / "llada"
    return checkout.find(str(inner) if inner.is_dir() else path, FILES, "R2-dLLM (its llada)")


def unsupported_model(config: ModelConfig) -> list[str]:
    """Models that its class cannot be, in words."""
    try:
        config.to_hf()
    except ValueError as error:
        return [str(error)]
    wrong = [f"model_type {config.model_type!r} (only 'llada')"]
    return wrong if config.model_type != "llada" else []


def unsupported(decode: DecodeConfig) -> list[str]:
    """Options that its functions do not have, in words."""
    wrong = checkout.unsupported_anywhere(decode)
    if not checkout.rules_on(decode):
        return wrong
    if decode.cache != "dual":
        wrong.append(f"R²'s rules with cache {decode.cache!r} (only 'dual', or apply_rules=False)")
    if decode.token_cluster is not None and decode.spatial_threshold is not None:
        if decode.confidence_cluster_size is None:
            wrong.append("token_cluster without confidence_cluster_size")
        if decode.token_cluster_size != 2:
            wrong.append(f"token_cluster_size {decode.token_cluster_size} (only 2)")
        if decode.token_cluster == "random":
            wrong.append("token_cluster 'random' (it draws other numbers)")
    return wrong


def arguments(decode: DecodeConfig, mask_id: int) -> dict[str, Any]:
    """Keyword arguments of its generate function for a configuration it supports.

    Its precedence of factor, threshold and steps is ours.
    """
    out: dict[str, Any] = {
        "steps": decode.steps or decode.gen_length,
        "gen_length": decode.gen_length,
        "block_length": decode.block_length or decode.gen_length,
        "temperature": 0.0,
        "remasking": decode.remasking,
        "mask_id": mask_id,
        "threshold": decode.threshold,
        "factor": decode.factor,
    }
    if decode.cache == "dual":
        on = checkout.rules_on(decode)
        out |= {name: getattr(decode, name) if on else None for name in checkout.R2_OPTIONS}
    return out


def describe(decode: DecodeConfig) -> str:
    """What the program does under these settings, in words."""
    cache = "no cache" if decode.cache == "none" else f"{decode.cache} cache"
    if decode.factor is not None:
        transfer = f"factor {decode.factor:g}"
    elif decode.threshold is not None:
        transfer = f"threshold {decode.threshold:g}"
    else:
        transfer = f"schedule of {decode.steps or decode.gen_length} steps"
    rules = "R² rules" if checkout.rules_on(decode) else "no R² rules"
    return f"{rules}, {transfer}, {cache}"


@functools.cache  # its config class registers itself with transformers, which takes it once only
def _load(folder: Path) -> SimpleNamespace:
    with checkout.first_on_path(folder, ("generate", "model")):
        import generate  # pyright: ignore[reportMissingImports]
        from model import configuration_llada, modeling_llada  # pyright: ignore[reportMissingImports]

        return SimpleNamespace(
            generate=generate, configuration=configuration_llada, modeling=modeling_llada
        )


def _build(program: SimpleNamespace, config: ModelConfig, weights: dict[str, jax.Array]) -> Any:
    """Its model around our arrays, made without weights of its own (torch's meta device): only the
    parts of our fused matrices are copies, 9.7 GB of LLaDA-8B's 16."""
    import torch  # pyright: ignore[reportMissingImports]

    parts: dict[str, Any] = {}
    for name, array in weights.items():
        parts |= separate(name, torch.from_dlpack(array), config)
    names = hf_names(config.model_type, parts)
    tensors = {names[ours]: tensor.contiguous() for ours, tensor in parts.items()}
    narrow = all(tensor.element_size() == 2 for tensor in tensors.values())
    # As its evaluation sets it; its file falls back where flash-attn is not installed.
    described = program.configuration.LLaDAConfig(**config.to_hf(), flash_attention=narrow)
    described.use_cache = False  # transformers 5 keeps no such key, and its forward asks for it
    inner = program.modeling.create_model_config_from_pretrained_config(described)
    inner.init_device = "meta"
    body = program.modeling.LLaDAModel(inner, init_params=False)
    model = program.modeling.LLaDAModelLM(described, model=body)
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval()


def run(
    path: str,
    config: ModelConfig,
    weights: dict[str, jax.Array],
    decode: DecodeConfig,
    prompt: list[int],
    repeats: int,
) -> dict[str, Any]:
    """Time the program; see `eval.references.time_reference`.

    Raises:
      RuntimeError: it does not end: it may commit the mask token itself (we never do), after which
        it waits for ever for that position. Another seed's weights or prompt will do.
    """
    import torch  # pyright: ignore[reportMissingImports]

    folder = find(path)
    program = _load(folder)
    model = _build(program, config, weights)
    function = getattr(program.generate, FUNCTIONS[decode.cache])
    tokens = torch.tensor([prompt], device=model.device)
    cuda = tokens.is_cuda
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1
        if forwards > decode.gen_length:  # each commits a token
            raise RuntimeError(_ENDLESS)

    def generate(**changes: Any) -> tuple[Any, int]:
        nonlocal forwards
        forwards = 0
        try:
            out, nfe = function(model, tokens, **(arguments(decode, config.mask_id) | changes))
        except IndexError as error:  # a schedule has no entry for one step more
            raise RuntimeError(_ENDLESS) from error
        if cuda:
            torch.cuda.synchronize()
        return out, nfe

    model.register_forward_pre_hook(count)
    # One block loads every kernel that a run needs; a whole run would cost the wait once more.
    block = decode.block_length or decode.gen_length
    steps = (decode.steps or decode.gen_length) * block // decode.gen_length
    generate(gen_length=block, steps=steps)
    last: list[tuple[Any, int]] = []
    seconds = timed(lambda: last.append(generate()), repeats)
    out, nfe = last[-1]
    result = {
        "program": f"{function.__module__}.{function.__name__}",
        "ran": describe(decode),
        "attention": "flash-attn" if model.model.transformer.blocks[0].flash_attn_func else "SDPA",
        "device": torch.cuda.get_device_name(tokens.device) if cuda else "cpu",
        "seconds": seconds,
        "runs": len(last),
        "whole_run": True,
        "nfe": int(nfe),
        "tokens": out[0, len(prompt) :].tolist(),
        "versions": {
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
        "source": checkout.fingerprint(folder, FILES),
    }
    del model  # the caller's next timing gets its memory back
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    return result
