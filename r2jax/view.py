"""`r2jax view`: one prompt decoded with several strategies, and the page that plays them."""

from __future__ import annotations

import argparse
import sys

import jax

from r2jax import options, viewer
from r2jax.checkpoint import load, open_checkpoint, resolve
from r2jax.cli import check_output, write_text
from r2jax.clock import progress
from r2jax.generate import check_config, check_prompts
from r2jax.prompts import read_prompts
from r2jax.sharding import check_decode_mesh, check_mesh
from r2jax.text import (
    check_tokenizer,
    encode,
    generate_text,
    generation_defaults,
    load_tokenizer,
)


def view(args: argparse.Namespace) -> None:
    """Run `r2jax view` with parsed options.

    Raises:
      ValueError, OSError: what the user can put right; found before the model is loaded.
    """
    options.check_seed(args.seed)
    check_output(args.output)
    if not args.output.endswith((".html", ".htm")):
        raise ValueError(f"--output must end in .html, got {args.output!r}")
    prompts = read_prompts([args.prompt], [], sys.stdin)
    if len(prompts) > 1:
        raise ValueError(f"a page shows one prompt; standard input holds {len(prompts)}")
    prompt, mesh = prompts[0], options.mesh(args.mesh) if args.mesh else None
    directory = resolve(args.checkpoint)  # a download shows progress of its own
    sizes, defaults = open_checkpoint(directory).config, generation_defaults(directory)
    configs = {}
    for name in dict.fromkeys(args.strategies):
        task = args.task if name == "r2" else None
        own = argparse.Namespace(**{**vars(args), "preset": name, "task": task})
        configs[options.PRESETS[name]] = options.decode_config(own, defaults, sizes.model_type)

    with progress(f"loading {args.checkpoint}"):
        tokenizer = load_tokenizer(directory)
        check_tokenizer(tokenizer, sizes)
        if mesh is not None:
            check_mesh(mesh, sizes)
            check_decode_mesh(mesh)
        ids = encode(tokenizer, [prompt.text], chat=not args.raw, names=[prompt.where])
        for config in configs.values():
            check_config(config, sizes)
            check_prompts(ids, sizes, config.gen_length, [prompt.where])
        model = load(directory, args.dtype, mesh, quantize=args.quantize)
    outputs = {}
    for title, config in configs.items():
        with progress(f"decoding with {title}"):
            outputs[title] = generate_text(
                model,
                tokenizer,
                prompt.text,
                config,
                chat=not args.raw,
                key=jax.random.key(args.seed),
                trace=True,
            )
    about = ", ".join(
        [str(args.checkpoint), args.quantize or str(model.dtype), f"seed {args.seed}"]
    )
    page = viewer.page(outputs, 0, tokenizer, prompt=prompt.text, configs=configs, about=about)
    write_text(args.output, page)
    for title, out in outputs.items():
        print(f"{title}: NFE {out.nfe[0]}, refreshes {out.refreshes[0]}")
    print(f"wrote {args.output}: open it in a browser")
