"""Tasks of lm-eval, with data from local files where they are given, and plain problem files.

Prompts, examples, stop strings and metrics are lm-eval's own: of its task definitions only where
the data comes from is changed (its `custom_dataset`), and, for code, what grades a program. A file
of questions and answers becomes a task of the same kind, so that everything is driven in one way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import datasets
import datasets.exceptions
import jinja2
import lm_eval.api.task
import lm_eval.tasks
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.tasks import TaskManager

from eval.local_data import Table, problems_of, read_table
from eval.presets import PRESETS, Preset, unknown
from eval.task_data import (
    Grade,
    all_subjects,
    given,
    graded,
    local,
    no_metric_from_the_hub,
    packaged_humaneval,
)
from r2jax.grading import is_correct, normalise

_TASKS = Path(lm_eval.tasks.__file__).parent
_NAME = re.compile(r"^['\"]?task['\"]?:[ \t]*['\"]?([^\s'\"#\[{]+)['\"]?[ \t]*(?:#.*)?$", re.M)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTask:
    """A task, ready to be evaluated any number of times."""

    name: str
    """As results call it."""
    task: ConfigurableTask
    preset: Preset | None
    num_fewshot: int
    source: str
    """In words: which definition of the task, which data."""
    accuracy: str
    """The metric that results call accuracy ("metric,filter")."""
    plain: bool = False
    """A file of questions: answers are cut as `r2jax.generate_text` does."""

    @property
    def scored(self) -> bool:
        """Nothing is generated: given answers are scored by their likelihood."""
        return self.task.OUTPUT_TYPE in ("loglikelihood", "multiple_choice")


def load_task(
    name: str,
    files: Mapping[str, Path],
    *,
    num_fewshot: int | None = None,
    grade: Grade | None = None,
) -> EvalTask:
    """A task by name: a preset, a file of problems, or any other task of lm-eval.

    Args:
      name: as on the command line.
      files: local data by split; "" is the split that is evaluated. Without: from the hub.
      num_fewshot: examples; None: the preset's, or the task's.
      grade: for presets that run code.

    Raises:
      ValueError: an unknown name; files that do not fit.
      OSError: data that cannot be read or had.
    """
    with quiet():
        if name in PRESETS:
            return _from_preset(PRESETS[name], files, num_fewshot, grade)
        if is_file_name(name):
            return _from_file(Path(name), files, num_fewshot)
        return _from_lm_eval(name, files, num_fewshot)


def is_file_name(name: str) -> bool:
    """Whether `--tasks` means a file of problems."""
    return name.endswith((".jsonl", ".jsonl.gz"))


def check_names(names: list[str]) -> None:
    """Refuse names that no task has, before anything is loaded.

    Raises:
      ValueError: naming the first, and what is known.
      OSError: a file that is not there.
    """
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ValueError(f"--tasks names {name} twice")
        if is_file_name(name):
            if not Path(name).is_file():
                raise FileNotFoundError(f"--tasks {name}: there is no such file")
        elif name not in PRESETS and name not in _definitions():
            more = ", FILE.jsonl with questions and answers, and each single task of lm-eval"
            raise ValueError(unknown("task", name, PRESETS, more))


def build_requests(task: EvalTask, model: LM, *, limit: int | None, chat: bool) -> list[Instance]:
    """All requests of a task, as `lm_eval.simple_evaluate` will make them for this model."""
    with quiet():
        task.task.set_fewshot_seed(DEFAULT_OTHER_SEED)
        task.task.build_all_requests(
            limit=limit,
            apply_chat_template=chat,
            fewshot_as_multiturn=False,
            chat_template=model.apply_chat_template if chat else None,
        )
    return [instance for instance in task.task.instances for _ in range(instance.repeats or 1)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without lm-eval's notices about its own settings, and its bar for every list of prompts."""
    logger, bar = logging.getLogger("lm_eval"), lm_eval.api.task.tqdm
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = functools.partial(bar, disable=True)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not bars:
            datasets.enable_progress_bars()
        lm_eval.api.task.tqdm = bar
        logger.setLevel(level)


@functools.cache
def _definitions() -> dict[str, Path]:
    """Where each single task of lm-eval is defined. Its own index takes 10 s, this 1."""
    found: dict[str, Path] = {}
    for file in sorted(_TASKS.rglob("*.yaml")):
        if name := _NAME.search(file.read_text(encoding="utf-8")):
            found.setdefault(name[1], file)
    return found


def _manager(folder: Path) -> TaskManager:
    return TaskManager(include_defaults=False, include_path=str(folder))


def _configured(manager: TaskManager, name: str, changes: dict[str, Any]) -> ConfigurableTask:
    """A task of lm-eval with changes to its definition."""
    spec = {"group": "r2jax", "task": [{"task": name, **changes}]}
    try:
        (task,) = manager.load(spec)["tasks"].values()
    except (KeyError, jinja2.UndefinedError) as error:
        raise ValueError(
            f"{name}: its data are not as the task wants them: {type(error).__name__}: {error}"
        ) from None
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise OSError(
            f"{name}: its data cannot be had from the hub ({error}); give it as --data {name}=FILE"
        ) from None
    return cast("ConfigurableTask", task)


def _from_preset(
    preset: Preset, files: Mapping[str, Path], num_fewshot: int | None, grade: Grade | None
) -> EvalTask:
    shots = preset.num_fewshot if num_fewshot is None else num_fewshot
    tables = {split: read_table(file) for split, file in files.items()}
    if preset.name == "humaneval" and not tables:
        tables = packaged_humaneval()
    manager = _manager(_TASKS / preset.folder)
    definition = manager.task_index[preset.task].cfg or {}
    changes: dict[str, Any] = {"num_fewshot": shots}
    if tables:
        where = _words(tables)
        changes |= local(preset.name, definition, tables, num_fewshot=shots, fields=preset.fields)
    else:
        where = "data from the hub"
        if preset.name == "minerva_math":
            changes["custom_dataset"] = all_subjects
    if preset.runs_code:
        if grade is None:
            raise ValueError(
                f"{preset.name} runs what the model writes: allow it with --allow-code"
            )
        changes |= graded(grade)
    with no_metric_from_the_hub():
        task = _configured(manager, preset.task, changes)
    return EvalTask(
        name=preset.name,
        task=task,
        preset=preset,
        num_fewshot=shots,
        source=_source(task, where, preset.accuracy),
        accuracy=preset.accuracy,
    )


def _from_file(file: Path, files: Mapping[str, Path], num_fewshot: int | None) -> EvalTask:
    """Questions, put to the model as they are; right if the number after "####" is."""
    if files or num_fewshot:
        raise ValueError(f"{file} holds its problems itself: no --data and no examples for it")
    table = read_table(file)
    problems = problems_of(table, file)
    for i, problem in enumerate(problems, start=1):
        if not problem["question"].strip():
            raise ValueError(f"{file}, problem {i}: the question is empty")
        if normalise(problem["answer"].rpartition("####")[2]) is None:
            raise ValueError(
                f"{file}, problem {i}: the answer must hold a number, got "
                f"{problem['answer'][:40]!r}"
            )
    name = file.name.split(".")[0]
    task = ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": given({"test": problems}),
            "test_split": "test",
            "output_type": "generate_until",
            "num_fewshot": 0,
            "doc_to_text": "question",
            "doc_to_target": "answer",
            "generation_kwargs": {"until": []},
            "process_results": lambda doc, found: {
                "right_number": float(is_correct(found[0], doc["answer"]))
            },
            "metric_list": [
                {"metric": "right_number", "aggregation": "mean", "higher_is_better": True}
            ],
        }
    )
    return EvalTask(
        name=name,
        task=task,
        preset=None,
        num_fewshot=0,
        source=f'{table.source}; right if the number after "####" is the reference\'s',
        accuracy="right_number,none",
        plain=True,
    )


def _from_lm_eval(name: str, files: Mapping[str, Path], num_fewshot: int | None) -> EvalTask:
    manager = _manager(_definitions()[name].parent)
    definition = manager.task_index[name].cfg or {}
    if definition.get("output_type") == "loglikelihood_rolling":
        raise ValueError(
            f"{name} needs the likelihood of whole texts, token by token, which a masked-diffusion "
            "model does not have"
        )
    if definition.get("unsafe_code"):
        raise ValueError(f"{name} runs what the model writes: only humaneval and mbpp are run here")
    shots = definition.get("num_fewshot") or 0 if num_fewshot is None else num_fewshot
    where, changes = "data from the hub", {"num_fewshot": shots}
    if files:
        tables = {split: read_table(file) for split, file in files.items()}
        where = _words(tables)
        changes |= local(name, definition, tables, num_fewshot=shots)
    with no_metric_from_the_hub():
        task = _configured(manager, name, changes)
    first = next((m for m, aggregate in task.aggregation().items() if aggregate is mean), None)
    if first is None:
        raise ValueError(
            f"{name}: none of its metrics ({', '.join(task.aggregation())}) is a mean over problems"
        )
    accuracy = f"{first},{(task.config.filter_list or [{'name': 'none'}])[0]['name']}"
    return EvalTask(
        name=name,
        task=task,
        preset=None,
        num_fewshot=shots,
        source=_source(task, where, accuracy),
        accuracy=accuracy,
    )


def _words(tables: Mapping[str, Table]) -> str:
    return "; ".join(f"{split or 'problems'}: {table.source}" for split, table in tables.items())


def _source(task: ConfigurableTask, where: str, accuracy: str) -> str:
    words = f"lm-eval {version('lm_eval')}, task {task.config.task}, version {task.VERSION}"
    if task.config.num_fewshot:
        words += ", examples in the user's one turn"
    return f"{words}; {where}; accuracy is {accuracy}"
