"""`r2jax demo`: a few held-out problems decoded three ways, side by side."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from r2jax import viewer
from r2jax.checkpoint import load, resolve
from r2jax.cli import write_text
from r2jax.clock import Clock, progress
from r2jax.decode_config import DecodeConfig
from r2jax.grading import is_correct
from r2jax.options import PRESETS
from r2jax.text import TextOutput, generate_text, generation_defaults, load_tokenizer

STRATEGIES = {name: PRESETS[name] for name in ("vanilla", "fast_dllm", "r2")}


def demo(checkpoint: str | os.PathLike[str], problems: int, output: str) -> None:
    """Decode held-out problems with vanilla, Fast-dLLM and R²; print answers and a table; draw R²;
    write a page of all three.

    Args:
      checkpoint: as for `r2jax.load`; must hold examples.jsonl ({"question", "answer"} a line).
      problems: how many of them, decoded as one batch.
      output: file of the picture; the page stands beside it, with the ending .html.

    Raises:
      ValueError: no such problems, or a file name that is no picture's.
      OSError: the picture or the page cannot be written.
    """
    picture_path = Path(output)
    if picture_path.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--output must end in .png, .svg or .pdf, got {output!r}")
    if not picture_path.absolute().parent.is_dir():
        raise ValueError(f"--output {output!r}: there is no such directory")
    rows = read_problems(checkpoint, problems)
    defaults = generation_defaults(checkpoint)
    directory = resolve(checkpoint)  # a download shows progress of its own
    with progress(f"loading {checkpoint}"):
        tokenizer, model = load_tokenizer(directory), load(directory)

    results: dict[str, tuple[TextOutput, Clock]] = {}
    questions = [row["question"] for row in rows]
    configs = {name: getattr(DecodeConfig, name)(**defaults) for name in STRATEGIES}
    for name, config in configs.items():
        with progress(f"decoding {len(rows)} problems with {STRATEGIES[name]}") as clock:
            out = generate_text(model, tokenizer, questions, config, trace=True)
        results[name] = out, clock

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 100
    right = {
        name: [is_correct(text, row["answer"]) for text, row in zip(out.texts, rows, strict=True)]
        for name, (out, _) in results.items()
    }
    _print_answers(console, rows, results["r2"][0].texts, right)
    console.print(_table(results, right))
    device, length = jax.devices()[0], DecodeConfig(**defaults).gen_length
    console.print(
        f"One batch of {len(rows)} rows of {length} tokens on {device.device_kind} "
        f"({device.platform}), {model.dtype}. NFE, refreshes and R_total are means a row; seconds "
        "are the batch's, without compiling.",
        soft_wrap=True,
    )
    events = results["r2"][0].counts.actual.total
    # Draw where the rules did most, of the right answers.
    row = max(range(len(rows)), key=lambda i: (right["r2"][i], events[i]))
    page_path = picture_path.with_suffix(".html")
    with progress(f"drawing {output} and {page_path}"):
        # Here, because matplotlib takes a second to import that the answers should not wait for.
        from r2jax import picture

        figure = picture.of_answer(
            results["r2"][0], row, tokenizer, model.config.mask_id, configs["r2"]
        )
        picture.save(figure, picture_path)
        page = viewer.page(
            {STRATEGIES[name]: out for name, (out, _) in results.items()},
            row,
            tokenizer,
            prompt=questions[row],
            configs={STRATEGIES[name]: config for name, config in configs.items()},
            about=f"{checkpoint}, {model.dtype}",
        )
        write_text(page_path, page)
    console.print(
        f"Wrote {escape(output)}: how R² decoded problem {row + 1}, and {escape(str(page_path))}: "
        "the same step by step, beside vanilla and Fast-dLLM (open it in a browser).",
        soft_wrap=True,
    )


def read_problems(source: str | os.PathLike[str], count: int) -> list[dict[str, str]]:
    """The first `count` problems of a checkpoint's examples.jsonl: "question" and "answer" each.

    Raises:
      ValueError: no such checkpoint or file, fewer problems, or a line without both fields.
    """
    path = resolve(source, weights=False) / "examples.jsonl"
    if not path.is_file():
        raise ValueError(
            f"{path.parent} has no examples.jsonl: the demo needs held-out problems, one "
            '{"question": ..., "answer": ...} a line'
        )
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not 1 <= count <= len(lines):
        raise ValueError(f"--problems must be between 1 and {len(lines)}, got {count}")
    rows = []
    for i, line in enumerate(lines[:count], start=1):
        try:
            row = json.loads(line)
            rows.append({field: str(row[field]) for field in ("question", "answer")})
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}, problem {i}: needs the fields question and answer") from None
    return rows


def _print_answers(
    console: Console,
    rows: list[dict[str, str]],
    texts: list[str],
    right: dict[str, list[bool]],
) -> None:
    for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
        marks = ", ".join(
            f"{title} {'[green]right[/]' if right[name][i] else '[red]wrong[/]'}"
            for name, title in STRATEGIES.items()
        )
        console.print(f"[bold]Problem {i + 1}.[/] {escape(row['question'])}", soft_wrap=True)
        console.print(f"[cyan]R² answers:[/] {escape(text.strip())}", soft_wrap=True)
        expected = row["answer"].rpartition("####")[2].strip()
        console.print(f"Expected {escape(expected)}: {marks}\n", soft_wrap=True)


def _table(results: dict[str, tuple[TextOutput, Clock]], right: dict[str, list[bool]]) -> Table:
    table = Table("strategy", box=SIMPLE, pad_edge=False, collapse_padding=True)  # fits 80 columns
    for column in ("NFE", "refreshes", "R_total", "seconds", "speed-up", "compile s", "right"):
        table.add_column(column, justify="right")
    baseline = results["vanilla"][1].running
    for name, (out, clock) in results.items():
        table.add_row(
            STRATEGIES[name],
            f"{out.nfe.mean():.1f}",
            f"{out.refreshes.mean():.1f}",
            f"{out.counts.actual.total.mean():.1f}",
            f"{clock.running:.2f}",
            f"{baseline / clock.running:.1f} x",
            f"{clock.compiling:.1f}",
            f"{sum(right[name])} of {len(right[name])}",
        )
    return table
