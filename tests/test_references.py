"""Reference programs: what is asked of them, what is refused, and how their checkouts are used."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import eval.references as references
from eval.random_model import SIZES
from eval.references import (
    bonsai,
    check_reference,
    checkout,
    original,
    original_dream,
    original_llada,
    parse_reference,
    time_reference,
)
from r2jax import DecodeConfig, ModelConfig, Transformer
from r2jax.config import DREAM_7B, LLADA_8B
from r2jax.weights import for_decoding

TINY = SIZES["tiny"]


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def original_checkout(tmp_path: Path) -> Path:
    files = [f"{p.FOLDER}/{name}" for p in original.PROGRAMS.values() for name in p.FILES]
    return write(tmp_path / "R2", dict.fromkeys(files, ""))


@pytest.mark.parametrize("config", [LLADA_8B, DREAM_7B], ids=lambda c: c.model_type)
def test_a_path_is_the_checkout_or_its_folder(original_checkout: Path, config: ModelConfig):
    inner = original_checkout / config.model_type.lower()
    for path in (original_checkout, inner):
        assert original.find(str(path), config.model_type) == inner
    assert original.find(str(inner)) == inner  # one of them is enough where no model is named yet
    (inner / "model").rename(inner / "gone")
    with pytest.raises(ValueError, match=rf"\(its {inner.name}\): model/.* is not there"):
        check_reference("original", str(original_checkout), config, DecodeConfig.r2())


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("original", "NAME=PATH with a NAME of original, bonsai, got 'original'"),
        ("original=", "NAME=PATH"),
        ("vllm=/somewhere", "got 'vllm=/somewhere'"),
        ("bonsai=/nowhere", "'/nowhere' is not a checkout of jax-ml/bonsai: bonsai/models/llada"),
    ],
)
def test_parse_reference_refuses(word: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_reference(word)


def test_parse_reference_names_a_missing_package_and_a_missing_file(
    original_checkout: Path, monkeypatch: pytest.MonkeyPatch
):
    word = f"original={original_checkout}"
    missing = {"torch"}
    monkeypatch.setattr(references, "find_spec", lambda name: None if name in missing else name)
    with pytest.raises(ValueError, match="'original' needs torch, which is not installed"):
        parse_reference(word)
    missing.clear()
    assert parse_reference(word) == ("original", str(original_checkout))
    (original_checkout / "llada/generate.py").unlink()
    assert parse_reference(word) == ("original", str(original_checkout))  # Dream's is there
    (original_checkout / "dream/model/modeling_dream.py").unlink()
    with pytest.raises(ValueError, match=r"not a checkout of R2-dLLM.*: generate.py is not there"):
        parse_reference(word)


def test_original_arguments_under_r2():
    decode = DecodeConfig.r2(gen_length=64, block_length=16, temporal_eval="ave")
    assert original_llada.FUNCTIONS[decode.cache] == "generate_with_dual_cache"
    assert original_llada.arguments(decode, mask_id=7) == {
        "steps": 64,
        "gen_length": 64,
        "block_length": 16,
        "temperature": 0.0,
        "remasking": "low_confidence",
        "mask_id": 7,
        "threshold": 0.9,
        "factor": None,
        "confidence_cluster_size": 3,
        "spatial_threshold": 0.8,
        "confidence_cluster_unmasked": 1,
        "token_cluster": "confidence",
        "temporal_steps": 3,
        "temporal_threshold": 0.8,
        "temporal_eval": "ave",
    }


def test_original_arguments_without_rules():
    """Fast-dLLM keeps R²'s thresholds only to count with them: the original must not apply them."""
    fast = original_llada.arguments(DecodeConfig.fast_dllm(factor=1.5), mask_id=7)
    assert fast["factor"] == 1.5 and fast["threshold"] == 0.9
    assert all(fast[name] is None for name in checkout.R2_OPTIONS)
    plain = original_llada.arguments(DecodeConfig.vanilla(gen_length=64, steps=32), mask_id=7)
    assert plain["threshold"] is None and plain["steps"] == 32 and plain["block_length"] == 32
    assert not set(plain) & set(checkout.R2_OPTIONS)  # its functions without dual cache lack them
    whole = DecodeConfig.vanilla(gen_length=64, block_length=None)
    assert original_llada.arguments(whole, mask_id=7)["block_length"] == 64


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (DecodeConfig.r2(temperature=0.5), "temperature 0.5"),
        (DecodeConfig.r2(remasking="random"), "remasking 'random'"),
        (DecodeConfig.r2(stop_at_eos=True), "stop_at_eos"),
        (DecodeConfig.r2(cache="prefix"), "R²'s rules with cache 'prefix'"),
        (DecodeConfig.r2(token_cluster_size=3), "token_cluster_size 3"),
        (DecodeConfig.r2(token_cluster="random"), "token_cluster 'random'"),
        (DecodeConfig.r2(confidence_cluster_size=None), "without confidence_cluster_size"),
    ],
)
def test_original_refuses_what_it_cannot_do(
    original_checkout: Path, decode: DecodeConfig, message: str
):
    with pytest.raises(ValueError, match=message):
        check_reference("original", str(original_checkout), TINY, decode)


@pytest.mark.parametrize(
    "decode",
    [
        DecodeConfig.r2(),
        DecodeConfig.r2(token_cluster=None, confidence_cluster_size=None),
        DecodeConfig.fast_dllm(),
        DecodeConfig.fast_dllm(cache="prefix", token_cluster_size=3),
        DecodeConfig.vanilla(steps=64),
        DecodeConfig.r2(cache="none", spatial_threshold=None, temporal_steps=None),
    ],
)
def test_original_accepts(original_checkout: Path, decode: DecodeConfig):
    check_reference("original", str(original_checkout), TINY, decode)


def test_dream_arguments_under_r2():
    decode = DecodeConfig.r2(token_cluster_size=3, cache="prefix")
    assert original_dream.arguments(decode) == {
        "block_length": 32,
        "dual_cache": False,
        "threshold": 0.9,
        "confidence_cluster_size": 3,
        "spatial_threshold": 0.8,
        "confidence_cluster_unmasked": 1,
        "token_cluster": "confidence",
        "token_cluster_size": 3,
        "temporal_steps": 3,
        "temporal_threshold": 0.8,
        "temporal_eval": "last",
    }
    plain = DecodeConfig.vanilla(threshold=0.7, block_length=None)
    assert original_dream.arguments(plain) == {"threshold": 0.7}  # 0.9 where it gets none
    fast = original_dream.arguments(DecodeConfig.fast_dllm())
    assert fast["dual_cache"] and all(fast[name] is None for name in original_dream.OPTIONS)


@pytest.mark.parametrize(
    ("decode", "wrong"),
    [
        (DecodeConfig.r2(), []),
        (DecodeConfig.r2(cache="prefix", confidence_cluster_size=None), []),
        (DecodeConfig.fast_dllm(), []),
        (DecodeConfig.vanilla(block_length=None, alg="entropy"), []),
        (DecodeConfig.vanilla(block_length=256, threshold=0.9, steps=64), []),
        (DecodeConfig.vanilla(threshold=0.9), ["cache 'none' with block_length 32", "threshold"]),
        (DecodeConfig.r2(cache="none", block_length=None, steps=64), ["R²'s rules without"]),
        (DecodeConfig.r2(factor=1.0), ["factor 1.0"]),
        (DecodeConfig.r2(token_cluster="random"), ["token_cluster 'random'"]),
    ],
)
def test_what_the_original_dream_has(decode: DecodeConfig, wrong: list[str]):
    found = original.unsupported(DREAM_7B, decode)
    assert len(found) == len(wrong)
    assert all(f.startswith(w) for f, w in zip(found, wrong, strict=True))


def test_an_option_unknown_to_the_adapters_is_refused_unless_at_its_default():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Newer(DecodeConfig):
        suffix: int | None = None

    for config in (LLADA_8B, DREAM_7B):
        assert original.unsupported(config, Newer()) == []
        assert original.unsupported(config, Newer(suffix=64)) == ["suffix 64 (only None)"]
    assert original.unsupported(DREAM_7B, Newer(round_confidence=True)) == []
    assert original.unsupported(LLADA_8B, Newer(round_confidence=True)) != []


def test_models_that_a_reference_cannot_be():
    grouped = dataclasses.replace(LLADA_8B, num_kv_heads=8)
    assert original.unsupported_model(grouped) == []
    assert bonsai.unsupported_model(LLADA_8B) == []
    assert bonsai.unsupported_model(grouped) == ["num_kv_heads 8 (only num_heads, 32)"]
    biased = dataclasses.replace(LLADA_8B, qkv_bias=True)
    assert len(original.unsupported_model(biased)) == len(bonsai.unsupported_model(biased)) == 1


@pytest.mark.parametrize(
    ("decode", "wrong"),
    [
        (DecodeConfig.r2(), ["cache 'dual'", "threshold 0.9", "R²'s rules"]),
        (DecodeConfig.vanilla(factor=1.0), ["factor 1.0"]),
        (DecodeConfig.vanilla(), []),
    ],
)
def test_bonsai_has_llada_s_sampler_only(decode: DecodeConfig, wrong: list[str]):
    found = bonsai.unsupported(TINY, decode)
    assert len(found) == len(wrong)
    assert all(f.startswith(w) for f, w in zip(found, wrong, strict=True))


@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, 16), ({"steps": 8}, 8), ({"block_length": 8}, 32), ({"block_length": None}, 16)],
)
def test_bonsai_runs_a_few_steps_that_its_blocks_divide(options: dict[str, int], steps: int):
    assert bonsai.timed_steps(DecodeConfig.vanilla(gen_length=256, **options)) == steps


def test_imports_from_a_checkout_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, {"generate.py": "NAME = 'theirs'\nfrom model import part\n"})
    write(tmp_path, {"model/__init__.py": "", "model/part.py": ""})
    ours = ModuleType("generate")
    monkeypatch.setitem(sys.modules, "generate", ours)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = list(sys.path)
    with checkout.first_on_path(tmp_path, ("generate", "model")):
        import generate  # pyright: ignore[reportMissingImports]

        assert generate.NAME == "theirs"
    assert sys.modules["generate"] is ours
    assert not {"model", "model.part"} & set(sys.modules) and sys.path == before


# A program of bonsai's interface: its answer is a function of every weight it was given, so that a
# weight in another's place or not transposed changes it.
BONSAI = """
import dataclasses, jax, jax.numpy as jnp
from flax import nnx
from tqdm import trange
from bonsai.utils.rope import SHIFT

class ShardingConfig:
    default = staticmethod(lambda fsdp, tensor: None)

@dataclasses.dataclass
class ModelConfig:
    dtype: object; d_model: int; n_heads: int; n_kv_heads: int; n_layers: int
    embedding_dropout: float; max_sequence_length: int; rope_theta: float
    include_qkv_bias: bool; include_bias: bool; vocab_size: int; embedding_size: int
    mlp_hidden_size: int; shd_cfg: object; return_hidden_states: bool; rms_norm_eps: float

class Leaf(nnx.Module):
    def __init__(self, name, *shape, bias=False):
        setattr(self, name, nnx.Param(jnp.ones(shape)))
        if bias:
            self.bias = nnx.data(jnp.ones(shape[-1:]))

class Block(nnx.Module):
    def __init__(self, c):
        d, f = c.d_model, c.mlp_hidden_size
        self.attn_norm, self.ff_norm = Leaf("weight", d), Leaf("weight", d)
        for name in ("q_proj", "k_proj", "v_proj", "attn_out"):
            setattr(self, name, Leaf("kernel", d, d, bias=True))
        self.ff_proj, self.up_proj = Leaf("kernel", d, f), Leaf("kernel", d, f)
        self.ff_out = Leaf("kernel", f, d)

class LLaDAModel(nnx.Module):
    def __init__(self, config, *, rngs):
        d = config.d_model
        self.wte = Leaf("embedding", config.embedding_size, d)
        self.blocks = nnx.List([Block(config) for _ in range(config.n_layers)])
        self.ln_f, self.ff_out = Leaf("weight", d), Leaf("kernel", d, config.vocab_size)
        self.vocab = config.vocab_size

def generate(model, prompt, attention_mask, steps, gen_length, block_length, mask_id):
    assert attention_mask.shape == prompt.shape and attention_mask.all()
    for _ in trange(steps):
        x = model.wte.embedding[...][prompt[0, -1]]
        for b in model.blocks:
            h = x * b.attn_norm.weight[...]
            for name in ("q_proj", "k_proj", "v_proj", "attn_out"):
                layer = getattr(b, name)
                h = jnp.tanh(h @ layer.kernel[...]) + layer.bias
            h = h * b.ff_norm.weight[...]
            h = (h @ b.ff_proj.kernel[...]) - 2 * (h @ b.up_proj.kernel[...])
            x = x + jnp.tanh(h) @ b.ff_out.kernel[...]
        token = jnp.argmax((x * model.ln_f.weight[...]) @ model.ff_out.kernel[...]) + SHIFT
    answer = jnp.full((1, gen_length), mask_id)
    answer = answer.at[0, :3].set(jnp.stack([token, steps, block_length]))
    return jnp.concatenate([prompt, answer], axis=1)
"""


def its_token(model: Any, token: int) -> int:
    """What the program above computes, on our model."""

    def times(x, linear):
        return x @ np.asarray(linear.weight[...]).T

    x = np.asarray(model.embed.weight[...])[token]
    for layer in model.layers:
        h = x * np.asarray(layer.attn_norm.weight[...])
        for linear in (layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj):
            h = np.tanh(times(h, linear))
        h = h * np.asarray(layer.mlp_norm.weight[...])
        h = times(h, layer.gate_proj) - 2 * times(h, layer.up_proj)
        x = x + times(np.tanh(h), layer.down_proj)
    return int(np.argmax(times(x * np.asarray(model.norm.weight[...]), model.head)))


def separate_model() -> Transformer:
    """Of weights large enough that each has a say in the answer, and norms unlike each other."""
    model = Transformer(TINY, rngs=nnx.Rngs(0))
    for i, (_, param) in enumerate(nnx.to_flat_state(nnx.state(model, nnx.Param))):
        shape, key = param.get_value().shape, jax.random.key(i)
        if len(shape) == 1:
            param.set_value(1 + jax.random.uniform(key, shape))
        else:
            param.set_value(1.5 / shape[1] ** 0.5 * jax.random.normal(key, shape))
    return model


@pytest.mark.parametrize("fused", [False, True])
def test_bonsai_s_program_runs_with_our_weights(tmp_path: Path, fused: bool):
    write(tmp_path, {bonsai.FILES[0]: BONSAI, bonsai.FILES[1]: "SHIFT = 1"})
    # The collection's own packages would import every model, and all that those need.
    write(tmp_path, {f"bonsai/{name}__init__.py": "1 / 0" for name in ("", "models/", "utils/")})
    model = separate_model()
    decode = DecodeConfig.vanilla(gen_length=64, block_length=16)
    result = time_reference(
        "bonsai",
        str(tmp_path),
        model=for_decoding(model) if fused else model,
        config=TINY,
        decode=decode,
        prompt=[5, 17],
        repeats=2,
    )
    assert result["tokens"][:4] == [its_token(model, 17) + 1, 16, 16, TINY.mask_id]
    assert (result["nfe"], result["runs"], result["whole_run"]) == (16, 2, False)
    assert result["ran"] == "no cache, 16 steps (of 64)" and result["dtype"] == "float32"
    assert result["ms_per_nfe"] == pytest.approx(1e3 * result["seconds"] / 16)
    assert len(result["tokens"]) == 64
    assert not any(name.split(".")[0] == "bonsai" for name in sys.modules)


def test_quantised_weights_are_not_shared(original_checkout: Path):
    with pytest.raises(ValueError, match="cannot share quantised weights"):
        time_reference(
            "original",
            str(original_checkout),
            model=for_decoding(Transformer(TINY, rngs=nnx.Rngs(0)), "int8"),
            config=TINY,
            decode=DecodeConfig.r2(),
            prompt=[1],
            repeats=1,
        )
