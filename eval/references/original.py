"""The original R²-dLLM (GATECH-EIC/R2-dLLM, PyTorch), with our weights through DLPack.

Its programs for LLaDA and Dream are two, in a folder each; the model says which one runs.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax

from eval.device import timed
from eval.references import checkout, original_dream, original_llada
from r2jax import DecodeConfig, ModelConfig
from r2jax.fuse import separate
from r2jax.hf import hf_names

PACKAGES = ("torch", "transformers")
PROGRAMS: dict[str, ModuleType] = {"llada": original_llada, "Dream": original_dream}
_ENDLESS = "the original program does not end here: it predicts the mask token (take another seed)"


def find(path: str, model_type: str | None = None) -> Path:
    """The folder of the program for a model: `path`, or `llada` or `dream` in it.

    Args:
      path: of the checkout.
      model_type: None: of the first program that is there.

    Raises:
      ValueError: neither holds its files.
    """
    wrong = []
    for program in PROGRAMS.values() if model_type is None else [PROGRAMS[model_type]]:
        inner = Path(path) / program.FOLDER
        inside = str(inner) if inner.is_dir() else path
        try:
            return checkout.find(inside, program.FILES, f"R2-dLLM (its {program.FOLDER})")
        except ValueError as error:
            wrong.append(error)
    raise wrong[0]


def unsupported_model(config: ModelConfig) -> list[str]:
    """Models that its classes cannot be, in words."""
    try:
        config.to_hf()
    except ValueError as error:
        return [str(error)]
    return []


def unsupported(config: ModelConfig, decode: DecodeConfig) -> list[str]:
    """Options that its functions do not have, in words."""
    return PROGRAMS[config.model_type].unsupported(decode)


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
def _load(model_type: str, folder: Path) -> SimpleNamespace:
    with checkout.first_on_path(folder, ("generate", "model")):
        return PROGRAMS[model_type].load()


def _tensors(config: ModelConfig, weights: dict[str, jax.Array]) -> dict[str, Any]:
    """Our arrays under its names: only the parts of our fused matrices are copies, 9.7 GB of
    LLaDA-8B's 16."""
    import torch  # pyright: ignore[reportMissingImports]

    parts: dict[str, Any] = {}
    for name, array in weights.items():
        parts |= separate(name, torch.from_dlpack(array), config)
    names = hf_names(config.model_type, parts)
    return {names[ours]: tensor.contiguous() for ours, tensor in parts.items()}


def run(
    path: str,
    config: ModelConfig,
    weights: dict[str, jax.Array],
    decode: DecodeConfig,
    prompt: list[int],
    repeats: int,
) -> dict[str, Any]:
    """Time the program; see `eval.references.time_reference`. "nfe" is its forwards, refreshes
    among them (Dream's own count leaves those out).

    Raises:
      RuntimeError: it does not end: it may commit the mask token itself (we never do), after which
        it waits for ever for that position. Another seed's weights or prompt will do.
    """
    import torch  # pyright: ignore[reportMissingImports]

    adapter, folder = PROGRAMS[config.model_type], find(path, config.model_type)
    program = _load(config.model_type, folder)
    model = adapter.build(program, config, _tensors(config, weights))
    name, function = adapter.generator(program, model, config, decode)
    tokens = torch.tensor([prompt], device=model.device)
    cuda = tokens.is_cuda
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1
        # Each commits a token, but for one idle call a block at most.
        if forwards > 2 * decode.gen_length:
            raise RuntimeError(_ENDLESS)

    def generate(**changes: Any) -> tuple[Any, int]:
        nonlocal forwards
        forwards = 0
        try:
            with contextlib.redirect_stdout(sys.stderr):  # it reports its steps
                out = function(tokens, **changes)
        except IndexError as error:  # a schedule has no entry for one step more
            raise RuntimeError(_ENDLESS) from error
        if cuda:
            torch.cuda.synchronize()
        return out, forwards

    model.register_forward_pre_hook(count)
    # One block loads every kernel that a run needs; a whole run would cost the wait once more.
    block = decode.block_length or decode.gen_length
    steps = (decode.steps or decode.gen_length) * block // decode.gen_length
    generate(gen_length=block, steps=steps)
    last: list[tuple[Any, int]] = []
    seconds = timed(lambda: last.append(generate()), repeats)
    out, nfe = last[-1]
    result = {
        "program": name,
        "ran": describe(decode),
        "attention": adapter.attention(model),
        "device": torch.cuda.get_device_name(tokens.device) if cuda else "cpu",
        "seconds": seconds,
        "runs": len(last),
        "whole_run": True,
        "nfe": nfe,
        "tokens": out[0, len(prompt) :].tolist(),
        "versions": {
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
        "source": checkout.fingerprint(folder, adapter.FILES),
    }
    del model  # the caller's next timing gets its memory back
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    return result
