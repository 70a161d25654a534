"""Rows that a suite's task takes from a `data` of its own, looked at before they are evaluated."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from mlflow_scalpel.data.conversations import EARLIER
from mlflow_scalpel.data.sources import check_matched, load
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.evaluation.grading import golds_are_readable
from mlflow_scalpel.evaluation.suite import Suite, SuiteTask
from mlflow_scalpel.evaluation.unreadable import readable_golds

_MATHEMATICS = ("math_verify", "math_verify_or_number")  # graders, and names of their scores
_NEEDS = ("problem", "answer")


@dataclass(frozen=True)
class TaskRows:
    """The rows of a task's `data`, and what is to be said of them."""

    rows: list[dict[str, Any]]
    line: str | None
    """How many were left out, and why."""
    warnings: list[str]
    unreadable: int = 0
    """Gold answers among the rows that cannot be read, of which a warning speaks."""


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
