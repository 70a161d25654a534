"""Rows of problems from any source that a recipe may name."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.recipes.fields import Data, parse_rows

Row = dict[str, Any]


def load_rows(data: Data, *, needs: tuple[str, ...] = ("problem",)) -> list[Row]:
    """The rows that `data` describes, with `problem`, `answer`, `solution` and their own columns.

    `answer` and `solution` are None where the recipe names no column for them. Raises ScalpelError
    where a named column does not exist, a row lacks what `needs` names, or no row is left.
    """
    rows = _read(data)
    if not rows:
        raise ScalpelError(f"data {data.describe()}: there is no row in it")
    columns = data.columns.model_dump()
    for role, column in columns.items():
        there = column is None or _has(rows[0], column)
        if not there and (role in needs or column != role):
            raise ScalpelError(
                f"data {data.describe()}: there is no column {column!r} to take the {role} from; "
                f"set columns.{role} to one of {', '.join(rows[0])}"
            )
    for column, wanted in data.where.items():
        if column not in rows[0]:
            raise ScalpelError(
                f"data {data.describe()}: where.{column} names no column; "
                f"there are {', '.join(rows[0])}"
            )
        values = [wanted] if isinstance(wanted, str) else wanted
        rows = [row for row in rows if row[column] in values]
    if data.rows is not None:
        rows = rows[parse_rows(data.rows)]
    if data.limit is not None and data.limit < len(rows):
        rows = random.Random(data.seed).sample(rows, data.limit)
    if not rows:
        raise ScalpelError(
            f"data {data.describe()}: `where` and `rows` leave no row; widen one of them"
        )
    result = [{**row, **_roles(row, columns, data)} for row in rows]
    for number, row in enumerate(result):
        for role in needs:
            if row[role] is None or row[role] == "":
                raise ScalpelError(
                    f"data {data.describe()}: row {number} has no {role}; leave such rows out "
                    f"with `where` or `rows`, or name another column in columns.{role}"
                )
    return result


def _roles(row: Row, columns: dict[str, str | None], data: Data) -> Row:
    roles: Row = {
        role: None if column is None or (value := _take(row, column)) is None else str(value)
        for role, column in columns.items()
    }
    if data.answer_pattern is not None and roles["answer"] is not None:
        found = re.search(data.answer_pattern, roles["answer"])
        roles["answer"] = found.group(1).strip() if found else None
    return roles


def _has(row: Row, column: str) -> bool:
    """Whether the row has the column, or for a path such as messages.1.content the first part."""
    return column in row or column.partition(".")[0] in row


def _take(row: Row, column: str) -> Any:
    """What is in a column, or at a path into it: `messages.1.content`; None where there is none."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, dict):
            value = value.get(part)
        elif value is not None and part.isdigit() and not isinstance(value, str):
            value = value[int(part)] if int(part) < len(value) else None
        else:
            return None
    return value


def _read(data: Data) -> list[Row]:
    if data.generated is not None:
        from mlflow_scalpel.data import tiny_world

        return tiny_world.rows(split=data.split)
    import datasets

    if data.hub is not None:
        dataset = datasets.load_dataset(
            data.hub, data.config, split=data.split, revision=data.revision
        )
        return list(dataset)
    path = Path(data.file or "")
    if not path.is_file():
        raise ScalpelError(f"data.file = {path}: there is no such file; give an existing path")
    import pandas as pd

    readers = {
        ".jsonl": lambda file: pd.read_json(file, lines=True, dtype=False),
        ".json": lambda file: pd.read_json(file, dtype=False),
        ".parquet": pd.read_parquet,
        ".csv": pd.read_csv,
    }
    if path.suffix not in readers:
        raise ScalpelError(
            f"data.file = {path}: files of kind {path.suffix!r} are not read; "
            f"use one of {', '.join(readers)}"
        )
    frame = readers[path.suffix](path)
    return frame.astype(object).where(frame.notna(), None).to_dict("records")
