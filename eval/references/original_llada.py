"""The original R²-dLLM's LLaDA: its options and its model.

Runs the functions that the program's own evaluation runs: `generate_with_dual_cache` (R² rules, or
Fast-dLLM without them), `generate_with_prefix_cache` and `generate` (LLaDA's sampler, no cache).
Its modeling file does its attention with flash-attn where that is installed (for 16-bit weights),
otherwise with torch's scaled_dot_product_attention.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from eval.references import checkout
from r2jax import DecodeConfig, ModelConfig

FOLDER = "llada"
FILES = ("generate.py", "model/modeling_llada.py", "model/configuration_llada.py")
FUNCTIONS = {
    "dual": "generate_with_dual_cache",
    "prefix": "generate_with_prefix_cache",
    "none": "generate",
}


def unsupported(decode: DecodeConfig) -> list[str]:
    """Options that its functions do not have, in words."""
    wrong = checkout.unsupported_anywhere(decode)
    if not checkout.rules_on(decode):
        return wrong
    if decode.cache != "dual":
        wrong.append(f"R²'s rules with cache {decode.cache!r} (only 'dual', or apply_rules=False)")
    if decode.token_cluster is not None and decode.spatial_threshold is not None:
        if decode.confidence_cluster_size is None:
            wrong.append("token_cluster without confidence_cluster_size")
        if decode.token_cluster_size != 2:
            wrong.append(f"token_cluster_size {decode.token_cluster_size} (only 2)")
        if decode.token_cluster == "random":
            wrong.append("token_cluster 'random' (it draws other numbers)")
    return wrong


def arguments(decode: DecodeConfig, mask_id: int) -> dict[str, Any]:
    """Keyword arguments of its generate function for a configuration it supports.

    Its precedence of factor, threshold and steps is ours.
    """
    out: dict[str, Any] = {
        "steps": decode.steps or decode.gen_length,
        "gen_length": decode.gen_length,
        "block_length": decode.block_length or decode.gen_length,
        "temperature": 0.0,
        "remasking": decode.remasking,
        "mask_id": mask_id,
        "threshold": decode.threshold,
        "factor": decode.factor,
    }
    if decode.cache == "dual":
        on = checkout.rules_on(decode)
        out |= {name: getattr(decode, name) if on else None for name in checkout.R2_OPTIONS}
    return out


def load() -> SimpleNamespace:
    """Import its modules, which must be first on the path."""
    import generate  # pyright: ignore[reportMissingImports]
    from model import configuration_llada, modeling_llada  # pyright: ignore[reportMissingImports]

    return SimpleNamespace(
        generate=generate, configuration=configuration_llada, modeling=modeling_llada
    )


def build(program: SimpleNamespace, config: ModelConfig, tensors: dict[str, Any]) -> Any:
    """Its model around our tensors."""
    narrow = all(tensor.element_size() == 2 for tensor in tensors.values())
    # As its evaluation sets it; its file falls back where flash-attn is not installed.
    described = program.configuration.LLaDAConfig(**config.to_hf(), flash_attention=narrow)
    described.use_cache = False  # transformers 5 keeps no such key, and its forward asks for it
    inner = program.modeling.create_model_config_from_pretrained_config(described)
    inner.init_device = "meta"
    body = program.modeling.LLaDAModel(inner, init_params=False)
    model = program.modeling.LLaDAModelLM(described, model=body)
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval()


def attention(model: Any) -> str:
    """What its attention runs on."""
    return "flash-attn" if model.model.transformer.blocks[0].flash_attn_func else "SDPA"


def generator(
    program: SimpleNamespace, model: Any, config: ModelConfig, decode: DecodeConfig
) -> tuple[str, Callable[..., Any]]:
    """Its function's name, and that function of a prompt [1, P] and changed options: the whole
    sequence [1, P + G]."""
    function = getattr(program.generate, FUNCTIONS[decode.cache])

    def generate(tokens: Any, **changes: Any) -> Any:
        return function(model, tokens, **(arguments(decode, config.mask_id) | changes))[0]

    return f"{function.__module__}.{function.__name__}", generate
