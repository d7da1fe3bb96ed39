"""What 8-bit weights cost in quality: `python -m eval.quantization`.

Compares the predictions of a model in fp8 and in int8 with those in its own dtype, on the same
input, in the answer's current block:

  first refresh   every position of the answer masked
  half-way        the model's own decoding (R2-dLLM's rules), within the answer's middle block

Per kind and input: the mean Kullback-Leibler divergence KL(own || quantised) in nats a position
(float32 softmax), the share of positions with the same top-1 token, and the mean absolute change of
the top-1 probability, which is what the decode rules compare with their thresholds. Only masked
positions count.

  python -m eval.quantization --checkpoint llada-gsm-6m --problems problems.jsonl
  python -m eval.quantization --size llada-8b --dtype bfloat16 --output out.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Table

import r2jax
from eval.device import describe
from eval.local_data import read_problems
from eval.random_model import SIZES, random_model
from r2jax.cli import Parser, check_output, run, write_json
from r2jax.family import family_of
from r2jax.quantize import Quantization
from r2jax.text import encode


class Passes(NamedTuple):
    """Full passes to compare: rows [prompt | answer | padding]."""

    tokens: Int[np.ndarray, "B T"]
    lengths: Int[np.ndarray, " B"]
    columns: Int[np.ndarray, "B S"]
    """Of the current block."""


def passes(
    prompts: list[np.ndarray],
    answers: Int[np.ndarray, "B G"],
    block: int,
    model: r2jax.ModelConfig,
) -> Passes:
    """The passes over prompts and half-made answers; a block is current if it holds the first
    mask."""
    lengths = np.array([len(p) + answers.shape[1] for p in prompts], np.int32)
    tokens = np.full((len(prompts), lengths.max()), model.pad_id, np.int32)
    columns = np.empty((len(prompts), block), np.int32)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens[row, : lengths[row]] = np.concatenate([prompt, answer])
        first = int(np.argmax(answer == model.mask_id)) // block * block
        columns[row] = len(prompt) + first + np.arange(block)
    return Passes(tokens, lengths, columns)


def half_way(states: Int[np.ndarray, "B K G"], block: int, mask_id: int) -> Int[np.ndarray, "B G"]:
    """Of each row's states (-1 where unused), the last with half of the middle block masked."""
    length = states.shape[-1]
    wanted = length - length // block // 2 * block - block // 2
    masked = (states == mask_id).sum(-1)  # falls from state to state, 0 in unused ones
    last = (masked >= max(wanted, 1)).sum(-1) - 1
    return np.take_along_axis(states, last[:, None, None], axis=1)[:, 0]


@jax.jit
def _block_logits(model: r2jax.Transformer, given: Passes) -> Float[jax.Array, "B S V"]:
    tokens = jnp.asarray(given.tokens)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = model.hidden(tokens, positions, jnp.asarray(given.lengths))
    predicting = jnp.asarray(given.columns) - int(family_of(model.config).shift)
    hidden = jnp.take_along_axis(hidden, predicting[..., None], axis=1)
    return model.logits(hidden).astype(jnp.float32)


@jax.jit
def _differences(
    a: Float[jax.Array, "B S V"], b: Float[jax.Array, "B S V"]
) -> dict[str, Float[jax.Array, "B S"]]:
    """Of b from a, at every position."""
    log_p, log_q = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    return {
        "mean_kl": jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1),
        "top1_agreement": (jnp.argmax(a, -1) == jnp.argmax(b, -1)).astype(jnp.float32),
        "mean_confidence_change": jnp.abs(jnp.exp(log_p.max(-1)) - jnp.exp(log_q.max(-1))),
    }


def compare(
    own: Float[np.ndarray, "B S V"], narrow: Float[np.ndarray, "B S V"], given: Passes, mask_id: int
) -> dict[str, Any]:
    """The differences of a quantised model's logits, averaged over the masked positions."""
    masked = np.take_along_axis(given.tokens, given.columns, axis=1) == mask_id
    found = {k: float(np.asarray(v)[masked].mean()) for k, v in _differences(own, narrow).items()}
    return {**found, "positions": int(masked.sum())}


def measure(
    model: r2jax.Transformer,
    quantised: Callable[[Quantization], r2jax.Transformer],
    prompts: list[np.ndarray],
    config: r2jax.DecodeConfig,
) -> list[dict[str, Any]]:
    """Every kind of 8-bit weights on both inputs.

    Args:
      model: in its own dtype.
      quantised: gives the same model in 8 bits; one at a time is held.
      prompts: token ids.
      config: how the model itself decodes, and the sizes of answer and block.
    """
    mask_id = model.config.mask_id
    block = config.block_length or config.gen_length
    states = np.asarray(r2jax.generate(model, prompts, config, trace=True).states)
    inputs = {"first refresh": states[:, 0], "half-way": half_way(states, block, mask_id)}
    given = {
        name: passes(prompts, answers, block, model.config) for name, answers in inputs.items()
    }
    own = {name: np.asarray(_block_logits(model, it)) for name, it in given.items()}
    rows = []
    for kind in get_args(Quantization):
        narrow = quantised(kind)
        for name, it in given.items():
            found = compare(own[name], np.asarray(_block_logits(narrow, it)), it, mask_id)
            rows.append({"quantize": kind, "input": name, **found})
        del narrow  # before the next one is made
    return rows


def _prompts(args: argparse.Namespace, model: r2jax.ModelConfig) -> list[np.ndarray]:
    if not args.problems:
        shape = (args.prompts, args.prompt_length)
        ids = np.random.default_rng(args.seed).integers(model.vocab_size - 1, size=shape)
        rows = list(ids + (ids >= model.mask_id))  # any token but the mask
    else:
        questions = [p["question"] for p in read_problems(args.problems)[: args.prompts]]
        rows = encode(r2jax.load_tokenizer(args.checkpoint), questions)
    return [np.asarray(row, np.int32) for row in rows]


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(
        prog="python -m eval.quantization",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--checkpoint", help="path, hub id or bundled name")
    which.add_argument("--size", choices=SIZES, help="random weights")
    parser.add_argument("--problems", help="JSONL with question and answer [random prompts]")
    parser.add_argument("--prompts", type=int, default=8, help="how many [8]")
    parser.add_argument("--prompt-length", type=int, default=100, help="of random prompts [100]")
    parser.add_argument("--gen-length", type=int, help="default: the checkpoint's, else 256")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float32"], help="default: as stored; --size: bfloat16"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and prompts [0]")
    parser.add_argument("--output", help="JSON")
    args = parser.parse_args(argv)
    if args.prompts < 1 or args.prompt_length < 1:
        raise ValueError("--prompts and --prompt-length must be at least 1")
    if args.problems and args.size:
        raise ValueError("--problems needs --checkpoint: random weights have no tokenizer")
    check_output(args.output)
    defaults = r2jax.generation_defaults(args.checkpoint) if args.checkpoint else {}
    if args.gen_length is not None:
        defaults["gen_length"] = args.gen_length
    config = r2jax.DecodeConfig(**defaults)

    def make(kind: Quantization | None) -> r2jax.Transformer:
        if args.checkpoint:
            return r2jax.load(args.checkpoint, args.dtype, quantize=kind)
        return random_model(SIZES[args.size], args.dtype or "bfloat16", args.seed, quantize=kind)

    model = make(None)
    rows = measure(model, make, _prompts(args, model.config), config)
    table = Table("weights", "input", "mean KL", "top-1 agrees %", "|d confidence|", "positions")
    for row in rows:
        table.add_row(
            row["quantize"],
            row["input"],
            f"{row['mean_kl']:.2e}",
            f"{100 * row['top1_agreement']:.2f}",
            f"{row['mean_confidence_change']:.2e}",
            str(row["positions"]),
        )
    Console(width=100).print(table)
    settings = {**vars(args), "dtype": str(model.dtype), "config": vars(config)}
    write_json(args.output, {"settings": settings, **describe(), "results": rows})


if __name__ == "__main__":
    sys.exit(run("python -m eval.quantization", main))
