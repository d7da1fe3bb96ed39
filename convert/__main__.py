"""Convert checkpoints: `python -m convert {from-hf,to-hf,verify} --help`."""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from collections.abc import Sequence
from typing import get_args

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from convert.verify import verify
from r2jax.checkpoint import CheckpointError, Kind, open_checkpoint, quantized, resolve, write
from r2jax.cli import Parser, run
from r2jax.quantize import Quantization

_SOURCE = "a directory, a Hugging Face id (owner/name) or the name of a bundled model"
_FROM_HF = f"""\
Write a Hugging Face checkpoint (safetensors) as a converted directory:

  DST/config.json, tokenizer files, ...   byte for byte as in SRC
  DST/params/                             the parameters, an orbax checkpoint

SRC is {_SOURCE}.
Tensors keep their bytes and are copied one at a time, so memory stays at about the largest tensor.
DST appears when it is complete, or not at all. Pickled weights (*.bin, *.pt) are refused.

--quantize stores the layers' projections in 8 bits with a float32 scale for each output row, half
the size of bfloat16; embedding, norms and head keep their bytes. `r2jax.load` recognises such a
DST; it cannot be turned back into the original.

  python -m convert from-hf GSAI-ML/LLaDA-8B-Instruct llada-8b
  python -m convert from-hf GSAI-ML/LLaDA-8B-Instruct llada-8b-fp8 --quantize fp8
  python -m convert from-hf Dream-org/Dream-v0-Instruct-7B dream-7b
"""
_TO_HF = """\
Write a converted directory as a Hugging Face checkpoint: safetensors files (with their index if
there are several), config.json and every other file as they were.

  python -m convert to-hf llada-8b llada-8b-hf

Tensors keep their bytes and are copied one at a time, so memory stays at about the largest tensor.
DST appears when it is complete, or not at all. How tensors are split into files may differ from the
checkpoint that SRC was made from. A quantised SRC is refused.
"""
_VERIFY = f"""\
Run the same tokens through two checkpoints in the same dtype and print

  max |d logit|   the largest difference of a logit
  mean KL         Kullback-Leibler divergence of B's prediction from A's, nats a position
  arg-max         share of positions where both predict the same token

A and B are each {_SOURCE},
in either layout. One model is in memory at a time. The tokens are random ids from --seed, half of
them replaced by the mask token (as in decoding), or --text. The exit status is 1 if max |d logit|
exceeds --tolerance. A conversion changes no byte, so the default allows no difference; where either
is quantised, the numbers say what that costs, and only a NaN fails.

  python -m convert verify GSAI-ML/LLaDA-8B-Instruct llada-8b
"""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m convert", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    for name, text, summary in (
        ("from-hf", _FROM_HF, "Hugging Face safetensors -> converted directory (orbax)"),
        ("to-hf", _TO_HF, "converted directory (orbax) -> Hugging Face safetensors"),
    ):
        command = add(name, text, summary)
        command.add_argument("src", metavar="SRC", help="the checkpoint to read")
        command.add_argument("dst", metavar="DST", help="the directory to make")
        command.add_argument(
            "--force",
            action="store_true",
            help="replace a checkpoint that stands at DST, once the new one is complete",
        )
        if name == "from-hf":
            command.add_argument(
                "--quantize",
                choices=get_args(Quantization),
                help="store the layers' projections in 8 bits (default: as they are)",
            )
        else:
            command.add_argument(
                "--max-shard-size",
                default="5GB",
                metavar="SIZE",
                help="start a new file beyond this size, such as 500MB (default: %(default)s)",
            )
    command = add("verify", _VERIFY, "compare two checkpoints' logits")
    command.add_argument("a", metavar="A", help="the reference")
    command.add_argument("b", metavar="B", help="the checkpoint compared with it")
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="compute in this dtype (default: the one A is stored in)",
    )
    command.add_argument("--text", help="tokens of this text, with the tokenizer of A")
    command.add_argument(
        "--seed", type=int, default=0, help="of the random ids (default: %(default)s)"
    )
    command.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="largest difference of a logit that is accepted (default: 0; any where one is "
        "quantised)",
    )
    return parser


def _convert(
    src: str,
    dst: str,
    *,
    kind: Kind,
    force: bool,
    max_shard_size: int | str = "5GB",
    quantize: Quantization | None = None,
) -> None:
    """Copy SRC to DST in the other layout, with a progress bar."""
    directory = resolve(src)
    checkpoint = open_checkpoint(directory)
    if checkpoint.kind == kind:
        names = {"hf": "a Hugging Face checkpoint", "converted": "a converted directory"}
        raise CheckpointError(f"{directory} is {names[kind]} already")
    if quantize:
        checkpoint = quantized(checkpoint, quantize)
    for name in checkpoint.skipped:
        print(f"left out {name}: a buffer that is computed from config.json", file=sys.stderr)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    start = time.monotonic()
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("tensors", total=checkpoint.nbytes)
        write(
            checkpoint,
            kind,
            dst,
            max_shard_size=max_shard_size,
            force=force,
            progress=lambda num_bytes: bar.advance(task, num_bytes),
        )
    print(
        f"{dst}: {len(checkpoint.tensors)} tensors, {checkpoint.nbytes:,} bytes, and "
        f"{', '.join(checkpoint.files)}, in {time.monotonic() - start:.1f} s"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 (verify: they differ) or 2 (an error)."""
    args = _parser().parse_args(argv)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs at length what it raises too

    def command() -> int:
        if args.command == "from-hf":
            _convert(args.src, args.dst, kind="converted", force=args.force, quantize=args.quantize)
        elif args.command == "to-hf":
            size = args.max_shard_size
            _convert(args.src, args.dst, kind="hf", force=args.force, max_shard_size=size)
        else:
            result = verify(args.a, args.b, dtype=args.dtype, text=args.text, seed=args.seed)
            print(result)
            tolerance = args.tolerance
            if tolerance is None:
                tolerance = math.inf if result.quantized else 0.0
            return int(not result.max_difference <= tolerance)  # a NaN is beyond any tolerance
        return 0

    return run("python -m convert", command)


if __name__ == "__main__":
    sys.exit(main())
