"""Two runs over the same problems: the statistics against oracles; what is refused and said."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from scipy import stats

from eval import compare, paired, results_file
from r2jax import DecodeConfig
from r2jax.cli import run

NAMES = ("a.json", "b.json")
SCORES = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40)


def sample(i: int, correct: float, nfe: int) -> dict[str, Any]:
    counts = {"confidence": i, "token": 1, "temporal": 2}
    return {
        "id": str(i), "prompt_sha256": f"hash of {i}", "text": "#### 1", "answer": "1",
        "correct": correct, "nfe": nfe, "refreshes": 4, "tokens": 20 + i,
        "actual": counts, "potential": {**counts, "token": 3},
    }  # fmt: skip


def result(scores: list[float], nfe: list[int], **decode: Any) -> dict[str, Any]:
    """A result file."""
    samples = [sample(i, s, n) for i, (s, n) in enumerate(zip(scores, nfe, strict=True))]
    return {
        "r2jax evaluation": 1,
        "task": {"name": "gsm8k", "num_fewshot": 5, "source": "here", "problems": len(scores),
                 "limit": None},
        "model": {"checkpoint": "tiny", "digest": "abc", "model_type": "llada",
                  "dtype": "bfloat16", "quantize": None},
        "prompt": {"chat_template": True, "truncated": 0, "longest": 80},
        "strategy": "r2",
        "decode": dataclasses.asdict(DecodeConfig(**decode)),
        "seed": 0,
        "counting": {"tokens": "before EOS", "nfe": "of the row"},
        "metrics": {"accuracy": results_file.metric(scores)},
        "means": results_file.means(samples),
        "speed": {"seconds": 1.0, "compile_seconds": 2.0, "batch_size": 4,
                  "tokens_per_second": 9.0},
        "environment": {"device": {"kind": "cpu", "platform": "cpu", "count": 1},
                        "versions": {"jax": "0.10.2"}, "date": "2026-01-01", "command": "x"},
        "samples": samples,
    }  # fmt: skip


A = result([1, 1, 0, 1, 0, 1], [60, 70, 80, 90, 64, 72])
B = result([1, 0, 1, 1, 1, 1], [50, 66, 80, 70, 60, 61])


def test_means_are_compared_as_scipy_does():
    first, second = [60, 70, 80, 90, 64, 72.5], [50, 66, 80, 70, 60, 61]
    found = paired.of_means(first, second)
    interval = stats.ttest_rel(second, first).confidence_interval(0.95)
    assert found.value == pytest.approx(np.mean(second) - np.mean(first))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_mcnemar_by_hand():
    # 1 lost and 5 gained: 2 (C(6, 0) + C(6, 1)) / 2^6
    first, second = [1, 0, 0, 0, 0, 0, 1, 0], [0, 1, 1, 1, 1, 1, 1, 0]
    assert paired.discordant(first, second) == (1, 5, pytest.approx(14 / 64))


def test_scores_by_hand():
    """Of ten problems one lost and three gained: Bonett and Price's 2/12 and 4/12."""
    found = paired.of_scores([1, 0, 0, 0] + 6 * [1], [0, 1, 1, 1] + 6 * [1])
    half = 1.959964 * math.sqrt((6 / 12 - (2 / 12) ** 2) / 12)
    assert found == pytest.approx((0.2, 2 / 12 - half, 2 / 12 + half), abs=1e-6)


@pytest.mark.parametrize("n", [20, 60])
@pytest.mark.parametrize(("lose", "gain"), [(0.02, 0.02), (0.05, 0.15), (0.01, 0.05), (0.3, 0.3)])
def test_the_interval_holds_the_truth_as_often_as_it_says(n: int, lose: float, gain: float):
    """Exactly: summed over all outcomes of n problems."""
    law = stats.multinomial(n, [lose, gain, 1 - lose - gain])
    held = 0.0
    for lost in range(n + 1):
        for gained in range(n + 1 - lost):
            probability = law.pmf([lost, gained, n - lost - gained])
            if probability < 1e-9:
                continue
            first = [1] * lost + [0] * gained + [1] * (n - lost - gained)
            second = [0] * lost + [1] * gained + [1] * (n - lost - gained)
            found = paired.of_scores(first, second)
            held += probability * (found.low <= gain - lose <= found.high)
    assert held >= 0.94


@given(SCORES)
def test_the_other_way_round_the_signs_change(scores: list[tuple[bool, bool]]):
    first, second = ([float(pair[i]) for pair in scores] for i in (0, 1))
    for of in (paired.of_means, paired.of_scores):
        there, back = of(first, second), of(second, first)
        assert back == pytest.approx((-there.value, -there.high, -there.low))
        assert there.low <= there.value <= there.high
    lost, gained, p = paired.discordant(first, second)
    assert paired.discordant(second, first) == (gained, lost, p)
    assert lost - gained == sum(first) - sum(second) and 0 < p <= 1


def test_a_run_against_itself_differs_in_nothing():
    found = compare.compare(A, copy.deepcopy(A), NAMES)
    assert all(m["value"] == 0 for m in found["metrics"].values())
    assert found["metrics"]["NFE"]["low"] == found["metrics"]["NFE"]["high"] == 0
    assert found["metrics"]["accuracy"]["low"] < 0 < found["metrics"]["accuracy"]["high"]
    assert found["mcnemar"] == {"first_alone": 0, "second_alone": 0, "p": 1.0}
    assert found["circumstances"] == {} and found["problems"] == 6


@given(st.permutations(range(6)), st.permutations(range(6)))
def test_the_order_of_the_samples_does_not_matter(first: list[int], second: list[int]):
    mixed_a = {**A, "samples": [A["samples"][i] for i in first]}
    mixed_b = {**B, "samples": [B["samples"][i] for i in second]}
    found, wanted = compare.compare(mixed_a, mixed_b, NAMES), compare.compare(A, B, NAMES)
    for name, metric in wanted["metrics"].items():
        assert found["metrics"][name] == pytest.approx(metric)
    assert found["mcnemar"] == wanted["mcnemar"]


def test_each_problem_is_compared_to_itself():
    metrics = compare.compare(A, B, NAMES)["metrics"]
    assert metrics["NFE"]["value"] == pytest.approx((-10 - 4 + 0 - 20 - 4 - 11) / 6)
    assert metrics["accuracy"]["value"] == pytest.approx(1 / 6)
    assert metrics["R_total actual"]["first"] == pytest.approx(2.5 + 3)
    assert metrics["R_total potential"]["second"] == pytest.approx(2.5 + 5)


def test_partial_scores_get_no_exact_test():
    half = result([0.5, 1, 0, 1, 0, 1], [60, 70, 80, 90, 64, 72])
    found = compare.compare(A, half, NAMES)
    assert found["mcnemar"] is None
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(-0.5 / 6)


def test_every_circumstance_that_differs_is_listed():
    other = result([1] * 6, [60] * 6, threshold=0.7, cache="prefix")
    other["model"]["digest"] = "def"
    other["prompt"]["chat_template"] = False
    other["environment"]["device"]["kind"] = "NVIDIA H100"
    other["environment"]["versions"] = {"jax": "0.11.2", "driver": "580"}
    other["environment"]["date"] = "2026-02-02"
    assert compare.compare(A, other, NAMES)["circumstances"] == {
        "model.digest": ["abc", "def"],
        "prompt.chat_template": [True, False],
        "decode.cache": ["dual", "prefix"],
        "decode.threshold": [0.9, 0.7],
        "environment.device.kind": ["cpu", "NVIDIA H100"],
        "environment.versions.jax": ["0.10.2", "0.11.2"],
        "environment.versions.driver": [None, "580"],
    }


def changed(**samples: dict[str, Any]) -> dict[str, Any]:
    """A with some fields of some samples replaced: `_2={"id": "9"}`."""
    other = copy.deepcopy(A)
    for name, fields in samples.items():
        other["samples"][int(name[1:])] |= fields
    return other


def test_other_tasks_problems_and_prompts_are_refused():
    task = copy.deepcopy(A)
    task["task"]["name"] = "math"
    with pytest.raises(ValueError, match=r"a\.json and b\.json are of different tasks: gsm8k and"):
        compare.compare(A, task, NAMES, common=True)
    problems = changed(_2={"id": "9"})
    with pytest.raises(ValueError, match=r"5 problems in common; 1 are in the first alone, 1 in"):
        compare.compare(A, problems, NAMES)
    prompts = changed(_2={"prompt_sha256": "x"}, _3={"prompt_sha256": "y"})
    with pytest.raises(ValueError, match="2 of 6 problems with other prompts"):
        compare.compare(A, prompts, NAMES)
    none = changed(**{f"_{i}": {"prompt_sha256": "x"} for i in range(5)})
    with pytest.raises(ValueError, match="needs two problems in common, not 1"):
        compare.compare(A, none, NAMES, common=True)


def test_what_is_left_out_is_said():
    problems = changed(_2={"id": "9", "correct": 1.0})
    found = compare.compare(A, problems, NAMES, common=True)
    assert found["problems"] == 5 and found["metrics"]["accuracy"]["value"] == 0
    assert "5 problems in common; 1 are in the first alone, 1 in the second" in found["said"][0]
    prompts = changed(_2={"prompt_sha256": "x", "correct": 1.0})
    found = compare.compare(A, prompts, NAMES, common=True)
    assert found["problems"] == 5 and "1 of 6 problems with other prompts" in found["said"][0]
    found = compare.compare(A, prompts, NAMES, other_prompts=True)
    assert found["problems"] == 6 and "1 of 6 problems were asked" in found["said"][0]
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(1 / 6)


def test_the_command_compares_each_to_the_first(tmp_path: Path, capsys):
    paths = []
    for name, content in (("a", A), ("b", B), ("c", result([1] * 6, [40] * 6, threshold=0.5))):
        paths.append(str(tmp_path / f"{name}.json"))
        results_file.write(paths[-1], content)
    output = tmp_path / "out.json"
    assert run("program", lambda: compare.main([*paths, "--output", str(output)])) == 0
    out = capsys.readouterr().out
    assert "-8.17" in out and "6 problems, paired." in out
    assert "Right in A alone: 1, in B alone: 2; McNemar's exact test: p = 1." in out
    assert "Their circumstances are the same." in out and "decode.threshold" in out
    comparisons = json.loads(output.read_text())["comparisons"]
    assert [c["files"] for c in comparisons] == [paths[:2], [paths[0], paths[2]]]
    assert comparisons[0]["metrics"]["NFE"]["value"] == pytest.approx(-49 / 6)


def test_mistakes_are_one_line(tmp_path: Path, capsys):
    good, bad, twice = (tmp_path / f"{name}.json" for name in ("good", "bad", "twice"))
    results_file.write(good, A)
    bad.write_text('{"results": []}')
    twice.write_text(json.dumps(changed(_2={"id": "1"})))
    for words, message in (
        ([good, tmp_path / "none.json"], "none.json"),
        ([good, bad], "bad.json"),
        ([good, twice], "an id stands twice"),
        ([good, good, "--output", "/nowhere/x.json"], "no such directory"),
    ):
        assert run("program", lambda words=words: compare.main(list(map(str, words)))) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
