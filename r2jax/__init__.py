"""R²-dLLM in JAX: masked-diffusion language models decoded by one jitted program."""

from r2jax.config import ModelConfig
from r2jax.decode import DecodeOutput, decode
from r2jax.decode_config import DecodeConfig
from r2jax.denoise import Counts, RuleCounts
from r2jax.generate import generate
from r2jax.model import Transformer

__all__ = [
    "Counts",
    "DecodeConfig",
    "DecodeOutput",
    "ModelConfig",
    "RuleCounts",
    "Transformer",
    "decode",
    "generate",
]
