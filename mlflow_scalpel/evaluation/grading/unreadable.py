"""Gold answers that cannot be read as mathematics: counted before anything is compared with them.

A column of whole solutions taken for answers, as GSM8K's, gives no reward and no score at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mlflow_scalpel.data.sources import Loaded
from mlflow_scalpel.data.values import short
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.evaluation.grading import golds_are_readable
from mlflow_scalpel.evaluation.grading.answers import last_boxed
from mlflow_scalpel.recipes.fields import Data

_PATTERNS = (
    r"####\s*(-?[\d,.]+)",  # GSM8K
    r"####\s*(.+)",
    r"[Tt]he (?:final )?answer is:?\s*(.+?)\.?\s*$",  # MetaMathQA
    r"(?:^|is|=|:)\s*\$?(-?[\d,.]*\d)\.?\s*$",
)
_SAMPLE_ROWS = 200  # rows on which a pattern is tried
_READABLE_SHARE = 0.95  # share of them that it must make readable
_SHOWN_CHARACTERS = 80


def readable_golds(
    loaded: Loaded, data: Data, gold_of: Callable[[str], str] = str
) -> tuple[Loaded, str | None]:
    """The rows whose gold answer can be compared, and a warning where some cannot be.

    `gold_of` takes the gold answer out of a row's `answer`. With `data.drop_unreadable` the others
    are left out and counted, and there is no warning; else they stay, with an empty answer where
    the pattern found none. Raises ScalpelError where none can be read, or more than
    `data.max_unreadable` of them cannot.
    """
    readable = golds_are_readable([gold_of(row["answer"] or "") for row in loaded.rows])
    bad = [n for n, found in enumerate(readable) if n in loaded.unmatched or not found]
    if not bad:
        return loaded, None
    total, first = len(loaded.rows), bad[0]
    text = (
        loaded.unmatched[first].text if first in loaded.unmatched else loaded.rows[first]["answer"]
    )
    example = f"the first is {loaded.places[first]}: {short(text, _SHOWN_CHARACTERS)!r}"
    unmatched = (
        f", in {len(loaded.unmatched)} of them answer_pattern finds nothing"
        if loaded.unmatched
        else ""
    )
    said = (
        f"data {data.describe()}: {len(bad)} of {total} gold answers cannot be read as "
        f"mathematics{unmatched} ({example})"
    )
    proposal = _proposal(loaded, data)
    if len(bad) == total or (not data.drop_unreadable and len(bad) > data.max_unreadable * total):
        if proposal is not None:
            remedy = proposal
        elif data.answer_pattern is not None:
            remedy = f"correct data.answer_pattern = {data.answer_pattern!r}"
        else:
            remedy = "name the column that holds the answers alone in data.columns.answer"
        if len(bad) < total:
            remedy += (
                ", leave such rows out with data.drop_unreadable=true, or raise "
                f"data.max_unreadable above {len(bad) / total:.2g}"
            )
        raise ScalpelError(f"{said}; {remedy}")
    if not data.drop_unreadable:
        rows = [{**row, "answer": row["answer"] or ""} for row in loaded.rows]
        remedy = f"; {proposal}, or" if proposal else ";"
        return replace(loaded, rows=rows, unmatched={}), (
            f"{said}: their completions are not graded{remedy} leave them out with "
            "data.drop_unreadable=true"
        )
    loaded.account.drop(
        "unreadable_golds", len(bad), f"have a gold answer that is not mathematics ({example})"
    )
    kept = [index for index in range(total) if index not in set(bad)]
    return (
        replace(
            loaded,
            rows=[loaded.rows[index] for index in kept],
            places=[loaded.places[index] for index in kept],
            unmatched={},
        ),
        None,
    )


def _proposal(loaded: Loaded, data: Data) -> str | None:
    """A pattern or a column under which nearly all golds of the first rows can be read."""
    rows = loaded.rows[:_SAMPLE_ROWS]
    texts = [
        loaded.unmatched[n].text if n in loaded.unmatched else row["answer"]
        for n, row in enumerate(rows)
    ]
    for pattern in _PATTERNS if data.answer_pattern is None else ():
        found = [re.search(pattern, text) for text in texts]
        if _mostly_readable([one[1].strip() if one else "" for one in found]):
            return f"set data.answer_pattern = '{pattern}'"
    if rows and rows[0]["solution"] and _boxed(rows, "solution"):
        return f"set data.columns.answer = {data.columns.solution}, whose \\boxed{{}} is read"
    for column in rows[0]:
        if column not in ("problem", "answer", "solution") and _boxed(rows, column):
            return f"set data.columns.answer = {column}, whose \\boxed{{}} is read"
    return None


def _boxed(rows: list[dict[str, Any]], column: str) -> bool:
    texts = [row.get(column) for row in rows]
    boxes = [last_boxed(text) if isinstance(text, str) else None for text in texts]
    return _mostly_readable([box or "" for box in boxes])


def _mostly_readable(golds: list[str]) -> bool:
    return sum(golds_are_readable(golds)) >= _READABLE_SHARE * len(golds)
