"""The command line: `r2jax generate`, `r2jax view` and `r2jax demo` (also `python -m r2jax`)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax

import r2jax
from r2jax import options
from r2jax.cli import Parser

BUNDLED = "llada-gsm-6m"
_PROGRAM_EXAMPLES = """\
examples:
  r2jax generate "What is 12 * 3 + 4?"
  r2jax view "What is 12 * 3 + 4?"
  r2jax demo
  r2jax generate --help
"""
_GENERATE_EXAMPLES = """\
examples:
  r2jax generate "What is 12 * 3 + 4?"
  r2jax generate --checkpoint GSAI-ML/LLaDA-8B-Instruct --stop-at-eos "Why is the sky blue?"
  r2jax generate --preset vanilla --gen-length 64 "What is 7 * 8?"
  r2jax generate --temporal-threshold 0.7 --token-cluster none "What is 7 * 8?"
  r2jax generate --prompts-file questions.jsonl --batch-size 64 --output answers.jsonl
  cat questions.txt | r2jax generate --json -

prompts:
  Each argument is one prompt; "-" (or a pipe and no prompt) reads standard input. A file or
  standard input holds one prompt a line; a line that starts with "{" is a JSON object with the
  prompt in its field "prompt" or "question" (so a prompt may hold line breaks); its other fields
  are carried through to --json and --output.

long lists:
  Prompts are grouped by length and decoded in batches, the longest first; results come in the
  input's order. With --output every finished batch is kept in FILE.partial: after a crash or
  Ctrl-C the same command goes on where it stopped (also with another --batch-size or --mesh), and
  FILE appears when it is complete.
"""
_VIEW_EXAMPLES = """\
examples:
  r2jax view "What is 12 * 3 + 4?"
  r2jax view "What is 7 * 8?" --strategies r2 fast_dllm --output trajectory.html
  r2jax view "What is 7 * 8?" --strategies r2 --temporal-threshold 0.7 --gen-length 64
"""


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
        "--prompts-file",
        "--prompt-file",
        action="append",
        default=[],
        metavar="FILE",
        help="see below; may be repeated",
    )
    command.add_argument("--json", action="store_true", help="one JSON object per prompt")
    command.add_argument(
        "--output",
        metavar="FILE",
        help="write JSON lines there, resumable (see below) [standard output]",
    )
    command.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="prompts at a time [%(default)s]"
    )
    options.add_model_options(command)
    options.add_decode_options(command)

    command = commands.add_parser(
        "view",
        help="show step by step how strategies decode an answer, as an HTML page",
        description="Decode one prompt with several strategies and write a page that plays them\n"
        "side by side, forward by forward: one HTML file, to be opened in any browser.",
        epilog=_VIEW_EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    command.set_defaults(run=_view)
    command.add_argument("prompt", metavar="PROMPT", help='"-" is standard input')
    command.add_argument("--checkpoint", **checkpoint)
    command.add_argument(
        "--strategies",
        nargs="+",
        choices=options.PRESETS,
        default=["vanilla", "fast_dllm", "r2"],
        metavar="NAME",
        help=f"of {', '.join(options.PRESETS)} [vanilla fast_dllm r2]; the options below change "
        "all of them",
    )
    command.add_argument(
        "--output",
        default="trajectory.html",
        metavar="FILE",
        help="the page: .html [%(default)s]",
    )
    options.add_model_options(command)
    options.add_decode_options(command, preset=False)

    command = commands.add_parser(
        "demo",
        help="compare vanilla, Fast-dLLM and R² on a few problems",
        description="Decode held-out problems of the checkpoint (its examples.jsonl) with\n"
        "vanilla, Fast-dLLM and R²; print answers, NFE and time, draw one R² trajectory and\n"
        "write a page beside it (.html) that plays all three.",
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


def _view(args: argparse.Namespace) -> None:
    from r2jax.view import view

    view(args)


def _generate(args: argparse.Namespace) -> None:
    from r2jax.answer import answer

    answer(args)


if __name__ == "__main__":
    sys.exit(main())
