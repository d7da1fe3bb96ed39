"""Command-line options that several programs have: `DecodeConfig`'s, what decodes, the mesh."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import typing
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from r2jax.decode_config import DecodeConfig, Task
from r2jax.quantize import Quantization
from r2jax.sharding import MESH_AXES, make_mesh

PRESETS = {
    "r2": "R²",
    "fast_dllm": "Fast-dLLM",
    "vanilla": "vanilla",
    "streaming": "Streaming-dLLM",
    "local_leap": "LocalLeap",
}


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What decodes and how its prompts are read: `--raw`, `--dtype`, `--quantize`, `--seed` and
    `--mesh`."""
    parser.add_argument(
        "--raw", action="store_true", help="continue the prompt as it is: no chat template"
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="of weights and arithmetic [as stored]",
    )
    parser.add_argument(
        "--quantize",
        choices=typing.get_args(Quantization),
        help="the layers' projections in 8 bits [as stored]",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="INT", help="of sampling [%(default)s]"
    )
    parser.add_argument(
        "--mesh",
        metavar="data=N,tensor=N",
        help="split over all devices: rows over data, weights over tensor [one device]",
    )


def check_seed(seed: int) -> None:
    """Refuse what is no seed of a JAX key."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed must be between 0 and 2^32 - 1, got {seed}")


def add_decode_options(parser: argparse.ArgumentParser, *, preset: bool = True) -> None:
    """`--preset` (if asked for), `--task`, and one option per field of `DecodeConfig`, so that the
    two cannot drift apart.

    Values are only turned into Python here; `DecodeConfig` judges them, with its own messages.
    """
    group = parser.add_argument_group(
        "decoding",
        "Every option of r2jax.DecodeConfig by its name; 'none' switches a rule off. Defaults are\n"
        "the checkpoint's generation_config.json, then the preset's ([r2's] are shown).",
    )
    if preset:
        group.add_argument(
            "--preset",
            choices=PRESETS,
            default="r2",
            help="R²-dLLM (default), Fast-dLLM, LLaDA's own sampler, Streaming-dLLM or LocalLeap; "
            "the options below change it",
        )
    group.add_argument(
        "--task",
        choices=typing.get_args(Task),
        help="with r2 alone: the paper's thresholds for this task and the checkpoint's family "
        "(Table 8)",
    )
    add_fields(group)


def add_fields(group: argparse._ActionsContainer) -> None:
    """One option per field of `DecodeConfig`, without `--preset` and `--task`."""
    hints, texts = typing.get_type_hints(DecodeConfig), _field_docstrings()
    for field in dataclasses.fields(DecodeConfig):
        hint = hints[field.name]
        text = texts.get(field.name, "").replace("%", "%%")
        default = "none" if field.default is None else str(field.default).lower()
        arguments: dict[str, Any] = {
            "default": argparse.SUPPRESS,
            "help": f"{text} [{default}]".strip(),
        }
        if hint is bool:
            arguments["action"] = argparse.BooleanOptionalAction
        else:
            keep_none = "none" in _choices(hint)  # a choice of that name, not None
            arguments["type"] = lambda text, keep_none=keep_none: _value(text, keep_none)
            arguments["metavar"] = _metavar(hint)
        group.add_argument(f"--{field.name.replace('_', '-')}", **arguments)


def decode_config(
    args: argparse.Namespace, defaults: dict[str, Any], model_type: str = "llada"
) -> DecodeConfig:
    """The configuration that the options ask for.

    Args:
      args: parsed with `add_decode_options`.
      defaults: the checkpoint's, from `generation_defaults`; options win.
      model_type: the checkpoint's, which `--task` depends on.

    Raises:
      ValueError: from `DecodeConfig`; `--task` with a preset that is not R²'s.
    """
    chosen = chosen_fields(args)
    if args.task is not None:
        if args.preset != "r2":
            raise ValueError(
                f"--task sets thresholds of R²'s rules: it needs --preset r2, got {args.preset}"
            )
        chosen |= {"task": args.task, "model_type": model_type}
    return getattr(DecodeConfig, args.preset)(**{**defaults, **chosen})


def chosen_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `DecodeConfig` that the command line names."""
    names = [field.name for field in dataclasses.fields(DecodeConfig)]
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def mesh(text: str) -> Mesh:
    """The mesh that "data=4" or "data=2,tensor=2" names, over all devices.

    Raises:
      ValueError: another axis, no number, or not as many places as devices.
    """
    sizes: dict[str, Any] = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in MESH_AXES or not size.isdecimal():
            raise ValueError(
                f"--mesh must be AXIS=N,... with axes data, fsdp and tensor, got {text!r}"
            )
        if axis in sizes:
            raise ValueError(f"--mesh names {axis} twice: {text!r}")
        sizes[axis] = int(size)
    return make_mesh(**sizes)


def dashes(argv: Sequence[str]) -> list[str]:
    """Options may be written as in Python: --gen_length is --gen-length. Prompts stay as is."""
    out = list(argv)
    for i, word in enumerate(argv):
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            if " " not in name:
                out[i] = name.replace("_", "-") + equals + value
    return out


def _value(text: str, keep_none: bool) -> Any:
    """A Python value: none, a number, numbers joined by commas, or the text itself."""
    if text.lower() == "none" and not keep_none:
        return None
    if "," in text:
        return tuple(_value(part, keep_none) for part in text.split(","))
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def _choices(hint: Any) -> tuple[Any, ...]:
    """The values that a type hint lists: of Literal["a", "b"] | None, "a" and "b"."""
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    return tuple(choice for part in typing.get_args(hint) for choice in _choices(part))


def _metavar(hint: Any) -> str:
    parts = typing.get_args(hint) or (hint,)
    choices = _choices(hint)
    names = list(choices) or [
        {int: "INT", float: "NUMBER"}.get(part, "INT,...")
        for part in parts
        if part is not type(None)
    ]
    return "|".join(names + ["none"] * (type(None) in parts))


def _field_docstrings() -> dict[str, str]:
    """The strings under the fields of `DecodeConfig`, which document them in one place."""
    (body,) = ast.parse(inspect.getsource(DecodeConfig)).body
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name) and isinstance(text.value, ast.Constant)
            texts[field.target.id] = " ".join(str(text.value.value).split())
    return texts
