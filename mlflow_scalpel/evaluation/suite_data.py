"""Rows that a suite's task takes from a `data` of its own, looked at before they are evaluated."""

from __future__ import annotations

import json
import re
from typing import Any

from mlflow_scalpel.data.conversations import EARLIER
from mlflow_scalpel.data.sources import load, load_rows
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.evaluation.suite import Suite, SuiteTask
from mlflow_scalpel.evaluation.unreadable import readable_golds

_MATHEMATICS = ("math_verify", "math_verify_or_number")  # graders, and names of their scores
_NEEDS = ("problem", "answer")


def task_rows(entry: SuiteTask) -> tuple[list[dict[str, Any]], str | None]:
    """The rows of the task's `data`, and a warning where gold answers cannot be read.

    Raises ScalpelError where all or most cannot, and for conversations: a task asks one question.
    """
    assert entry.data is not None
    warning = None
    if entry.grader in _MATHEMATICS or entry.metric in _MATHEMATICS:
        loaded, warning = readable_golds(load(entry.data, needs=_NEEDS), entry.data, _gold(entry))
        rows = loaded.rows
    else:
        rows = load_rows(entry.data, needs=_NEEDS)
    for row in rows:
        if row[EARLIER]:
            raise ScalpelError(
                f"data {entry.data.describe()}: the problem {row['problem'][:60]!r} has "
                f"{len(row[EARLIER])} turns before it, and a task of {entry.label} asks one "
                "question; name its path in columns.problem (messages.-2.content), and give a "
                "system prompt with the recipe's system_prompt"
            )
    return [{key: value for key, value in row.items() if key != EARLIER} for row in rows], warning


def data_warnings(suite: Suite) -> str | None:
    """What is to be said of the data of all tasks of a suite; None where all is well.

    Raises ScalpelError as `task_rows` does.
    """
    found = [task_rows(entry)[1] for entry in suite.tasks if entry.data is not None]
    return "; ".join(dict.fromkeys(one for one in found if one)) or None


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
