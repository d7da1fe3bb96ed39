"""What lm-eval asks, what the model is given, and what of its answer lm-eval sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.tasks import TaskManager

import r2jax
from eval import adapter, lm_tasks
from eval.answers import as_original, cut
from eval.lazy_model import LazyModel
from eval.lm_tasks import build_requests, load_task
from r2jax.text import encode
from tests import tiny_checkpoint as tiny

GSM = [{"question": f"What is {i} + {i}?", "answer": f"{i}+{i}\n#### {2 * i}"} for i in range(12)]
MATH = [{"problem": f"Find ${i}+1$.", "solution": rf"It is $\boxed{{{i + 1}}}$."} for i in range(3)]
CODE = [
    {"task_id": f"HumanEval/{i}", "prompt": "def f():\n", "entry_point": "f", "test": "assert 1"}
    for i in range(2)
]
MBPP = [
    {"task_id": i, "text": f"Do {i}.", "code": "c", "test_list": ["a", "b", "c"]} for i in (11, 12)
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> LazyModel:
    directory = tiny.write_checkpoint(tmp_path_factory.mktemp("tiny"), max_sequence_length=2048)
    return LazyModel(str(directory), dtype="float32")


@pytest.fixture(scope="module")
def dream(tmp_path_factory: pytest.TempPathFactory) -> LazyModel:
    return LazyModel(str(tiny.write_dream(tmp_path_factory.mktemp("dream"))), dtype="float32")


def model_of(source: LazyModel, **options: Any) -> adapter.R2JaxLM:
    decode = r2jax.DecodeConfig(gen_length=16, block_length=8)
    return adapter.R2JaxLM(source, decode, **options)


def ask(text: str, until: list[str] | None = None, **options: Any) -> Instance:
    kwargs = {"until": until or [], **options}
    return Instance("generate_until", {"task_id": "t"}, (text, kwargs), 0, ("task", 0, 1))


class Dummy(LM):
    """lm-eval's own view of a task: records what it is asked, answers the same each time."""

    def __init__(self, answer: str = "", tokenizer: Any = None) -> None:
        super().__init__()
        self.answer, self.tokenizer = answer, tokenizer
        self.asked: list[tuple[Any, ...]] = []

    def generate_until(self, requests: list[Instance]) -> list[str]:
        self.asked = [request.args for request in requests]
        return [self.answer] * len(requests)

    @property
    def tokenizer_name(self) -> str:
        return "dummy"

    def apply_chat_template(self, chat_history, add_generation_prompt=True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def loglikelihood(self, requests):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def evaluated(model: LM, task: Any, manager: TaskManager | None = None, chat=False) -> Any:
    evaluate: Any = lm_eval.simple_evaluate  # its decorator hides its arguments
    return evaluate(
        model,
        tasks=[task],
        task_manager=manager or TaskManager(include_defaults=False),
        bootstrap_iters=0,
        apply_chat_template=chat,
        fewshot_as_multiturn=False,
    )


# ---- prompts -------------------------------------------------------------------------------------


def lm_evals_own(name: str, tmp_path: Path, files: dict[str, Path]) -> Any:
    """A task as lm-eval itself defines it, which reads local files by its own means."""
    folder = lm_tasks._TASKS / lm_tasks.PRESETS[name].folder
    manager = TaskManager(include_defaults=False, include_path=str(folder))
    data = {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: str(file) for split, file in files.items()},
            "cache_dir": str(tmp_path / "cache"),
        },
    }
    spec = {"group": "own", "task": [{"task": lm_tasks.PRESETS[name].task, **data}]}
    with lm_tasks.no_metric_from_the_hub():
        (found,) = manager.load(spec)["tasks"].values()
    task: Any = found
    task.UNSAFE_CODE = False
    task.override_metric("bypass")
    return task


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(
    ("name", "rows"), [("gsm8k", GSM[:3]), ("math500", MATH), ("humaneval", CODE), ("mbpp", MBPP)]
)
def test_prompts_and_stops_are_lm_evals_own(
    name: str, rows: list[dict[str, Any]], chat: bool, source: LazyModel, tmp_path: Path
):
    """As lm-eval asks a dummy model; few-shot examples, sampled or written out, included."""
    files = {"test": write(tmp_path / "test.jsonl", rows)}
    if name == "gsm8k":
        files["train"] = write(tmp_path / "train.jsonl", GSM[3:])
    dummy = Dummy(tokenizer=source.tokenizer)
    evaluated(dummy, lm_evals_own(name, tmp_path, files), chat=chat)

    given = {"" if split == "test" else split: file for split, file in files.items()}
    task = load_task(name, given, grade=lambda docs, texts: [True] * len(docs))
    model = model_of(source)
    requests = build_requests(task, model, limit=None, chat=chat)
    assert [request.args for request in requests] == dummy.asked
    again = Dummy(tokenizer=source.tokenizer)
    evaluated(again, task.task, chat=chat)
    assert again.asked == dummy.asked
    shots = {"gsm8k": 5, "math500": 4, "humaneval": 0, "mbpp": 3}[name]
    assert task.num_fewshot == shots
    marks = {"gsm8k": "Question:", "math500": "Problem:", "humaneval": "def f", "mbpp": "[BEGIN]"}
    assert all(asked[0].count(marks[name]) == shots + 1 for asked in dummy.asked)


def test_the_model_is_given_what_the_original_evaluator_gives_it(source: LazyModel):
    """The few-shot text as the user's one turn; without the template the text alone."""
    text = "Question: 1\nAnswer: 1\n\nQuestion: 2\nAnswer:"
    plain, chat = model_of(source), model_of(source)
    rendered = chat.apply_chat_template([{"role": "user", "content": text}])
    (ids,) = chat.prepare([ask(rendered)]).prompts
    assert ids.tolist() == encode(source.tokenizer, [text])[0]
    (ids,) = plain.prepare([ask(text)]).prompts
    assert source.tokenizer.decode(ids.tolist()) == text


def test_dreams_plain_text_begins_with_its_start(dream: LazyModel):
    (ids,) = model_of(dream).prepare([ask("Anna has")]).prompts
    assert dream.tokenizer.decode(ids.tolist()) == "<|beginoftext|>Anna has"
    chat = model_of(dream)
    rendered = chat.apply_chat_template([{"role": "user", "content": "Anna has"}])
    (ids,) = chat.prepare([ask(rendered)]).prompts
    assert ids.tolist() == encode(dream.tokenizer, ["Anna has"])[0]


def test_too_long_prompts_are_refused_or_cut_at_their_beginning(dream: LazyModel):
    requests = [ask("Anna"), ask("She has 3 + 4 = 7 apples. " * 40)]
    with pytest.raises(
        ValueError, match=r"task, problem 0: the prompt has \d+ tokens .* 240 beside"
    ):
        model_of(dream).prepare(requests)
    prepared = model_of(dream, truncate=True).prepare(requests)
    assert prepared.truncated == 1 and prepared.longest == 240
    whole = model_of(dream).tok_encode(requests[1].args[0])
    assert prepared.prompts[1].tolist() == whole[-240:]


def test_a_task_that_samples_needs_a_temperature(source: LazyModel):
    with pytest.raises(ValueError, match=r"samples at temperature 0\.2"):
        model_of(source).prepare([ask("a", do_sample=True, temperature=0.2)])


# ---- cuts ----------------------------------------------------------------------------------------


@given(
    st.text(alphabet="ab\n#Q:", max_size=30),
    st.lists(st.text(alphabet="ab\n#Q:", max_size=2), max_size=3),
)
def test_the_cut_is_lm_evals(text: str, until: list[str]):
    assert cut(text, until) == postprocess_generated_text(text, until, None)


def ids_of(source: LazyModel, text: str) -> list[int]:
    return source.tokenizer(text)["input_ids"]  # type: ignore[index]


def test_llada_is_cut_at_stops_and_counted_again(source: LazyModel):
    """Special tokens end nothing and are left out; all but end-of-text ones count."""
    options: Any = {"model_type": "llada", "eos_id": source.config.eos_id}
    text = f"She has 7 apples.<|eot_id|>{tiny.EOS}{tiny.EOS} and\n\nQuestion: 5?"
    found = as_original(source.tokenizer, ids_of(source, text), ["Question:", "Q"], **options)
    assert found.text == "She has 7 apples. and\n\n"
    kept = ids_of(source, "She has 7 apples.<|eot_id|> and\n\n")
    assert found.tokens == len(kept)
    whole = as_original(source.tokenizer, ids_of(source, text), ["7"], whole=True, **options)
    assert whole.text == "She has 7 apples. and\n\nQuestion: 5?"
    assert whole.tokens == len(ids_of(source, text)) - 2


def test_dream_is_cut_at_its_end_and_counted_before(dream: LazyModel):
    options: Any = {"model_type": "Dream", "eos_id": dream.config.eos_id}
    text = f"7 apples<|im_end|>. Question{tiny.EOS}{tiny.EOS} more"
    ids = ids_of(dream, text)
    found = as_original(dream.tokenizer, ids, ["Question"], **options)
    assert found == ("7 apples<|im_end|>. ", len(ids) - 2)
    whole = as_original(dream.tokenizer, ids, ["apples"], whole=True, **options)
    assert whole.text == "7 apples<|im_end|>. Question"


# ---- answers -------------------------------------------------------------------------------------

TEXTS = ["Anna has 3 apples", "A box holds 12 eggs. " * 4, "She", "How many eggs", "5 boxes hold"]


def test_batches_give_what_single_requests_give(source: LazyModel):
    """Exactly, in float32: texts and counts; in the order of the requests."""
    rows = [ask(text, ["\n"]) for text in TEXTS]
    alone, together = model_of(source, batch_size=1), model_of(source, batch_size=3)
    assert alone.generate_until(rows) == together.generate_until(rows)
    names = ("text", "tokens", "nfe", "refreshes", "actual", "potential")
    for a, b in zip(alone.answers, together.answers, strict=True):
        assert [a[name] for name in names] == [b[name] for name in names]
    prompts = [ids_of(source, text) for text in TEXTS]
    out = r2jax.generate(source.model, prompts, together.decode)
    assert [answer["nfe"] for answer in together.answers] == np.asarray(out.nfe).tolist()
    for answer, tokens in zip(together.answers, np.asarray(out.tokens), strict=True):
        text = source.tokenizer.decode(tokens.tolist())
        assert answer["text"] == source.tokenizer.decode(
            ids_of(source, str(text).split("\n")[0]), skip_special_tokens=True
        )


def test_humaneval_as_a_chat_is_not_cut(source: LazyModel):
    """Which of the original's two ways applies: by the document, and by the template."""
    row = {"ids": ids_of(source, "a\nprint b"), "nfe": 1}
    request = Instance("generate_until", CODE[0], ("p", {"until": ["\nprint"]}), 0, ("h", 0, 1))
    for chat, wanted in ((True, "a\nprint b"), (False, "a")):
        model = model_of(source)
        model.keeper.append({0: dict(row)})
        model.chat = chat
        assert model.generate_until([request]) == [wanted]


def test_code_is_graded_by_the_grader_and_never_run_here(tmp_path: Path):
    """lm-eval's filter hands documents and cut answers over; its own metric is not asked."""
    seen: list[tuple[list[Any], list[str]]] = []

    def grade(docs: list[dict[str, Any]], texts: list[str]) -> list[bool]:
        seen.append((docs, texts))
        return [True, False]

    files = {"": write(tmp_path / "code.jsonl", CODE)}
    mark = tmp_path / "ran"
    program = f"    open({str(mark)!r}, 'w')\nopen({str(mark)!r}, 'w')"
    found = evaluated(Dummy(program), load_task("humaneval", files, grade=grade).task)
    assert found["results"]["humaneval"]["pass@1,none"] == 0.5
    ((docs, texts),) = seen
    assert docs == CODE and texts == [program] * 2 and not mark.exists()


def test_a_file_of_questions_is_graded_by_the_number(tmp_path: Path):
    file = write(tmp_path / "sums.v1.jsonl", GSM[:4])
    task = load_task(str(file), {})
    found = evaluated(Dummy("Two and two\nmake #### 4."), task.task)
    assert found["results"]["sums"]["right_number,none"] == 1 / 4
    assert [asked[0] for asked in build(task)] == [row["question"] for row in GSM[:4]]


def build(task: lm_tasks.EvalTask) -> list[tuple[Any, ...]]:
    return [request.args for request in build_requests(task, Dummy(), limit=None, chat=False)]


def test_scores_through_lm_eval(source: LazyModel):
    """Registered, made from lm-eval's arguments: the pairs are lm-eval's, in order."""
    model = adapter.R2JaxLM.create_from_arg_string(
        f"checkpoint={source.directory},strategy=r2,mc_num=3,dtype=float32,check_greedy=False",
        {"batch_size": "2", "device": None},
    )
    rows = [
        Instance("loglikelihood", {}, pair, 0, ("task", i, 1))
        for i, pair in enumerate([("Anna has ", "3 apples"), ("Anna has", " 4"), ("", "She")])
    ]
    prepared = model.prepare(rows)
    decode = source.tokenizer.decode
    pairs = zip(prepared.prompts, prepared.targets, strict=True)
    texts = [(decode(a.tolist()), decode(b.tolist())) for a, b in pairs]
    assert texts == [("Anna has", " 3 apples"), ("Anna has", " 4"), ("", "She")]
    values = model.loglikelihood(rows)
    assert all(value < 0 and greedy is False for value, greedy in values)
    assert [a["nfe"] for a in model.answers] == [3, 3, 3]
    assert [a["tokens"] for a in model.answers] == [len(t) for t in prepared.targets]
    again = model_of(source, mc_num=3, check_greedy=False, batch_size=1)
    assert again.loglikelihood(rows[::-1]) == values[::-1]


def test_dream_scores_need_a_context(dream: LazyModel):
    row = Instance("loglikelihood", {}, ("", "She"), 0, ("task", 0, 1))
    assert model_of(dream).prepare([row]).prompts[0].tolist() == [dream.tokenizer.bos_token_id]


def test_likelihood_token_by_token_is_refused(source: LazyModel):
    with pytest.raises(ValueError, match="no likelihood of a text token by token"):
        model_of(source).loglikelihood_rolling([])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("strategy=r2", "must name a checkpoint"),
        ("checkpoint={},strategy=r3", "unknown strategy 'r3'; known are vanilla, fast_dllm"),
        ("checkpoint={},mc_num=0", "mc_num must be at least 1"),
        ("checkpoint={},gen_length=33", "strategy r2: gen_length must be a multiple"),
    ],
)
def test_arguments_are_refused_by_name(words: str, message: str, source: LazyModel):
    with pytest.raises(ValueError, match=message):
        adapter.R2JaxLM.create_from_arg_string(words.format(source.directory))
