"""Time other programs on the same model, prompt and settings as ours, in the same run.

A reference is a checkout that the user names by path. It is imported and run as it is: trusted code
of the user's choice, none of which is in this repository. Each adapter makes the program's own
model class, hands it our weights and calls its own generate function.

  original   GATECH-EIC/R2-dLLM (PyTorch): the path of the checkout; its folder `llada` or `dream`
             runs, by the model
  bonsai     jax-ml/bonsai (JAX): the path of the checkout

The original needs torch (built for the device that JAX runs on) beside us; transformers 5 will do.
It runs on JAX's device, so leave it memory there: JAX takes 75 % of a GPU when it starts, unless
XLA_CLIENT_MEM_FRACTION=0.6 (or so) is in the environment before that; eval.bench sees to it. At
LLaDA-8B's size it needs 9.7 GB for the parts of fused matrices and a few copies of float64 logits,
1.07 GB each at 1056 tokens; bonsai needs another 16 GB of JAX's.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import jax

from eval.references import bonsai, original
from r2jax import DecodeConfig, ModelConfig, Transformer
from r2jax.weights import parameters_of

ADAPTERS: dict[str, ModuleType] = {"original": original, "bonsai": bonsai}


def parse_reference(word: str) -> tuple[str, str]:
    """Name and path of a command line's NAME=PATH.

    Raises:
      ValueError: another form, an unknown name, a path that is not a checkout of the program, or a
        package that it needs is not installed.
    """
    name, _, path = word.partition("=")
    if name not in ADAPTERS or not path:
        raise ValueError(
            f"a reference is NAME=PATH with a NAME of {', '.join(ADAPTERS)}, got {word!r}"
        )
    for package in ADAPTERS[name].PACKAGES:
        if find_spec(package) is None:
            raise ValueError(f"the reference {name!r} needs {package}, which is not installed here")
    ADAPTERS[name].find(path)
    return name, path


def check_reference(name: str, path: str, config: ModelConfig, decode: DecodeConfig) -> None:
    """Refuse, before any work, what the reference cannot do.

    Raises:
      ValueError: the path is not a checkout, or the model or an option is not the program's (all
        named).
    """
    adapter = ADAPTERS[name]
    adapter.find(path, config.model_type)
    wrong = [*adapter.unsupported_model(config), *adapter.unsupported(config, decode)]
    if wrong:
        raise ValueError(f"the reference {name!r} cannot do: {'; '.join(wrong)}")


def time_reference(
    name: str,
    path: str,
    *,
    model: Transformer,
    config: ModelConfig,
    decode: DecodeConfig,
    prompt: Sequence[int],
    repeats: int,
) -> dict[str, Any]:
    """Run a reference program warm and time it.

    Args:
      name: "original" or "bonsai".
      path: of its checkout.
      model: ours, on one device and not quantised; the reference computes with the same weights.
      config: sizes.
      decode: what to run; `check_reference` says what each program can do.
      prompt: token ids.
      repeats: timed runs at most; no further one starts after 5 s of them (`device.timed`).

    Returns:
      "seconds" (median of the timed "runs", after a warm-up), "nfe" (its forwards), "ms_per_nfe",
      "tokens" of the answer, "program" and "ran" (what was run, in words), "whole_run" (False: only
      the first steps were), "attention", "dtype", "device", "versions", "source" (fingerprint of
      the program's files).

    Raises:
      ValueError: as `check_reference`; or the model is quantised or on several devices.
      RuntimeError: the program does not end (see original.py).
    """
    check_reference(name, path, config, decode)
    weights = {name: param.get_value() for name, param in parameters_of(model).items()}
    jax.block_until_ready(weights)
    if any(array.dtype != model.dtype for array in weights.values()):
        raise ValueError("a reference cannot share quantised weights: pass the model before that")
    if any(len(array.sharding.device_set) > 1 for array in weights.values()):
        raise ValueError("a reference runs on one device, and the model lies on several")
    result = ADAPTERS[name].run(path, config, weights, decode, list(prompt), repeats)
    return {
        "dtype": str(model.dtype),
        **result,
        "ms_per_nfe": 1e3 * result["seconds"] / result["nfe"],
    }
