"""The command line: `r2jax generate` and `r2jax demo` (also `python -m r2jax`)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import r2jax
from r2jax import options
from r2jax.checkpoint import load, open_checkpoint, resolve
from r2jax.cli import Parser
from r2jax.clock import Clock, progress
from r2jax.decode_config import DecodeConfig
from r2jax.generate import check_config, check_prompts
from r2jax.model import Transformer
from r2jax.sharding import make_mesh
from r2jax.text import (
    TextOutput,
    check_tokenizer,
    encode,
    generate_text,
    generation_defaults,
    load_tokenizer,
)

BUNDLED = "llada-gsm-6m"
_PROGRAM_EXAMPLES = """\
examples:
  r2jax generate "What is 12 * 3 + 4?"
  r2jax demo
  r2jax generate --help
"""
_GENERATE_EXAMPLES = """\
examples:
  r2jax generate "What is 12 * 3 + 4?"
  r2jax generate --checkpoint GSAI-ML/LLaDA-8B-Instruct --stop-at-eos "Why is the sky blue?"
  r2jax generate --preset vanilla --gen-length 64 "What is 7 * 8?"
  r2jax generate --temporal-threshold 0.7 --token-cluster none "What is 7 * 8?"
  r2jax generate --prompt-file questions.jsonl --batch-size 16 --json > answers.jsonl
  cat questions.txt | r2jax generate --json -

prompts:
  Each argument is one prompt; "-" (or a pipe and no prompt) reads standard input. A file or
  standard input holds one prompt a line; a line that starts with "{" is a JSON object with the
  prompt in its field "prompt" or "question" (so a prompt may hold line breaks).
"""
_COUNTS = ("confidence", "token", "temporal")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0, 2 for bad input, 130 when interrupted."""
    argv = options.dashes(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except BrokenPipeError:  # the reader of our output (head, say) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"r2jax: error: {error}", file=sys.stderr)
        return 2
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print("r2jax: error: out of memory; a smaller --batch-size, or --mesh", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="r2jax",
        description="Masked-diffusion language models (LLaDA) in JAX, decoded with R²-dLLM.",
        epilog=_PROGRAM_EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"r2jax {r2jax.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    checkpoint: dict[str, Any] = {
        "default": BUNDLED,
        "metavar": "NAME_OR_PATH",
        "help": "a directory, a Hugging Face id or a bundled model [%(default)s]",
    }

    command = commands.add_parser(
        "generate",
        help="answer prompts",
        description="Answer prompts: text and the number of forwards (NFE), or JSON lines.",
        epilog=_GENERATE_EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    command.set_defaults(run=_generate)
    command.add_argument("prompts", nargs="*", metavar="PROMPT", help='"-" is standard input')
    command.add_argument("--checkpoint", **checkpoint)
    command.add_argument(
        "--prompt-file",
        action="append",
        default=[],
        metavar="FILE",
        help="see below; may be repeated",
    )
    command.add_argument("--json", action="store_true", help="one JSON object per prompt")
    command.add_argument(
        "--raw", action="store_true", help="continue the prompt as it is: no chat template"
    )
    command.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="prompts at a time [%(default)s]"
    )
    command.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="of weights and arithmetic [as stored]",
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="INT", help="of sampling [%(default)s]"
    )
    command.add_argument(
        "--mesh",
        metavar="AXIS=N,...",
        help="split over all devices, e.g. data=2,tensor=4; axes: data, fsdp, tensor [one device]",
    )
    options.add_decode_options(command)

    command = commands.add_parser(
        "demo",
        help="compare vanilla, Fast-dLLM and R² on a few problems",
        description="Decode held-out problems of the checkpoint (its examples.jsonl) with\n"
        "vanilla, Fast-dLLM and R²; print answers, NFE and time, and draw one R² trajectory.",
        formatter_class=formatter,
        allow_abbrev=False,
    )
    command.set_defaults(run=_demo)
    command.add_argument("--checkpoint", **checkpoint)
    command.add_argument(
        "--problems", type=int, default=4, metavar="N", help="how many [%(default)s]"
    )
    command.add_argument(
        "--output",
        default="r2jax-demo.png",
        metavar="FILE",
        help="the picture: .png, .svg or .pdf [%(default)s]",
    )
    return parser


def _demo(args: argparse.Namespace) -> None:
    from r2jax.demo import demo

    demo(args.checkpoint, args.problems, args.output)


def _generate(args: argparse.Namespace) -> None:
    # Whatever can be wrong without the model is found before it is loaded.
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    if not 0 <= args.seed < 2**32:
        raise ValueError(f"--seed must be between 0 and 2^32 - 1, got {args.seed}")
    prompts = options.read_prompts(args.prompts, args.prompt_file, sys.stdin)
    config = options.decode_config(args, generation_defaults(args.checkpoint))
    mesh = _mesh(args.mesh) if args.mesh else None
    directory = resolve(args.checkpoint)  # a download shows progress of its own
    with progress(f"loading {args.checkpoint}"):
        tokenizer, sizes = load_tokenizer(directory), open_checkpoint(directory).config
        check_tokenizer(tokenizer, sizes)
        check_config(config, sizes)
        check_prompts(encode(tokenizer, prompts, chat=not args.raw), sizes, config.gen_length)
        model = load(directory, dtype=args.dtype, mesh=mesh)
    for first, out, clock in _batches(model, tokenizer, prompts, config, args):
        for i in range(len(out.texts)):
            prompt = prompts[first + i]
            if args.json:
                print(json.dumps(_record(prompt, out, i, clock, config), ensure_ascii=False))
            else:
                _print_answer(prompt if len(prompts) > 1 else None, out, i, clock)
        sys.stdout.flush()


def _batches(
    model: Transformer,
    tokenizer: Any,
    prompts: list[str],
    config: DecodeConfig,
    args: argparse.Namespace,
) -> Iterator[tuple[int, TextOutput, Clock]]:
    """Index of the first prompt, results and times of each batch."""
    for first in range(0, len(prompts), args.batch_size):
        batch = prompts[first : first + args.batch_size]
        # A row's noise follows from its place in the whole input, whatever the batch size.
        key = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
            jax.random.key(args.seed), np.arange(first, first + len(batch))
        )
        what = f"prompt {first + 1}"
        if len(batch) > 1:
            what = f"prompts {first + 1}-{first + len(batch)}"
        with progress(f"decoding {what} of {len(prompts)}") as clock:
            out = generate_text(model, tokenizer, batch, config, chat=not args.raw, key=key)
        yield first, out, clock


def _mesh(text: str) -> Mesh:
    sizes: dict[str, Any] = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in ("data", "fsdp", "tensor") or not size.isdecimal():
            raise ValueError(
                f"--mesh must be AXIS=N,... with axes data, fsdp and tensor, got {text!r}"
            )
        if axis in sizes:
            raise ValueError(f"--mesh names {axis} twice: {text!r}")
        sizes[axis] = int(size)
    return make_mesh(**sizes)


def _record(
    prompt: str, out: TextOutput, i: int, clock: Clock, config: DecodeConfig
) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "text": out.texts[i],
        "tokens": out.tokens[i],
        "prompt_length": out.prompt_lengths[i],
        "nfe": int(out.nfe[i]),
        "refreshes": int(out.refreshes[i]),
        "counts": {
            kind: {name: int(getattr(getattr(out.counts, kind), name)[i]) for name in _COUNTS}
            for kind in ("actual", "potential")
        },
        "batch": len(out.texts),
        "seconds": round(clock.running, 4),
        "compile_seconds": round(clock.compiling, 4),
        "config": dataclasses.asdict(config),
    }


def _print_answer(prompt: str | None, out: TextOutput, i: int, clock: Clock) -> None:
    if prompt is not None:
        print(f"> {prompt}\n")
    seconds = f"{clock.running:.2f} s"
    if len(out.texts) > 1:
        seconds += f" for the batch of {len(out.texts)}"
    if clock.compiling >= 0.005:
        seconds += f" + {clock.compiling:.2f} s compiling"
    print(
        f"{out.texts[i].strip()}\n\n"
        f"[NFE {out.nfe[i]}, refreshes {out.refreshes[i]}, answer tokens {len(out.tokens[i])}, "
        f"R_total {out.counts.actual.total[i]} (potential {out.counts.potential.total[i]}), "
        f"{seconds}]\n"
    )


if __name__ == "__main__":
    sys.exit(main())
