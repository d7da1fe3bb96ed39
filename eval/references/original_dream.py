"""The original R²-dLLM's Dream: its options and its model.

Runs `diffusion_generate` as the program's own evaluation does: of generation_utils_block.py with a
cache (R²'s rules, or Fast-dLLM without them), of generation_utils.py without (Dream's sampler, the
whole answer at once).

Written for transformers 4.49. What version 5 has taken away is put back on the program's own names
when it is loaded: the table entry of plain rotary frequencies, the check of a generation
configuration that takes no arguments. With these all golden cases come out exact on 5.17.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType, SimpleNamespace
from typing import Any

from eval.references import checkout
from r2jax import DecodeConfig, ModelConfig

FOLDER = "dream"
FILES = (
    "model/configuration_dream.py",
    "model/generation_utils.py",
    "model/generation_utils_block.py",
    "model/modeling_dream.py",
)
OPTIONS = (*checkout.R2_OPTIONS, "token_cluster_size")
ALGS = {"confidence": "maskgit_plus", "entropy": "entropy", "topk_margin": "topk_margin"}


def unsupported(decode: DecodeConfig) -> list[str]:
    """Options that its samplers do not have, in words."""
    wrong = checkout.unsupported_anywhere(decode, known=("alg", "round_confidence"))
    if decode.factor is not None:
        wrong.append(f"factor {decode.factor} (only None)")
    if decode.cache == "none":
        if decode.block_length not in (None, decode.gen_length):
            wrong.append(f"cache 'none' with block_length {decode.block_length} (only None)")
        if checkout.rules_on(decode):
            wrong.append("R²'s rules without a cache (only apply_rules=False)")
        if decode.threshold is not None and decode.steps is None:
            wrong.append("threshold without a cache and steps (they bound what it passes)")
    if checkout.rules_on(decode) and decode.token_cluster == "random":
        wrong.append("token_cluster 'random' (it draws other numbers)")
    return wrong


def arguments(decode: DecodeConfig) -> dict[str, Any]:
    """Keyword arguments of its `diffusion_generate`, beside those of its generation
    configuration."""
    if decode.cache == "none":
        return {"threshold": decode.threshold}
    on = checkout.rules_on(decode)
    return {
        "block_length": decode.block_length or decode.gen_length,
        "dual_cache": decode.cache == "dual",
        "threshold": decode.threshold,
        **{name: getattr(decode, name) if on else None for name in OPTIONS},
    }


def load() -> SimpleNamespace:
    """Import its modules, which must be first on the path."""
    import torch  # pyright: ignore[reportMissingImports]
    from model import (  # pyright: ignore[reportMissingImports]
        configuration_dream,
        generation_utils,
        generation_utils_block,
        modeling_dream,
    )

    def plain(config: Any, device: Any = None, **_: Any) -> tuple[Any, float]:
        """Rotary frequencies, and the factor on cos and sin."""
        size = config.hidden_size // config.num_attention_heads
        exponents = torch.arange(0, size, 2, dtype=torch.int64, device=device).float() / size
        return 1.0 / config.rope_theta**exponents, 1.0

    modeling_dream.ROPE_INIT_FUNCTIONS = {"default": plain}
    for module in (generation_utils, generation_utils_block):
        module.DreamGenerationConfig.validate = lambda self, **_: None
    return SimpleNamespace(
        configuration=configuration_dream,
        modeling=modeling_dream,
        samplers={True: generation_utils, False: generation_utils_block},
    )


def build(program: SimpleNamespace, config: ModelConfig, tensors: dict[str, Any]) -> Any:
    """Its model around our tensors."""
    import torch  # pyright: ignore[reportMissingImports]

    described = program.configuration.DreamConfig(**config.to_hf())
    with torch.device("meta"):
        model = program.modeling.DreamModel(described)
    model.load_state_dict(tensors, strict=True, assign=True)
    device = next(iter(tensors.values())).device
    for module in model.modules():  # buffers that no checkpoint holds
        if isinstance(module, program.modeling.DreamRotaryEmbedding):
            module.inv_freq = module.rope_init_fn(described, device)[0]
    return model.eval()


def attention(model: Any) -> str:
    """What its attention runs on."""
    return "SDPA"  # its layers are of no other class


def generator(
    program: SimpleNamespace, model: Any, config: ModelConfig, decode: DecodeConfig
) -> tuple[str, Callable[..., Any]]:
    """Its function's name, and that function of a prompt [1, P] and changed options: the whole
    sequence [1, P + G]."""
    sampler = program.samplers[decode.cache == "none"]
    for name in ("diffusion_generate", "_sample"):
        method = getattr(sampler.DreamGenerationMixin, name)
        setattr(model, name, MethodType(method, model))

    def generate(tokens: Any, gen_length: int = decode.gen_length, steps: int | None = None) -> Any:
        described = sampler.DreamGenerationConfig(
            alg="confidence_threshold" if decode.threshold is not None else ALGS[decode.alg],
            alg_temp=0.0,
            temperature=0.0,
            max_new_tokens=gen_length,
            steps=steps or decode.steps or decode.gen_length,
            return_dict_in_generate=True,
            mask_token_id=config.mask_id,
            eos_token_id=config.eos_id,
            pad_token_id=config.pad_id,
            bos_token_id=config.eos_id,
        )
        mask = tokens == tokens  # nothing is padding, whatever the tokens are
        options = arguments(decode)
        if "block_length" in options:
            options["block_length"] = min(options["block_length"], gen_length)
        return model.diffusion_generate(
            tokens, generation_config=described, attention_mask=mask, **options
        ).sequences

    return f"{sampler.__name__}.DreamGenerationMixin.diffusion_generate", generate
