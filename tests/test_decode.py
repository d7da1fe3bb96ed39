"""The decode loop: the original programs' trajectories, and what must hold for any model."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import r2jax
from r2jax.decode import decode
from r2jax.decode_config import Cache
from r2jax.denoise import denoise, start
from r2jax.family import LLADA
from r2jax.layout import SEGMENTS, segments, wasted_columns
from r2jax.sharding import make_mesh, param_shardings
from tests import golden_cases as golden
from tests import oracle
from tests.oracle_networks import load
from tests.trajectories import assert_same

PROMPTS = [[1, 2, 3], list(range(10, 40)), [5] * 9, [7, 8]]
SMALL = r2jax.DecodeConfig(gen_length=64, block_length=16)


def ids(name: str) -> list[str]:
    return [group[0]["id"] for group in golden.batches(name).values()]


@pytest.mark.parametrize("name", golden.NAMES + golden.STREAMING + golden.DREAM)
def test_forward_matches_the_original(name: str):
    assert golden.forward_difference(name) < 5e-4


@pytest.mark.parametrize("case", [c for name in golden.NAMES for c in ids(name)])
def test_golden_batches(case: str):
    """All 452 trajectories, in batches of unequal prompts: tokens, NFE, states."""
    name = case.split("/")[0]
    group = next(g for g in golden.batches(name).values() if g[0]["id"] == case)
    assert golden.run(name, group) == []
    jax.clear_caches()  # all of these programs together would not fit into one process


@pytest.mark.parametrize(
    "case",
    [
        "tiny-a/vanilla/P9-G64-B16",
        "tiny-b/prefix-threshold/P9-G128-B32",
        "tiny-a/r2/P17-G128-B32",
        "tiny-b/r2-factor/P9-G96-B32",
        "tiny-b/r2-temporal-max/P33-G64-B64",
    ],
)
def test_golden_alone(case: str):
    name = case.split("/")[0]
    assert golden.run(name, [c for c in golden.cases(name) if c["id"] == case]) == []


@pytest.mark.parametrize(
    "case",
    [
        "stream-a/stream/P33-G96-B32",
        "stream-b/stream-w0/P9-G96-B16",
        "stream-a/stream-w8/P17-G128-B32",
        "stream-b/stream-w16-a0.6/P33-G96-B32",
        "stream-a/stream-w64-a0.4/P9-G96-B16",
        "stream-b/alpha0.6-only/P9-G96-B16",
        "stream-a/exit-only/P17-G128-B32",
        "stream-b/window-steps-half/P33-G96-B32",
        "stream-a/window-factor/P40-G160-B32",
    ],
)
def test_golden_streaming_among_others(case: str):
    """Streaming-dLLM's trajectories, between a shorter and a longer prompt."""
    name = case.split("/")[0]
    (found,) = [c for c in golden.cases(name) if c["id"] == case]
    assert golden.run_among_others(name, found) == []
    jax.clear_caches()


@pytest.mark.parametrize(
    "case",
    [
        "dream-a/entropy-none/P17-G64-B0",
        "dream-b/margin-none-half/P26-G64-B0",
        "dream-a/threshold-none/P26-G64-B0",
        "dream-b/threshold-none-s8/P17-G64-B0",
        "dream-a/entropy-prefix/P8-G64-B16",
        "dream-b/entropy-dual-half/P33-G96-B32",
        "dream-b/threshold-prefix/P5-G128-B32",
        "dream-a/threshold-dual/P40-G64-B16",
        "dream-b/r2/P12-G96-B32",
        "dream-a/r2-prefix/P26-G64-B32",
        "dream-b/r2-token-only/P5-G128-B32",
        "dream-a/r2-temporal-ave/P8-G64-B16",
        "dream-b/r2-entropy/P26-G64-B32",
        "dream-b/quirk-maskgit-dual/P17-G64-B32",
        "dream-a/quirk-entropy-dual-1step/P17-G64-B32",
    ],
)
def test_golden_dream_among_others(case: str):
    """Dream's trajectories (all 114: `python -m tests.golden_cases`), and its reported count."""
    name = case.split("/")[0]
    (found,) = [c for c in golden.cases(name) if c["id"] == case]
    assert golden.run_among_others(name, found) == []
    jax.clear_caches()


def same(a: r2jax.DecodeOutput, b: r2jax.DecodeOutput, rows: slice = slice(None)) -> None:
    """Everything that a row has, the trace and counts included: `rows` of a, all of b."""
    assert_same(jax.tree.map(lambda x: np.asarray(x)[rows], a), b)


VARIETY = {
    "r2": {},
    "prefix": {"cache": "prefix"},
    "none": {"cache": "none", "temporal_eval": "ave"},
    "count only": {"apply_rules": False},
    "sampled": {"temperature": 0.7},
    "nucleus, random run": {"temperature": 0.7, "top_p": 0.8, "token_cluster": "random"},
    "random remasking": {"remasking": "random", "threshold": None},
    "stop": {"stop_at_eos": True, "eos_id": (15, 144)},
    "one block": {"block_length": None, "cache": "none", "threshold": 0.6},
    "streaming": {"cache": "prefix", "window_size": 9, "confidence_alpha": 0.5, "eos_id": 15},
    "streaming, dual, leap": {"window_size": 20, "confidence_alpha": 0.4, "leap_radius": 3},
    "pruned, sampled, none": {"cache": "none", "window_size": 0, "temperature": 0.5},
}
VARIETY_DREAM = {
    "dream": {"temporal_eval": "ave"},
    "dream, nucleus, pruned": {
        "cache": "prefix", "window_size": 9, "temperature": 0.7, "top_p": 0.8, "eos_id": 15,
    },
    "dream, margin": {
        "cache": "none", "block_length": None, "threshold": None, "alg": "topk_margin", "steps": 40,
    },
    "dream, capped": {"cache": "none", "steps": 16, "threshold": 0.3},
}  # fmt: skip
EVERY = {name: ("tiny-a", options) for name, options in VARIETY.items()}
EVERY |= {name: ("dream-a", options) for name, options in VARIETY_DREAM.items()}


# Those whose programs differ on a mesh: caches, sampling over a split vocabulary, windows.
ON_A_MESH = {
    **dict.fromkeys(("r2", "prefix", "nucleus, random run", "random remasking", "streaming"), 4),
    **dict.fromkeys(("dream", "dream, nucleus, pruned"), 2),  # key heads to split
}


@pytest.mark.parametrize(("name", "options"), EVERY.values(), ids=EVERY)
def test_a_row_is_what_it_is_alone(name: str, options: dict):
    config = dataclasses.replace(SMALL, **options)
    key = jax.random.key(1)
    model = golden.model(name)
    batch = r2jax.generate(model, PROMPTS, config, key=key, trace=True)
    assert (np.asarray(batch.tokens) != model.config.mask_id).all()

    row = 1
    keys = jax.random.fold_in(key, row)[None]
    alone = r2jax.generate(model, [PROMPTS[row]], config, key=keys, trace=True)
    same(batch, alone, slice(row, row + 1))


@pytest.mark.parametrize(("variety", "tensor"), ON_A_MESH.items())
def test_eight_devices_equal_one(variety: str, tensor: int):
    name, options = EVERY[variety]
    config = dataclasses.replace(SMALL, **options)
    key = jax.random.key(1)
    model = golden.model(name)
    batch = r2jax.generate(model, PROMPTS, config, key=key, trace=True)
    graph, state = nnx.split(model)
    mesh = make_mesh(data=8 // tensor, tensor=tensor)
    sharded = nnx.merge(graph, jax.device_put(state, param_shardings(state, mesh)))
    out = r2jax.generate(sharded, PROMPTS, config, key=key, trace=True)
    assert len(out.tokens.sharding.device_set) == 8
    same(batch, out)


ORACLE = {
    "r2": {},
    "count only": {"apply_rules": False},
    "prefix": {"cache": "prefix", "token_cluster": "mid", "token_cluster_size": 3},
    "none, loose": {"cache": "none", "spatial_threshold": 0.3, "temporal_threshold": 0.2},
    "schedule": {"threshold": None, "steps": 24, "temporal_eval": "ave", "temporal_steps": 2},
    "factor": {"factor": 0.7, "confidence_cluster_unmasked": None, "temporal_eval": "max"},
    "token alone": {"confidence_cluster_size": None, "temporal_steps": None},
    "stop": {"stop_at_eos": True},
    "leap": {"leap_radius": 4, "apply_rules": False},
    "streaming and R2": {"cache": "prefix", "window_size": 7, "confidence_alpha": 0.4},
    "streaming, dual, leap": {
        "window_size": 5, "confidence_alpha": 0.3, "leap_radius": 2, "leap_threshold": 0.6,
    },
    "pruned, none": {"cache": "none", "window_size": 0, "stop_at_eos": True},
    "window but no pruning": {"window_size": 31, "confidence_alpha": 0.3},
}  # fmt: skip


DREAM_ORACLE = {
    "r2": {},
    "prefix, run of 1": {"cache": "prefix", "token_cluster": "mid", "token_cluster_size": 1},
    "count only": {"apply_rules": False, "steps": 48},
    "run of 3": {
        "spatial_threshold": 0.6, "token_cluster_size": 3, "confidence_cluster_size": None,
        "temporal_eval": "max",
    },
    "entropy": {"threshold": None, "alg": "entropy", "steps": 24, "temporal_eval": "ave"},
    "margin, prefix": {"threshold": None, "alg": "topk_margin", "cache": "prefix"},
    "margin, none": {
        "threshold": None, "alg": "topk_margin", "cache": "none", "steps": 24,
        "spatial_threshold": 0.6,
    },
    "entropy, none": {"threshold": None, "alg": "entropy", "cache": "none", "steps": 12},
    "confidence, plain": {"threshold": None, "block_length": None, "cache": "none", "steps": 24},
    "one step": {"threshold": None, "steps": 3, "stop_at_eos": True},
    "capped, plain": {"block_length": None, "cache": "none", "threshold": 0.7, "steps": 12},
    "capped, none": {"cache": "none", "threshold": 0.5, "steps": 12, "spatial_threshold": None},
    "none": {"cache": "none", "spatial_threshold": 0.4, "alg": "entropy"},
    "stop": {"stop_at_eos": True},
    "streaming, dual, leap": {
        "window_size": 5, "confidence_alpha": 0.3, "leap_radius": 2, "spatial_threshold": None,
    },
    "streaming and R2": {
        "cache": "prefix", "window_size": 7, "confidence_alpha": 0.4, "stop_at_eos": True,
    },
    "factor": {"factor": 0.7, "confidence_cluster_unmasked": None},
}  # fmt: skip


@pytest.mark.parametrize("options", ORACLE.values(), ids=ORACLE)
@pytest.mark.parametrize("name", golden.NAMES)
def test_whole_rows_agree_with_the_oracle(name: str, options: dict):
    assert_agreement(name, options)


@pytest.mark.parametrize("options", DREAM_ORACLE.values(), ids=DREAM_ORACLE)
def test_whole_rows_agree_with_the_dream_oracle(options: dict):
    turn = list(DREAM_ORACLE.values()).index(options)  # either checkpoint in turn
    assert_agreement(golden.DREAM[turn % 2], options)
    jax.clear_caches()


def assert_agreement(name: str, options: dict) -> None:
    """Tokens, NFE, the trace and both kinds of counts, against plain NumPy."""
    model, network = golden.model(name), load(golden.folder(name), np.float64)
    prompts = [case["prompt"] for case in golden.cases(name)[:36:12]]
    eos = golden.cases(name)[0]["output"][0]
    options = {"gen_length": 48, "block_length": 16, **options}
    config = r2jax.DecodeConfig(eos_id=eos, **options)
    out = r2jax.generate(model, prompts, config, trace=True)
    assert out.committed_by is not None
    for row, prompt in enumerate(prompts):
        want = oracle.decode(
            network, prompt, options, model.config.mask_id, family=network.family, eos_ids=(eos,)
        )
        np.testing.assert_array_equal(out.tokens[row], want.tokens)
        assert int(out.nfe[row]) == want.nfe
        assert int(out.refreshes[row]) == want.refreshes
        assert int(out.reported[row]) == want.reported
        for name in ("states", "blocks", "predictions", "confidences"):
            ours, theirs = np.asarray(getattr(out, name)[row]), getattr(want, name)
            np.testing.assert_allclose(
                ours[: want.nfe], theirs, rtol=0, atol=1e-4 if name == "confidences" else 0
            )
            assert (ours[want.nfe :] == -1).all()
        np.testing.assert_array_equal(out.committed_by[row], want.committed_by)
        for kind in ("actual", "potential"):
            ours, theirs = getattr(out.counts, kind), getattr(want, kind)
            got = {rule: int(getattr(ours, rule)[row]) for rule in ours._fields}
            assert got == dataclasses.asdict(theirs), kind


def test_the_loop_is_the_step_repeated():
    """The jitted loop against the same step driven by Python, without a cache."""
    model = golden.model("tiny-b")
    mask = model.config.mask_id
    config = r2jax.DecodeConfig(gen_length=32, block_length=16, cache="none", temporal_steps=2)
    static, scalars = config.split(0)
    out = r2jax.generate(model, PROMPTS[:2], config)
    forward = jax.jit(lambda model, tokens: model(tokens))
    step = jax.jit(denoise, static_argnames=("static", "family", "mask_id", "full"))

    for row, prompt in enumerate(PROMPTS[:2]):
        progress = start(1, static, LLADA, mask)
        for block in range(static.num_blocks):
            fresh = start(1, static, LLADA, mask)
            progress = progress._replace(
                passes=fresh.passes, streak=fresh.streak, shadow=fresh.shadow
            )
            while (np.asarray(progress.answer)[0, block * 16 : block * 16 + 16] == mask).any():
                natural = jnp.concatenate([jnp.asarray([prompt]), progress.answer], axis=1)
                logits = forward(model, natural)[:, len(prompt) + block * 16 :][:, :16]
                progress = step(
                    progress,
                    logits,
                    block,
                    static,
                    scalars,
                    LLADA,
                    mask_id=mask,
                    keys=None,
                    full=True,
                )
        np.testing.assert_array_equal(out.tokens[row], progress.answer[0])
        assert int(out.nfe[row]) == int(progress.nfe[0])
        for ours, theirs in zip(
            jax.tree.leaves(out.counts), jax.tree.leaves(progress.counts), strict=True
        ):
            assert int(ours[row]) == int(theirs[0])


@pytest.mark.parametrize("options", [{}, {"cache": "prefix", "window_size": 12, "leap_radius": 2}])
def test_a_second_call_compiles_nothing_and_thresholds_are_traced(caplog, options: dict):
    model = golden.model("tiny-a")
    config = dataclasses.replace(SMALL, **options)
    r2jax.generate(model, PROMPTS, config)
    swept = dataclasses.replace(
        config,
        threshold=0.6,
        spatial_threshold=0.5,
        temporal_threshold=0.4,
        temporal_steps=2,
        confidence_cluster_unmasked=2,
        token_cluster_size=3,
        confidence_alpha=0.7,
        leap_threshold=0.3,
        leap_radius=5 if options else None,
    )
    shorter = [prompt[:2] for prompt in PROMPTS]
    with jax.log_compiles():
        r2jax.generate(model, shorter, swept)
    assert not [r for r in caplog.records if "Compiling" in r.message]


def test_nothing_goes_to_the_host_inside():
    """No callbacks in the program, and no transfers while it runs."""
    model = golden.model("tiny-a")
    static, scalars = SMALL.split(0)
    tokens, lengths = jnp.zeros((2, 64), jnp.int32), jnp.array([3, 64])
    scalars = jax.tree.map(jnp.asarray, scalars)
    lowered = decode.lower(model, tokens, lengths, static, scalars)
    assert "callback" not in lowered.as_text() and "while" in lowered.as_text()
    decode(model, tokens, lengths, static, scalars)
    with jax.transfer_guard("disallow"):
        decode(model, tokens, lengths, static, scalars)


def test_stopping_costs_nothing_after_the_end():
    model = golden.model("tiny-a")
    whole = r2jax.generate(model, PROMPTS, SMALL, trace=True)
    eos = int(whole.tokens[1, 20])  # in the second block of row 1, wherever in the others
    config = dataclasses.replace(SMALL, stop_at_eos=True, eos_id=eos)
    out = r2jax.generate(model, PROMPTS, config, trace=True)
    assert out.committed_by is not None
    for row in range(len(PROMPTS)):
        tokens, full = np.asarray(out.tokens[row]), np.asarray(whole.tokens[row])
        hits = np.flatnonzero(full == eos)
        end = 64 if not len(hits) else (hits[0] // 16 + 1) * 16
        np.testing.assert_array_equal(tokens[:end], full[:end])
        assert (tokens[end:] == eos).all()
        assert int(out.refreshes[row]) == end // 16
        assert (np.asarray(out.committed_by[row])[end:] == 4).all()
    assert int(out.nfe[1]) < int(whole.nfe[1])


def test_temperature_and_nucleus():
    model = golden.model("tiny-a")
    key = jax.random.key(0)

    def tokens(key=key, **options):
        config = dataclasses.replace(SMALL, **options)
        return np.asarray(r2jax.generate(model, PROMPTS, config, key=key).tokens)

    hot = tokens(temperature=1.0)
    np.testing.assert_array_equal(hot, tokens(temperature=1.0))
    assert (hot != tokens(temperature=1.0, key=jax.random.key(1))).any()
    # A nucleus of next to nothing holds the top token alone.
    np.testing.assert_array_equal(tokens(temperature=1.0, top_p=1e-6), tokens())
    np.testing.assert_array_equal(hot, tokens(key=jax.random.PRNGKey(0), temperature=1.0))


def test_steps_of_the_schedule_are_the_nfe():
    for steps, expected in ((None, 64), (32, 32), (4, 4)):
        config = r2jax.DecodeConfig.vanilla(gen_length=64, block_length=16, steps=steps)
        out = r2jax.generate(golden.model("tiny-b"), PROMPTS, config)
        assert out.nfe.tolist() == out.refreshes.tolist() == [expected] * 4


def test_dream_schedules_and_caps_that_cannot_be_are_refused():
    model = golden.model("dream-a")
    plain = r2jax.DecodeConfig(gen_length=64, block_length=None, cache="none", threshold=0.5)
    for wrong, message in (
        ({"steps": 24}, "steps must divide gen_length"),
        ({"threshold": None, "steps": 128}, "steps must be at most gen_length"),
    ):
        with pytest.raises(ValueError, match=message):
            r2jax.generate(model, PROMPTS, dataclasses.replace(plain, **wrong))
    # LLaDA's sampler counts neither.
    r2jax.generate(golden.model("tiny-a"), PROMPTS, dataclasses.replace(plain, steps=24))


def test_a_dream_threshold_without_steps_is_not_capped():
    """As a cap of one step, and no slower than one that holds tokens back."""
    model = golden.model("dream-a")
    config = r2jax.DecodeConfig(gen_length=64, block_length=None, cache="none", threshold=0.3)
    free = r2jax.generate(model, PROMPTS, config, trace=True)
    same(free, r2jax.generate(model, PROMPTS, dataclasses.replace(config, steps=1), trace=True))
    capped = r2jax.generate(model, PROMPTS, dataclasses.replace(config, steps=32))
    assert int(free.nfe.sum()) < int(capped.nfe.sum())
    assert (np.asarray(free.reported) == np.asarray(free.nfe)).all()


@pytest.mark.parametrize("window", [None, 0, 7, 16, 40, 600])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5, 8, 9, 32])
def test_segments_feed_what_is_needed_and_say_what_is_wasted(
    blocks: int, cache: Cache, window: int | None
):
    """The program's widths against what the specification (6.1) feeds, with prompts of 64."""
    gen = blocks * 16
    config = r2jax.DecodeConfig(gen_length=gen, block_length=16, cache=cache, window_size=window)
    static = config.split(0)[0]
    parts = segments(static)
    assert [b for part in parts for b in part.blocks] == list(range(blocks))
    varies = cache == "prefix" or static.window_size is not None
    assert len(parts) <= (SEGMENTS if varies else 1)

    wasted = []
    for part in parts:
        for block in part.blocks:
            end = (block + 1) * 16
            kept = gen - end if window is None else min(gen - end, window + 1)
            ahead, done = int(part.ahead(block)), int(part.done(block))
            assert ahead + done == block * 16
            # None but done columns are fed in vain, and the columns that count are a prefix.
            assert done + 16 + kept <= part.window and done >= 0
            assert cache != "prefix" or done + 16 + kept == part.window
            refresh = part.window + part.context(64)
            assert refresh % 16 == 0 and part.window + ahead == end + kept
            call = part.window - 16 - kept if cache == "prefix" else 0
            wasted.append((refresh - (64 + end + kept), call))
    assert wasted_columns(static) == wasted
    if window is None:
        assert all(refresh == 0 for refresh, _ in wasted)


def test_a_long_pruned_answer_wastes_little():
    """gen 1024: beside the prompt refreshes need 560 columns on average; unpruned, all 1024."""
    static, _ = r2jax.DecodeConfig.streaming(gen_length=1024).split(0)
    refresh, call = zip(*wasted_columns(static), strict=True)
    assert sum(refresh) / 32 < 125 and sum(call) / 32 < 4
