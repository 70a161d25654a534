"""lm-eval's tasks as a suite wants them: with its data, its generation settings, its shots.

Rows that a task takes from a `data` of its own are checked before anything is evaluated.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from mlflow_scalpel.data.conversations import EARLIER
from mlflow_scalpel.data.sources import check_matched, load
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.evaluation.grading import golds_are_readable
from mlflow_scalpel.evaluation.grading.unreadable import readable_golds
from mlflow_scalpel.evaluation.suite import Suite, SuiteTask


@dataclass(frozen=True)
class Work:
    """lm-eval tasks (several for a group) whose completions serve one or more suite tasks."""

    tasks: list[Task]
    entries: list[SuiteTask]
    group: Group | None = None
    """The group that the tasks are of, where the suite names one."""


def build_works(suite: Suite) -> list[Work]:
    """lm-eval's tasks for the suite, each with the suite tasks that it serves."""
    if suite.tasks_folder is None:
        manager = TaskManager()
    else:
        manager = TaskManager(include_path=str(suite.tasks_folder), include_defaults=False)
    entries: dict[str, list[SuiteTask]] = {}
    for entry in suite.tasks:
        if entry.task not in manager.all_tasks:
            where = suite.tasks_folder or "lm-eval's own tasks"
            raise ScalpelError(
                f"suite {suite.name}: there is no task {entry.task} under {where}; name one that "
                "its `task:` line gives, or correct tasks_folder"
            )
        entries.setdefault(entry.work, []).append(entry)
    works = []
    for members in entries.values():
        tasks, group = _load_tasks(manager, members[0])
        for task in tasks:
            for member in members:
                _check_task(task, member)
        works.append(Work(tasks, members, group))
    return works


def _load_tasks(manager: TaskManager, entry: SuiteTask) -> tuple[list[Task], Group | None]:
    spec: Any = entry.task
    if entry.data is not None:
        rows = task_rows(entry).rows  # of which the stage has warned
        # An inline group is how lm-eval takes a task by name with some of its settings replaced.
        spec = {"group": f"{entry.label}-data", "task": [{"task": entry.task, **_own_rows(rows)}]}
    try:
        loaded = manager.load([spec])
    except OSError as error:  # what `datasets` raises where a hub dataset cannot be had
        raise ScalpelError(
            f"task {entry.task}: its data cannot be loaded: {error}. Connect to the hub, or give "
            f"a local file as data.{entry.label}.file"
        ) from error
    except IndexError as error:  # lm-eval looks at the first problem of each task
        raise ScalpelError(
            f"task {entry.task}: it has no problem, or a task of the group has none ({error}); "
            "correct its data or its process_docs, or leave it out of the suite"
        ) from error
    tasks = list(loaded["tasks"].values())
    for task in tasks:
        settings = dict(task.get_config("generation_kwargs") or {})
        if entry.generation is not None:
            task.set_config("generation_kwargs", _generation_kwargs(entry, settings.get("until")))
        task.set_config("num_fewshot", entry.shots)
    return tasks, loaded["groups"].get(entry.task)


def _own_rows(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Settings that make a task take `rows` as its test split, and nothing from elsewhere."""
    import datasets

    test = datasets.Dataset.from_list(one_type_a_column(rows))
    return {
        "custom_dataset": _Rows(test),
        "test_split": "test",
        "validation_split": None,
        "training_split": None,
        "fewshot_split": None,
        "dataset_kwargs": None,
    }


class _Rows:
    """lm-eval's `custom_dataset`: a call that gives the splits."""

    def __init__(self, test: Any) -> None:
        self._test = test

    def __call__(self, **_: Any) -> dict[str, Any]:
        return {"test": self._test}


def _generation_kwargs(entry: SuiteTask, own_until: Any) -> dict[str, Any]:
    settings = entry.generation
    assert settings is not None
    until = own_until if settings.until is None else settings.until
    kwargs: dict[str, Any] = {
        "until": [until] if isinstance(until, str) else list(until or []),
        "max_gen_toks": settings.max_new_tokens,
        "do_sample": settings.do_sample,
    }
    if settings.do_sample:
        # All of them are given: transformers would otherwise keep the 50 likeliest tokens only.
        kwargs["temperature"] = settings.temperature
        kwargs["top_p"] = 1.0 if settings.top_p is None else settings.top_p
        kwargs["top_k"] = 0 if settings.top_k is None else settings.top_k
    return kwargs


def _check_task(task: Any, entry: SuiteTask) -> None:
    generates = task.OUTPUT_TYPE == "generate_until"
    if generates != (entry.generation is not None):
        raise ScalpelError(
            f"{entry.metric_name}: the task {entry.task} "
            + ("generates; give it `generation`" if generates else "compares likelihoods; set ")
            + ("" if generates else "generation to null")
        )
    if entry.grader == "task" and entry.metric not in task.aggregation():
        raise ScalpelError(
            f"{entry.metric_name}: the task {entry.task} has no metric {entry.metric}; "
            f"use one of {', '.join(task.aggregation())}"
        )
    filters = [ensemble.name for ensemble in task._filters]
    if entry.grader == "task" and entry.filter not in filters:
        raise ScalpelError(
            f"{entry.metric_name}: the task {entry.task} has no filter {entry.filter}; "
            f"use one of {', '.join(filters)}"
        )
    if getattr(task, "UNSAFE_CODE", False):
        raise ScalpelError(
            f"{entry.metric_name}: the task {entry.task} runs code that the model wrote, which "
            "this does not do; leave it out of the suite"
        )


_MATHEMATICS = ("math_verify", "math_verify_or_number")  # graders, and names of their scores
_NEEDS = ("problem", "answer")


@dataclass(frozen=True)
class TaskRows:
    """The rows of a task's `data`, and a warning about them."""

    rows: list[dict[str, Any]]
    line: str | None
    """How many were left out, and why."""
    warnings: list[str]
    unreadable: int = 0
    """Gold answers among the rows that cannot be read, which a warning mentions."""


def task_rows(entry: SuiteTask) -> TaskRows:
    """The rows of the task's `data`, with a warning where gold answers cannot be read.

    Raises ScalpelError where all or most cannot, and for conversations: a task asks one question.
    """
    assert entry.data is not None
    loaded, unreadable = load(entry.data, needs=_NEEDS), None
    if entry.grader in _MATHEMATICS or entry.metric in _MATHEMATICS:
        loaded, unreadable = readable_golds(loaded, entry.data, _gold(entry))
    else:
        check_matched(loaded, entry.data)
    for row in loaded.rows:
        if row[EARLIER]:
            raise ScalpelError(
                f"data {entry.data.describe()}: the problem {row['problem'][:60]!r} has "
                f"{len(row[EARLIER])} turns before it, and a task of {entry.label} asks one "
                "question; name its path in columns.problem (messages.-2.content), and give a "
                "system prompt with the recipe's system_prompt"
            )
    rows = [{key: value for key, value in row.items() if key != EARLIER} for row in loaded.rows]
    warnings = [one for one in (unreadable, loaded.account.warning()) if one is not None]
    count = 0
    if unreadable is not None:
        gold = _gold(entry)
        count = golds_are_readable([gold(row["answer"]) for row in rows]).count(False)
    return TaskRows(rows, loaded.account.line(), warnings, count)


def data_warnings(suite: Suite) -> tuple[str | None, dict[str, int]]:
    """Print what is left out of the data of a suite's tasks, and find what may be wrong with it.

    Returns a warning, or None where all is well, and by score how many gold answers cannot be read.
    Raises ScalpelError as `task_rows` does.
    """
    warnings: list[str] = []
    unreadable: dict[str, int] = {}
    for entry in suite.tasks:
        if entry.data is not None:
            found = task_rows(entry)
            warnings += found.warnings
            unreadable[entry.metric_name] = found.unreadable
            if found.line is not None and entry.data.drop_unreadable:
                print(f"{entry.metric_name}: {found.line}", flush=True)
    return "; ".join(dict.fromkeys(warnings)) or None, unreadable


def one_type_a_column(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with columns that Arrow takes: one of several types becomes JSON text."""
    import pyarrow

    columns = {
        key: [row.get(key) for row in rows] for key in dict.fromkeys(k for r in rows for k in r)
    }
    for key, values in columns.items():
        try:
            pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError):
            columns[key] = [
                one if one is None or isinstance(one, str) else json.dumps(one, default=str)
                for one in values
            ]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _gold(entry: SuiteTask) -> Any:
    """How the gold answer is taken out of a row's `answer`, as when it is graded."""

    def gold(answer: str) -> str:
        found = re.search(entry.gold_pattern, answer) if entry.gold_pattern is not None else None
        return answer if found is None else found[1].strip()

    return gold
