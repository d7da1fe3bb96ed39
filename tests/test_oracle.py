"""The NumPy oracle: against golden cases, hand-made edge cases of every rule, a scripted loop."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import oracle, oracle_networks, strategies

GOLDEN = Path(__file__).parent / "golden" / "llada"
MASK = 4  # the scripted vocabulary: tokens 0..3 and the mask


def row(text: str) -> np.ndarray:
    """'mm.m' -> masked positions of a block."""
    return np.array([c == "m" for c in text])


def at(positions: np.ndarray) -> list[int]:
    return np.flatnonzero(positions).tolist()


def grid(*sixteenths: int) -> np.ndarray:
    """Confidences given in sixteenths."""
    return np.array(sixteenths) / 16


def rest(confidence: np.ndarray) -> np.ndarray:
    return 1 / confidence - 1


# ---- the network and the loop against the originals ----------------------------------------------


@pytest.mark.parametrize("name", ["tiny-a", "tiny-b"])
def test_golden(name: str):
    """Logits, and every variant (all rules, modes and caches) at the two shortest geometries."""
    network = oracle_networks.Llada(GOLDEN / name)
    stored = np.load(GOLDEN / name / "forward.npz")
    for ids, logits in zip(stored["input_ids"], stored["logits"], strict=True):
        assert np.abs(network(ids, 0, len(ids), "full") - logits).max() < 5e-4
    cases = oracle_networks.golden_cases(GOLDEN / name)
    short = [c for c in cases if c["id"].endswith(("P9-G64-B16", "P9-G64-B64"))]
    assert len(short) == 38
    wrong = {c["id"]: oracle_networks.golden_differences(c, network) for c in short}
    assert not {name: what for name, what in wrong.items() if what}


@pytest.mark.parametrize("name", ["stream-a", "stream-b"])
def test_golden_streaming(name: str):
    """Logits at positions with gaps, and a case of every variant."""
    folder = GOLDEN.parent / "streaming" / name
    network = oracle_networks.Llada(folder)
    stored = np.load(folder / "forward.npz")
    positions = stored["pruned_position_ids"]
    for ids, logits in zip(stored["input_ids"], stored["pruned_logits"], strict=True):
        spread = np.zeros(positions[-1] + 1, np.int64)
        spread[positions] = ids
        got = network(spread, 0, len(spread), "full", positions)
        assert np.abs(got - logits).max() < 5e-4
    first = {c["id"].split("/")[1]: c for c in oracle_networks.golden_cases(folder)}
    assert len(first) == 16
    wrong = {v: oracle_networks.golden_differences(c, network) for v, c in first.items()}
    assert not {variant: what for variant, what in wrong.items() if what}


@pytest.mark.parametrize("name", ["dream-a", "dream-b"])
def test_golden_dream(name: str):
    """Logits, and a case of every variant."""
    folder = GOLDEN.parent / "dream" / name
    network = oracle_networks.load(folder)
    stored = np.load(folder / "forward.npz")
    for ids, logits in zip(stored["input_ids"], stored["logits"], strict=True):
        shifted = network(ids, 0, len(ids), "full")
        assert np.abs(shifted[1:] - logits[:-1]).max() < 5e-4
        np.testing.assert_array_equal(shifted[0], shifted[1])  # nothing comes before it
    first = {c["id"].split("/")[1]: c for c in oracle_networks.golden_cases(folder)}
    assert len(first) == 29
    wrong = {v: oracle_networks.golden_differences(c, network) for v, c in first.items()}
    assert not {variant: what for variant, what in wrong.items() if what}


# ---- predictions ---------------------------------------------------------------------------------


def test_top1_excludes_the_mask_from_the_arg_max_only():
    token, mass, confidence = oracle.top1(np.log([[2.0, 1.0, 1.0, 2.0, 10.0]]), MASK)
    assert token == [0]  # not the mask, and the lowest of the two equal ones
    np.testing.assert_allclose(mass, [7.0])  # (1 + 1 + 2 + 10) / 2
    np.testing.assert_allclose(confidence, [1 / 8])


def test_rest_separates_what_float32_confidence_cannot():
    _, mass, confidence = oracle.top1(np.array([[40.0, 0, 0], [41.0, 0, 0]]), 2)
    assert confidence.astype(np.float32).tolist() == [1, 1] and mass[0] > mass[1] > 0
    assert at(oracle.schedule(row("mm"), mass, 1)) == [1]


def test_residual_of_a_hopeless_token_is_infinite():
    assert oracle.residual(np.array([0.0, 1000.0]), np.array(0)) == np.inf


def test_score_of_even_and_of_certain_distributions():
    logits = np.array([[0.0, 0, 0, 0], [100, 0, 0, 0], [5, 5, -200, -200]])
    np.testing.assert_allclose(
        oracle.score(logits, "entropy"), [-np.log(4), 0, -np.log(2)], atol=1e-8
    )
    np.testing.assert_allclose(oracle.score(logits, "topk_margin"), [0, 1, 0])


# ---- transfer ------------------------------------------------------------------------------------


def test_schedule_takes_the_most_certain_and_breaks_ties_by_position():
    masses = np.array([0.5, 0.2, 0.1, 0.2, 0.0])
    assert at(oracle.schedule(row("mmmm."), masses, 2)) == [1, 2]
    assert at(oracle.schedule(row("mmmm."), masses, 3)) == [1, 2, 3]
    assert at(oracle.schedule(row("m...m"), masses, 4)) == [0, 4]  # fewer masks than the quota
    assert at(oracle.schedule(row("....."), masses, 4)) == []


def test_quotas_put_the_remainder_first():
    assert oracle.quotas(8, 3) == [3, 3, 2]
    assert oracle.quotas(2, 4) == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("masks", "steps", "quotas"),
    [
        (16, 1, [16]),
        (16, 2, [7, 9]),  # 16 * (1 - 0.5005) = 7.99
        (4, 4, [0, 1, 1, 2]),  # 4 * 0.24975 = 0.999: nothing; 4 * 0.3329; 3 * 0.499; all
    ],
)
def test_dreams_schedule(masks: int, steps: int, quotas: list[int]):
    for step, quota in enumerate(quotas):
        assert oracle.freed(masks, step, steps) == quota
        masks -= quota
    assert masks == 0


@given(st.sampled_from([1, 2, 4, 8]), st.lists(st.integers(1, 8), min_size=16, max_size=16))
def test_room_is_each_and_what_was_refused(each: int, taken: list[int]):
    """The specification's form of it (3.6), in which a step says what it refuses to the next."""
    masked, refused = row("m" * 16), 0
    for step in range(16):
        fresh = each if step < 16 // each else 0
        assert oracle.room(masked, step, each) == fresh + refused
        writes = min(taken[step], fresh + refused)
        masked[at(masked)[:writes]] = False
        refused += fresh - writes


def test_threshold_considers_only_the_most_certain():
    c = grid(14, 16, 15, 16)
    assert at(oracle.threshold(row("mmmm"), rest(c), c, 14 / 16, 3)) == [1, 2, 3]
    assert at(oracle.threshold(row("mmmm"), rest(c), c, 15 / 16, 4)) == [1, 2, 3]
    assert at(oracle.threshold(row("mm.m"), rest(c), c, 14 / 16, 0)) == [1]  # one always


def test_threshold_accepts_equality_and_always_one():
    c = grid(14, 15, 13, 16)
    assert at(oracle.threshold(row("mmm."), rest(c), c, 14 / 16)) == [0, 1]
    c = grid(3, 5, 5, 16)
    assert at(oracle.threshold(row("mmm."), rest(c), c, 14 / 16)) == [1]  # the first of equals
    assert at(oracle.threshold(row("...."), rest(c), c, 14 / 16)) == []


@pytest.mark.parametrize(
    ("sixteenths", "committed"),
    [
        ([1], [0]),
        ([1, 1], [0, 1]),  # two are always both committed
        ([16, 1, 1], [0]),  # rank 2 fails 2/3
        ([16, 16, 1], [0, 1, 2]),  # only the last fails: committed all the same
        ([12, 16, 12, 1], [0, 1, 2, 3]),  # rank 3 equals its bound 3/4, and the last fails
        ([16, 16, 11, 11], [0, 1]),  # ranks 3 and 4 fail
        ([11, 16, 11, 16], [1, 3]),  # the same in another order
        ([13, 13, 12, 12, 12], [0, 1, 2]),  # rank 4 fails 4/5, so does the last
    ],
)
def test_factor(sixteenths: list[int], committed: list[int]):
    c = grid(*sixteenths)
    assert at(oracle.factor(np.ones(len(c), bool), rest(c), c, 1.0)) == committed


@pytest.mark.parametrize(
    ("text", "sixteenths", "radius", "committed"),
    [
        ("mmmmm", [15, 12, 12, 12, 11], 1, [0, 1]),
        ("mmmmm", [15, 12, 12, 12, 11], 3, [0, 1, 2, 3]),
        ("mmmmm", [15, 12, 12, 12, 11], 4, [0, 1, 2, 3]),  # near, and below the lower limit too
        (".mmmm", [16, 12, 12, 12, 13], 4, [4]),  # decoded ones are no anchors; the best always
        ("mmmmm", [12, 12, 14, 12, 12], 1, [1, 2, 3]),  # equal to the limits, on both sides
        ("mm.mm", [12, 1, 16, 1, 15], 4, [0, 4]),  # decoded ones are jumped over
    ],
)
def test_leap(text: str, sixteenths: list[int], radius: int, committed: list[int]):
    c = grid(*sixteenths)
    limits = oracle.leap(row(text), c, 14 / 16, 12 / 16, radius)
    assert at(oracle.threshold(row(text), rest(c), c, limits)) == committed


def test_seen_keeps_a_window_and_the_last_position():
    assert oracle.seen(10, 4, 2).tolist() == [0, 1, 2, 3, 4, 5, 9]
    assert oracle.seen(10, 4, 0).tolist() == [0, 1, 2, 3, 9]
    assert oracle.seen(10, 8, 2).tolist() == oracle.seen(10, 4, None).tolist() == list(range(10))
    assert oracle.seen(10, 10, 0).tolist() == list(range(10))


def test_factor_counts_masked_positions_only_and_takes_the_first_of_equals():
    c = grid(16, 16, 10, 10, 16)
    assert at(oracle.factor(row(".mmmm"), rest(c), c, 1.0)) == [1, 4]
    c = grid(10, 10, 10)
    assert at(oracle.factor(row("mmm"), rest(c), c, 1.0)) == [0]
    assert at(oracle.factor(row("..."), rest(c), c, 1.0)) == []


# ---- windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sixteenths", "size", "unmasked", "hit", "windows"),
    [
        ("mmm", [12, 12, 12], 3, 1, [0, 1, 2], 1),  # the mean equals the threshold 12/16
        ("mmm", [12, 11, 12], 3, 1, [], 0),
        ("mmmm", [16, 10, 10, 16], 3, 1, [0, 1, 2, 3], 2),  # two overlapping windows count twice
        (".mm", [1, 12, 12], 3, 1, [1, 2], 1),  # decoded ones add no confidence
        ("..m", [16, 16, 16], 3, 1, [], 0),  # two decoded are too many
        ("..m", [16, 16, 16], 3, None, [2], 1),  # without a limit they are not
        (".mm", [16, 16, 16], 3, 0, [], 0),
        ("...", [16, 16, 16], 3, None, [], 0),  # nothing masked
        ("mmmmm", [1, 1, 1, 16, 16], 3, 1, [], 0),
        ("mmmmm", [1, 1, 4, 16, 16], 3, 1, [2, 3, 4], 1),  # the window at the block's end
        ("mm", [16, 16], 3, 1, [], 0),  # longer than the block
        ("mm", [16, 8], 2, 0, [0, 1], 1),  # as long as the block
        ("m.m", [12, 1, 11], 1, 1, [0], 1),
    ],
)
def test_confidence_cluster(text, sixteenths, size, unmasked, hit, windows):
    found = oracle.confidence_cluster(row(text), grid(*sixteenths), size, 12 / 16, unmasked)
    assert (at(found[0]), found[1]) == (hit, windows)


@given(
    strategies.blocks(rows=16), st.integers(1, 9), strategies.sixteenths(),
    st.none() | st.integers(0, 3),
)  # fmt: skip
def test_confidence_cluster_equals_its_vectorised_form(blocks, size, limit, unmasked):
    """The formula of specification 4.3: window sums, then every position that a good one holds."""
    for mask, c in zip(blocks.masked, blocks.confidence, strict=True):
        hit, windows = oracle.confidence_cluster(mask, c, size, limit, unmasked)
        if size > len(mask):
            assert windows == 0 and not hit.any()
            continue
        ones = np.ones(size)
        n, total = np.convolve(mask, ones, "valid"), np.convolve(mask * c, ones, "valid")
        ok = (n > 0) & (total >= limit * n) & (size - n <= (size if unmasked is None else unmasked))
        assert windows == ok.sum()
        assert (hit == mask & (np.convolve(ok, ones) > 0)).all()


# ---- runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tokens", "sixteenths", "confidence", "mid", "runs"),
    [
        ("mm", [7, 7], [12, 1], [], [], 0),  # equal to the threshold 12/16 is not enough
        ("mm", [7, 7], [13, 1], [0], [1], 1),
        ("mmm", [7, 7, 7], [1, 1, 13], [2], [1], 1),
        ("mmmm", [7, 7, 7, 7], [1, 13, 13, 13], [1], [2], 1),  # the first of equals
        ("mmm", [7, 8, 7], [16, 16, 16], [], [], 0),
        ("m.m", [7, 7, 7], [16, 16, 16], [], [], 0),  # a decoded position breaks a run
        (".mm", [7, 7, 7], [16, 1, 14], [2], [2], 1),  # and lends it no confidence; run at the end
        ("mmmm", [7, 7, 8, 8], [16, 1, 1, 16], [0, 3], [1, 3], 2),  # one run right after another
        ("....", [7, 7, 7, 7], [16, 16, 16, 16], [], [], 0),
    ],
)
def test_token_cluster(text, tokens, sixteenths, confidence, mid, runs):
    for mode, expected in (("confidence", confidence), ("mid", mid)):
        found = oracle.token_cluster(
            row(text), np.array(tokens), grid(*sixteenths), 12 / 16, 2, mode
        )
        assert (at(found[0]), found[1]) == (expected, runs)


def test_token_cluster_minimum_size():
    tokens, c = np.array([7, 7, 8]), grid(16, 16, 16)
    for size, picked in ((1, [0, 2]), (2, [0]), (3, [])):
        assert at(oracle.token_cluster(row("mmm"), tokens, c, 0.5, size, "confidence")[0]) == picked


# ---- streaks -------------------------------------------------------------------------------------


def fires(
    tokens: list[int], sixteenths: list[int], steps: int, evaluate: str, active: str = ""
) -> list[int]:
    """On which passes a single position, left masked throughout, is finalised (limit 12/16).

    `active` '.' at a pass: another rule has committed it there.
    """
    streak, out = oracle.Temporal(1), []
    for i, (token, c) in enumerate(zip(tokens, sixteenths, strict=True)):
        still = row(active[i]) if active else row("m")
        if streak.update(still, row("m"), np.array([token]), grid(c), steps, 12 / 16, evaluate)[0]:
            out.append(i)
    return out


@pytest.mark.parametrize(
    ("tokens", "sixteenths", "steps", "evaluate", "passes"),
    [
        ([7, 7, 7], [1, 1, 12], 3, "last", [2]),  # the third pass of the block; equality
        ([7, 7, 7], [16, 16, 11], 3, "last", []),
        ([7, 7, 7, 7], [16, 16, 11, 12], 3, "last", [3]),  # a failed streak is kept
        ([7, 8, 8, 8], [16, 16, 16, 16], 3, "last", [3]),  # a change counts as one
        ([7] * 7, [16] * 7, 3, "last", [2, 5]),  # fired: forgotten
        ([7, 7, 7], [16, 12, 8], 3, "ave", [2]),
        ([7, 7, 7], [16, 11, 8], 3, "ave", []),
        ([7, 7, 7, 7], [4, 12, 14, 16], 2, "ave", []),  # of the whole streak: 46/64
        ([7, 7, 7, 7], [4, 12, 16, 16], 2, "ave", [3]),  # 48/64
        ([7, 7, 7], [12, 1, 1], 3, "max", [2]),
        ([8, 7, 7], [16, 11, 11], 2, "max", []),  # an earlier streak's maximum is gone
        ([0, 0], [16, 16], 2, "last", [1]),
        ([7], [12], 1, "last", [0]),
    ],
)
def test_temporal(tokens, sixteenths, steps, evaluate, passes):
    assert fires(tokens, sixteenths, steps, evaluate) == passes


def test_temporal_forgets_what_another_rule_has_committed():
    assert fires([7] * 5, [16] * 5, 3, "last", "m.mmm") == [4]


@given(strategies.histories(rows=4), st.integers(1, 4), strategies.sixteenths())
def test_temporal_fires_only_after_unchanged_passes(history, steps, limit):
    """Another statement of "last": the latest `steps` top-1 are equal and this one is certain."""
    for n in range(len(history.masked)):
        masked, streak = history.masked[n].copy(), oracle.Temporal(history.masked.shape[1])
        for t in range(len(history.tokens)):
            tokens, c = history.tokens[t, n], history.confidence[t, n]
            active = masked & ~history.taken[t, n]
            fired = streak.update(active, masked, tokens, c, steps, limit, "last")
            same = (history.tokens[max(0, t - steps + 1) : t + 1, n] == tokens).all(0)
            assert (fired == active & same & (t + 1 >= steps) & (c >= limit)).all()
            masked = active & ~fired


# ---- the loop on scripted logits -----------------------------------------------------------------


def script(*passes: tuple[list[int], list[int]]) -> tuple[oracle.Forward, list[str]]:
    """A forward that returns, pass by pass, given (tokens, sixteenths); and the kinds asked for."""
    todo, kinds = list(passes), []

    def forward(
        tokens: np.ndarray, start: int, end: int, kind: oracle.Pass, seen: np.ndarray
    ) -> np.ndarray:
        kinds.append(kind)
        top, sixteenths = todo.pop(0)
        logits = np.full((end - start, MASK + 1), -np.inf)
        for j, (token, c) in enumerate(zip(top, grid(*sixteenths), strict=True)):
            logits[j, :MASK] = np.log(max(1 - c, 1e-9) / (MASK - 1))
            logits[j, token] = np.log(c)
        return logits

    return forward, kinds


def run(forward: oracle.Forward, family: oracle.Family = "llada", **options) -> oracle.Decoded:
    """Decode with every rule off that is not named."""
    off = dict.fromkeys(("threshold", "confidence_cluster_size", "token_cluster", "temporal_steps"))
    stop = options.pop("eos_ids", ())
    return oracle.decode(forward, [1, 2], off | options, MASK, family=family, eos_ids=stop)


def test_loop_commits_in_order_and_counts():
    """Transfer takes 0, the window 1-2, the run 4-5 one token, the streak the rest of its share."""
    tokens, c = [0, 1, 2, 0, 3, 3, 1, 0], [16, 14, 14, 8, 10, 14, 8, 8]
    later = [16, 16, 16, 8, 14, 16, 14, 16]
    forward, kinds = script((tokens, c), (tokens, later), *[(tokens, [16] * 8)] * 2)
    row = run(
        forward, gen_length=8, block_length=8, threshold=15 / 16, confidence_cluster_size=2,
        spatial_threshold=13 / 16, confidence_cluster_unmasked=0, token_cluster="confidence",
        temporal_steps=2, temporal_threshold=14 / 16,
    )  # fmt: skip
    # Pass 1: 0; window (1, 2); run (4, 5): 5. Pass 2: 7; no two neighbours masked but 3, 4 (mean
    # 11/16); streaks 4 and 6. Pass 3: 3.
    assert row.committed_by.tolist() == [0, 1, 1, 0, 3, 2, 3, 0]
    assert row.tokens.tolist() == tokens and row.nfe == 3 and row.refreshes == 1
    assert kinds == ["full", "dual", "dual"]
    assert row.actual == oracle.Counts(confidence=1, token=1, temporal=2)
    assert row.potential == oracle.Counts(confidence=1, token=1, temporal=2)
    m = MASK
    assert row.states.tolist() == [
        [m] * 8, [0, 1, 2, m, m, 3, m, m], [0, 1, 2, m, 3, 3, 1, 0],
    ]  # fmt: skip


def test_rules_that_are_not_applied_count_on_the_state_after_transfer():
    tokens, c = [1, 1, 1, 1], [16, 14, 14, 14]
    forward, kinds = script(*[(tokens, c)] * 4)
    row = run(
        forward, gen_length=4, block_length=4, cache="none", apply_rules=False,
        confidence_cluster_size=2, spatial_threshold=13 / 16, token_cluster="mid",
        temporal_steps=2, temporal_threshold=14 / 16,
    )  # fmt: skip
    # One token a pass from the left. After pass 1 "-mmm" (windows 01, 12, 23), 2 "--mm" (12, 23),
    # 3 "---m" (23), 4 "----". Runs: "mmm", "mm". Streaks of two: pass 2 both of "mm"; they are
    # forgotten then, so the last one has one pass only when pass 3 ends.
    assert row.nfe == 4 and row.refreshes == 4 and kinds == ["full"] * 4
    assert row.actual == oracle.Counts() and row.committed_by.tolist() == [0] * 4
    assert row.potential == oracle.Counts(confidence=6, token=2, temporal=2)


def test_each_rule_sees_what_the_one_before_has_left():
    forward, _ = script(([1, 1, 1], [16, 14, 14]))
    row = run(
        forward, gen_length=3, block_length=3, confidence_cluster_size=2, spatial_threshold=0.5,
        token_cluster="confidence", temporal_steps=1, temporal_threshold=0.5,
    )  # fmt: skip
    assert row.committed_by.tolist() == [0, 1, 1]
    assert row.actual == oracle.Counts(confidence=2, token=0, temporal=0)
    assert row.potential == oracle.Counts(confidence=2, token=1, temporal=2)


def test_token_cluster_needs_no_window_but_a_threshold():
    for limit, nfe in ((13 / 16, 2), (None, 3)):
        forward, _ = script(*[([1, 1, 1], [14, 14, 16])] * 3)
        row = run(
            forward, gen_length=3, block_length=None, token_cluster="confidence",
            spatial_threshold=limit,
        )  # fmt: skip
        assert row.nfe == nfe


def test_dream_opens_a_block_with_its_first_token_and_calls_it_at_least_once():
    tokens, m = [0, 1, 2, 3], MASK
    passes = [(tokens, c) for c in ([5, 16, 16, 16], [16, 5, 15, 5], [16, 16, 5, 6], [16] * 4)]
    forward, kinds = script(*passes)
    row = run(forward, "dream", gen_length=4, block_length=4, threshold=15 / 16)
    assert row.states.tolist() == [[m] * 4, [0, m, m, m], [0, m, 2, m], [0, 1, 2, m]]
    assert (kinds, row.nfe, row.refreshes, row.reported) == (["full", *["dual"] * 3], 4, 1, 3)

    forward, _ = script(*[(tokens, [16] * 4)] * 2)  # the window completes the block at once
    row = run(
        forward, "dream", gen_length=4, block_length=4, threshold=15 / 16, confidence_cluster_size=4
    )
    assert row.states.tolist() == [[m] * 4, tokens] and row.reported == 1
    assert row.committed_by.tolist() == [0, 1, 1, 1]
    assert row.actual == row.potential == oracle.Counts(confidence=1)


def test_dreams_schedule_of_one_step_leaves_masks():
    forward, kinds = script(*[([0, 1], [16, 8])] * 4)
    options: dict = {
        "gen_length": 4, "block_length": 2, "steps": 2, "eos_ids": [0], "stop_at_eos": True,
    }  # fmt: skip
    row = run(forward, "dream", **options)
    assert row.tokens.tolist() == [0, MASK, 0, MASK] and row.committed_by.tolist() == [0, -1, 0, -1]
    assert (kinds, row.reported) == (["full", "dual"] * 2, 2)


def test_dreams_plain_sampler_adds_steps_until_nothing_is_masked():
    c = [[14, 16, 15, 1], [16, 1, 15, 1], [1, 1, 14, 1], [1, 1, 1, 1]]
    forward, kinds = script(*[([0, 1, 2, 3], each) for each in c])
    row = run(
        forward, "dream", gen_length=4, block_length=None, cache="none", threshold=14 / 16, steps=2
    )
    # Two are considered; two and none refused; none, and one refused: the best always.
    m = MASK
    assert row.states.tolist() == [[m] * 4, [m, 1, 2, m], [0, 1, 2, m]]
    assert kinds == ["full"] * 3 and row.nfe == row.reported == 3


@pytest.mark.parametrize("stop", [False, True])
def test_stop_at_eos_fills_the_rest_and_does_not_cut_the_block(stop: bool):
    forward, _ = script(([3, 1], [16, 16]), ([2, 2], [16, 16]), ([1, 1], [16, 16]))
    row = run(
        forward, gen_length=6, block_length=2, steps=3, stop_at_eos=stop, cache="prefix",
        eos_ids=[0, 3],
    )  # fmt: skip
    assert row.tokens.tolist() == ([3, 1, 0, 0, 0, 0] if stop else [3, 1, 2, 2, 1, 1])
    assert row.committed_by.tolist() == ([0, 0, 4, 4, 4, 4] if stop else [0] * 6)
    assert row.nfe == row.refreshes == (1 if stop else 3)


def test_factor_beats_threshold_beats_steps():
    options: dict = {"gen_length": 3, "block_length": 3, "steps": 3}
    passes = [([1, 1, 1], [16, 15, 8])] * 3
    assert run(script(*passes)[0], **options).nfe == 3
    assert run(script(*passes)[0], threshold=15 / 16, **options).nfe == 2
    assert run(script(*passes)[0], threshold=15 / 16, factor=1.0, **options).nfe == 1


def test_sampled_tokens_reach_transfer_and_windows_but_not_runs_and_streaks():
    def sample(logits: np.ndarray, nfe: int, start: int):
        assert start == 2
        return np.full(len(logits), 2), rest(grid(16, 14, 14, 4, 4))

    forward, _ = script(*[([1] * 5, [8, 8, 8, 14, 8])] * 3)
    options = dict.fromkeys(("threshold", "temporal_steps")) | dict(
        gen_length=5, block_length=5, confidence_cluster_size=2, confidence_cluster_unmasked=0
    )
    row = oracle.decode(forward, [1, 2], options, MASK, sample=sample)
    assert row.tokens.tolist() == [2, 2, 2, 1, 2]
    assert row.committed_by.tolist() == [0, 1, 1, 2, 0] and row.nfe == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gen_length": 10, "block_length": 4}, "gen_length=10, block_length=4"),
        ({"gen_length": 8, "block_length": 4, "steps": 3}, "steps=3"),
        ({"wndow_size": 3}, "wndow_size"),
        ({"stop_at_eos": True}, "eos_ids"),
    ],
)
def test_decode_refuses(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        oracle.decode(script()[0], [1], options, MASK)
