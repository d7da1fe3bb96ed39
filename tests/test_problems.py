"""Problems are solved right, in many words, and training never sees a held-out question."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path
from random import Random

import numpy as np
import pytest

from r2jax.grading import is_correct
from train.corpus import ANSWER, PROMPT, held_out, make_shard, write_corpus
from train.gsm8k import read_gsm8k
from train.problems import compute, drill, instance, is_held_out, number, problem
from train.templates import TEMPLATES
from train.wording import solution

TOKENIZER = Path(__file__).parents[1] / "r2jax" / "models" / "llada-gsm-6m"
_CHAIN = re.compile(r"[\d.%$€£*/+\- x]+(?:=[\d.%$€£*/+\- x]+)+")


_SPOKEN = {
    "plus": "+",
    "minus": "-",
    "less": "-",
    "times": "*",
    "multiplied by": "*",
    "divided by": "/",
    "over": "/",
}
_SENTENCE = re.compile(rf"([\d.]+) ({'|'.join(_SPOKEN)}) ([\d.]+) (?:is|equals|makes|gives) ")


def _in_signs(text: str) -> str:
    text = re.sub(r"(?<=[\d%]) of (?=\d)", " * ", text)
    return _SENTENCE.sub(lambda found: f"{found[1]}{_SPOKEN[found[2]]}{found[3]}=", text)


def _value(text: str) -> Fraction | None:
    """An expression of + - * / and %, from left to right by precedence; None if it is none."""
    terms = re.findall(r"\d+(?:\.\d+)?|[-+*/%]", re.sub(r"x", "*", text))
    total, product, sign, operator = Fraction(0), None, 1, "*"
    for term in terms:
        if term in "+-":
            if product is None:
                return None
            total, product, sign = total + sign * product, None, 1 if term == "+" else -1
            operator = "*"
        elif term in "*/":
            operator = term
        elif term == "%":
            product = product and product / 100
        elif product is None:
            product = Fraction(term)
        elif operator == "*":
            product *= Fraction(term)
        else:
            product /= Fraction(term)
    return None if product is None else total + sign * product


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_equation_of_every_template_holds(template: int) -> None:
    rng = Random(template)
    found = [made for seed in range(40) if (made := instance(template, seed))]
    assert len(found) >= 8, "most of a template's instances must be usable"
    for made in found:
        text = solution(made, rng)
        assert is_correct(text, made.answer)
        assert text.endswith(f"\n#### {made.answer}")
        assert not re.search(r"\d\.\d{5}|  |\b(\w+) \1\b|[{}|]", text), text
        for sentence in re.split(r"\.\s", _in_signs(text)):
            for chain in _CHAIN.findall(sentence):
                values = {_value(side) for side in chain.split("=")}
                assert len(values) == 1, f"{chain!r} in {text!r}"


def test_a_problem_has_many_wordings() -> None:
    made = instance(48, 1)
    assert made is not None
    assert len({solution(made, Random(seed)) for seed in range(200)}) == 200


def test_drills_equal_what_python_computes() -> None:
    for seed in range(300):
        made = drill(seed)
        expression = re.sub(r"[^\d()+\-*/ ]", "", made.question)
        assert eval(expression) == int(made.answer)


@pytest.mark.parametrize(
    ("operator", "operands", "result"),
    [("+", (1, 2, 3), 6), ("-", (9, 2), 7), ("%", (20, 50), 10), ("@", (1, 4), 25)],
)
def test_compute(operator: str, operands: tuple[int, ...], result: int) -> None:
    assert compute(operator, tuple(map(Fraction, operands))) == result


def test_compute_refuses_other_operators() -> None:
    with pytest.raises(ValueError, match="operator must be"):
        compute("^", (Fraction(1), Fraction(2)))


def test_numbers_are_exact_or_absent() -> None:
    assert number(Fraction(5, 4)) == "1.25"
    assert number(Fraction(1, 3)) is None


def test_held_out_questions_are_never_trained_on() -> None:
    rng = Random(0)
    trained = {problem(rng).question for _ in range(3000)}
    tested = [row["question"] for row in held_out(300, 0, TOKENIZER)]
    assert len(set(tested)) == 300
    assert not trained.intersection(tested)
    assert all(map(is_held_out, tested))
    assert not any(map(is_held_out, trained))


def test_corpus_does_not_depend_on_the_processes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("train.corpus.SHARD", 200)
    write_corpus(tmp_path / "one", 300, 7, TOKENIZER, None, 1)
    write_corpus(tmp_path / "two", 300, 7, TOKENIZER, None, 2)
    for name in ("tokens", "prompt_length", "length"):
        one, two = (np.load(tmp_path / d / f"{name}.npy") for d in ("one", "two"))
        np.testing.assert_array_equal(one, two)
    meta = json.loads((tmp_path / "one" / "meta.json").read_text())
    assert meta["eos_id"] == meta["pad_id"] == 1
    assert not list(tmp_path.glob("*.part"))


def test_shard_rows_fit_and_end_in_padding() -> None:
    shard = make_shard(0, 64, 1, TOKENIZER, None)
    assert shard.tokens.shape == (64, PROMPT + ANSWER)
    answer = shard.length - shard.prompt_length
    assert answer.max() <= ANSWER
    assert np.median(answer) > 100
    for row, length in zip(shard.tokens, shard.length, strict=True):
        assert row[length - 1] == 7, "the answer ends its turn"
        assert (row[length:] == 1).all()


def test_gsm8k_loses_its_annotations(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "2+3=<<2+3=5>>5\n#### 5"}) + "\n")
    assert read_gsm8k(path) == [("q", "2+3=5\n#### 5")]
    path.write_text('{"question": "q"}\n')
    with pytest.raises(ValueError, match="line 1"):
        read_gsm8k(path)
