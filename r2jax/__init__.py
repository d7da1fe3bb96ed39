"""R²-dLLM in JAX: masked-diffusion language models decoded by one jitted program."""

from r2jax.batches import Batch, generate_many
from r2jax.checkpoint import load, save, save_hf
from r2jax.config import ModelConfig
from r2jax.decode import DecodeOutput, decode
from r2jax.decode_config import DecodeConfig
from r2jax.denoise import Counts, RuleCounts
from r2jax.generate import generate
from r2jax.journal import Journal
from r2jax.model import Transformer
from r2jax.sharding import make_mesh
from r2jax.tensors import CheckpointError
from r2jax.text import TextOutput, generate_text, generation_defaults, load_tokenizer

__all__ = [
    "Batch",
    "CheckpointError",
    "Counts",
    "DecodeConfig",
    "DecodeOutput",
    "Journal",
    "ModelConfig",
    "RuleCounts",
    "TextOutput",
    "Transformer",
    "decode",
    "generate",
    "generate_many",
    "generate_text",
    "generation_defaults",
    "load",
    "load_tokenizer",
    "make_mesh",
    "save",
    "save_hf",
]

__version__ = "0.1.0"
