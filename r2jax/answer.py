"""`r2jax generate`: prompts of any number, answered in batches; text or JSON lines come out."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from r2jax import digest, options
from r2jax.batches import Batch, generate_many
from r2jax.checkpoint import load, open_checkpoint, resolve
from r2jax.cli import check_output
from r2jax.clock import Meter, progress
from r2jax.decode_config import DecodeConfig
from r2jax.generate import check_config, check_prompts
from r2jax.journal import Journal
from r2jax.model import Transformer
from r2jax.prompts import Prompt, read_prompts
from r2jax.sharding import check_decode_mesh, check_mesh
from r2jax.text import (
    check_tokenizer,
    decode_answers,
    encode,
    generation_defaults,
    load_tokenizer,
    with_ends,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_COUNTS = ("confidence", "token", "temporal")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A checked list of prompts, and what is needed to answer it but the model."""

    prompts: list[Prompt]
    rows: list[np.ndarray]
    """Their token ids."""
    tokenizer: PreTrainedTokenizerFast
    config: DecodeConfig
    """As asked for."""
    stopping: DecodeConfig
    """The same with its EOS filled in."""
    ends: frozenset[int]
    """Token ids that end an answer."""


def answer(args: argparse.Namespace) -> None:
    """Run `r2jax generate` with parsed options.

    Raises:
      ValueError, OSError: what the user can put right; found before the model is loaded.
    """
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    options.check_seed(args.seed)
    check_output(args.output)
    prompts = read_prompts(args.prompts, args.prompts_file, sys.stdin)
    defaults, family = generation_defaults(args.checkpoint), "llada"
    if args.task is not None:
        family = open_checkpoint(resolve(args.checkpoint)).config.model_type
    config = options.decode_config(args, defaults, family)
    mesh = options.mesh(args.mesh) if args.mesh else None
    directory = resolve(args.checkpoint)  # a download shows progress of its own

    with contextlib.ExitStack() as stack:
        journal = model = None
        with progress(f"loading {args.checkpoint}"):
            job = _job(prompts, config, directory, mesh, chat=not args.raw)
            if args.output is not None:
                settings = _settings(args, job, directory)
                journal = stack.enter_context(Journal(args.output, settings, len(prompts)))
            if journal is None or len(journal.done) < len(prompts):
                model = load(directory, args.dtype, mesh, quantize=args.quantize)
        if model is not None:
            _decode(model, job, journal, args)
        if journal is not None:
            journal.finish()
            print(f"wrote {args.output}", file=sys.stderr)


def _job(
    prompts: list[Prompt], config: DecodeConfig, directory: Path, mesh: Mesh | None, *, chat: bool
) -> Job:
    """Check everything that does not need the weights, and tokenize."""
    tokenizer, sizes = load_tokenizer(directory), open_checkpoint(directory).config
    check_tokenizer(tokenizer, sizes)
    check_config(config, sizes)
    if mesh is not None:
        check_mesh(mesh, sizes)
        check_decode_mesh(mesh)
    names = [prompt.where for prompt in prompts]
    ids = encode(tokenizer, [prompt.text for prompt in prompts], chat=chat, names=names)
    stopping, ends = with_ends(config, tokenizer, sizes, chat=chat)
    return Job(
        prompts=prompts,
        rows=check_prompts(ids, sizes, config.gen_length, names),
        tokenizer=tokenizer,
        config=config,
        stopping=stopping,
        ends=ends,
    )


def _settings(args: argparse.Namespace, job: Job, directory: Path) -> dict[str, Any]:
    """What shapes the records, for the journal. Batch size and mesh shape only the speed."""
    from r2jax import __version__

    return {
        "r2jax": __version__,
        "checkpoint": digest.of_checkpoint(directory),
        "dtype": args.dtype,
        "quantize": args.quantize,
        "decode": dataclasses.asdict(job.stopping),
        "seed": args.seed,
        "raw": args.raw,
        "prompts": digest.of_json([[prompt.text, prompt.fields] for prompt in job.prompts]),
    }


def _decode(
    model: Transformer, job: Job, journal: Journal | None, args: argparse.Namespace
) -> None:
    """Answer what the journal does not hold yet, into it; or, without one, all to stdout."""
    done = frozenset(journal.done if journal else ())
    total = len(job.prompts)
    batches = generate_many(
        model,
        job.rows,
        job.stopping,
        batch_size=args.batch_size,
        key=jax.random.key(args.seed),
        skip=done,
    )
    printer = _Printer(total, as_json=args.json)
    what = f"decoding {total} prompt{'s'[: total > 1]}"
    if done:
        what += f" ({len(done)} are done)"
    with _said_what_is_kept(journal), Meter(what, total, len(done)) as meter:
        for batch in batches:
            records = _records(batch, job)
            if journal is not None:
                journal.append(records)
            meter.add(
                prompts=len(records),
                tokens=sum(len(record["tokens"]) for record in records.values()),
                nfe=int(batch.output.nfe.sum()),
                seconds=batch.seconds,
                compiling=batch.compile_seconds,
            )
            if journal is None:
                with meter.hidden():
                    printer.add(batch, records)


@contextlib.contextmanager
def _said_what_is_kept(journal: Journal | None) -> Iterator[None]:
    """When a run breaks off, say that it can go on."""
    try:
        yield
    except BaseException:
        if journal is not None:
            print(
                f"{len(journal.done)} of {journal.count} prompts are kept in {journal.partial}; "
                "the same command goes on from there",
                file=sys.stderr,
            )
        raise


def _records(batch: Batch, job: Job) -> dict[int, dict[str, Any]]:
    """What is kept of each answer, by the prompt's index: a function of the prompt and settings."""
    out = batch.output
    texts, tokens = decode_answers(job.tokenizer, np.asarray(out.tokens), job.ends)
    return {
        index: {
            "prompt": job.prompts[index].text,
            **job.prompts[index].fields,
            "text": texts[i],
            "tokens": tokens[i],
            "prompt_length": len(job.rows[index]),
            "nfe": int(out.nfe[i]),
            "refreshes": int(out.refreshes[i]),
            "counts": {
                kind: {name: int(getattr(getattr(out.counts, kind), name)[i]) for name in _COUNTS}
                for kind in ("actual", "potential")
            },
            "config": dataclasses.asdict(job.config),
        }
        for i, index in enumerate(batch.indices)
    }


class _Printer:
    """Answers to stdout in the order of their prompts, each as soon as all before it are there."""

    def __init__(self, total: int, *, as_json: bool) -> None:
        self._total, self._as_json = total, as_json
        self._waiting: dict[int, tuple[dict[str, Any], Batch]] = {}
        self._next = 0

    def add(self, batch: Batch, records: dict[int, dict[str, Any]]) -> None:
        self._waiting |= {index: (record, batch) for index, record in records.items()}
        while self._next in self._waiting:
            record, batch = self._waiting.pop(self._next)
            print(_json(record, batch) if self._as_json else self._text(record, batch))
            self._next += 1
        sys.stdout.flush()

    def _text(self, record: dict[str, Any], batch: Batch) -> str:
        prompt = f"> {record['prompt']}\n\n" if self._total > 1 else ""
        seconds = f"{batch.seconds:.2f} s"
        if len(batch.indices) > 1:
            seconds += f" for the batch of {len(batch.indices)}"
        if batch.compile_seconds >= 0.005:
            seconds += f" + {batch.compile_seconds:.2f} s compiling"
        actual, potential = (sum(counts.values()) for counts in record["counts"].values())
        return (
            f"{prompt}{record['text'].strip()}\n\n"
            f"[NFE {record['nfe']}, refreshes {record['refreshes']}, "
            f"answer tokens {len(record['tokens'])}, "
            f"R_total {actual} (potential {potential}), {seconds}]\n"
        )


def _json(record: dict[str, Any], batch: Batch) -> str:
    times = {
        "batch": len(batch.indices),
        "seconds": round(batch.seconds, 4),
        "compile_seconds": round(batch.compile_seconds, 4),
    }
    return json.dumps({**record, **times}, ensure_ascii=False)
