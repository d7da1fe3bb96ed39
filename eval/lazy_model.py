"""A checkpoint that is checked at once and loaded when it is first needed."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.sharding import Mesh

from r2jax import digest
from r2jax.checkpoint import load, open_checkpoint, resolve, stored_dtype
from r2jax.clock import progress
from r2jax.model import Transformer
from r2jax.quantize import Quantization
from r2jax.sharding import check_decode_mesh, check_mesh
from r2jax.text import check_tokenizer, generation_defaults, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class LazyModel:
    """Configuration and tokenizer of a checkpoint, and its weights once asked for."""

    def __init__(
        self,
        checkpoint: str,
        *,
        dtype: str | None = None,
        quantize: Quantization | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        """Args: as for `r2jax.load`.

        Raises:
          ValueError, OSError: whatever can be seen to be wrong without the weights.
        """
        self.name = checkpoint
        self.directory = resolve(checkpoint)
        stored = open_checkpoint(self.directory)
        self.config = stored.config
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(self.directory)
        check_tokenizer(self.tokenizer, self.config)
        if mesh is not None:
            check_mesh(mesh, self.config)
            check_decode_mesh(mesh)
        self.dtype = str(np.dtype(dtype) if dtype else stored_dtype(stored, checkpoint))
        self.defaults: dict[str, Any] = generation_defaults(self.directory)
        self.quantize = quantize or stored.quantized
        self._arguments = {"dtype": dtype, "mesh": mesh, "quantize": quantize}

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of configuration, tokenizer and weights."""
        return digest.of_checkpoint(self.directory)

    @functools.cached_property
    def model(self) -> Transformer:
        """The model itself."""
        with progress(f"loading {self.name}"):
            return load(self.directory, **self._arguments)
