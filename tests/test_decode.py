"""The decode loop: the original programs' trajectories, and what must hold for any model."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import r2jax
from r2jax.decode import decode, segments
from r2jax.denoise import denoise, start
from r2jax.sharding import make_mesh, param_shardings
from tests import golden_cases as golden
from tests import oracle
from tests.oracle_llada import Llada

PROMPTS = [[1, 2, 3], list(range(10, 40)), [5] * 9, [7, 8]]
SMALL = r2jax.DecodeConfig(gen_length=64, block_length=16)


def ids(name: str) -> list[str]:
    return [group[0]["id"] for group in golden.batches(name).values()]


@pytest.mark.parametrize("name", golden.NAMES)
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


def same(a: r2jax.DecodeOutput, b: r2jax.DecodeOutput, rows: slice = slice(None)) -> None:
    """Everything that a row has, states and counts included: `rows` of a, all of b."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x)[rows], np.asarray(y))


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
}


@pytest.mark.parametrize("options", VARIETY.values(), ids=VARIETY)
def test_a_row_is_what_it_is_alone_and_eight_devices_equal_one(options: dict):
    config = dataclasses.replace(SMALL, **options)
    key = jax.random.key(1)
    model = golden.model("tiny-a")
    batch = r2jax.generate(model, PROMPTS, config, key=key, trace=True)
    assert (np.asarray(batch.tokens) != model.config.mask_id).all()

    row = 1
    keys = jax.random.fold_in(key, row)[None]
    alone = r2jax.generate(model, [PROMPTS[row]], config, key=keys, trace=True)
    same(batch, alone, slice(row, row + 1))

    graph, state = nnx.split(model)
    mesh = make_mesh(data=2, tensor=4)
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
}


@pytest.mark.parametrize("options", ORACLE.values(), ids=ORACLE)
@pytest.mark.parametrize("name", golden.NAMES)
def test_whole_rows_agree_with_the_oracle(name: str, options: dict):
    """Tokens, NFE, states, both kinds of counts and who wrote what, against plain NumPy."""
    model, network = golden.model(name), Llada(golden.ROOT / name, np.float64)
    prompts = [case["prompt"] for case in golden.cases(name)[:36:12]]
    eos = golden.cases(name)[0]["output"][0]
    config = r2jax.DecodeConfig(gen_length=48, block_length=16, eos_id=eos, **options)
    out = r2jax.generate(model, prompts, config, trace=True)
    assert out.states is not None and out.committed_by is not None
    for row, prompt in enumerate(prompts):
        want = oracle.decode(
            network,
            prompt,
            {"gen_length": 48, "block_length": 16, **options},
            model.config.mask_id,
            eos_ids=(eos,),
        )
        np.testing.assert_array_equal(out.tokens[row], want.tokens)
        assert int(out.nfe[row]) == want.nfe
        assert int(out.refreshes[row]) == want.refreshes
        np.testing.assert_array_equal(out.states[row, : want.nfe], want.states)
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

    for row, prompt in enumerate(PROMPTS[:2]):
        progress = start(1, static, mask)
        for block in range(static.num_blocks):
            fresh = start(1, static, mask)
            progress = progress._replace(
                passes=fresh.passes, streak=fresh.streak, shadow=fresh.shadow
            )
            while (np.asarray(progress.answer)[0, block * 16 : block * 16 + 16] == mask).any():
                natural = jnp.concatenate([jnp.asarray([prompt]), progress.answer], axis=1)
                logits = model(natural)[:, len(prompt) + block * 16 :][:, :16]
                progress = denoise(progress, logits, block, static, scalars, mask, None, full=True)
        np.testing.assert_array_equal(out.tokens[row], progress.answer[0])
        assert int(out.nfe[row]) == int(progress.nfe[0])
        for ours, theirs in zip(
            jax.tree.leaves(out.counts), jax.tree.leaves(progress.counts), strict=True
        ):
            assert int(ours[row]) == int(theirs[0])


def test_a_second_call_compiles_nothing_and_thresholds_are_traced(caplog):
    model = golden.model("tiny-a")
    r2jax.generate(model, PROMPTS, SMALL)
    swept = dataclasses.replace(
        SMALL,
        threshold=0.6,
        spatial_threshold=0.5,
        temporal_threshold=0.4,
        temporal_steps=2,
        confidence_cluster_unmasked=2,
        token_cluster_size=3,
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


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5, 8, 9, 32])
def test_segments_cover_the_blocks(blocks: int):
    for cache in ("none", "prefix", "dual"):
        config = r2jax.DecodeConfig(gen_length=blocks * 16, block_length=16, cache=cache)
        parts = segments(config.split(0)[0])
        assert [b for part in parts for b in part] == list(range(blocks))
        assert len(parts) <= (4 if cache == "prefix" else 1)
