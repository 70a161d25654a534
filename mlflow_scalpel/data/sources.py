"""Rows of problems from any source that a recipe may name."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

from mlflow_scalpel.data.account import Account
from mlflow_scalpel.data.conversations import EARLIER, Message, Unreadable, conversation_of
from mlflow_scalpel.data.files import Placed, Row, as_written, placed_rows, read_file
from mlflow_scalpel.data.values import (
    NotText,
    as_plain_numbers,
    head_of,
    matches,
    names_in,
    plain,
    take,
    text_at,
)
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.recipes.fields import Data, parse_rows
from mlflow_scalpel.recipes.places import existing_file

_SHOWN = 10  # values of a column, in a message


@dataclass(frozen=True)
class Unmatched:
    """A row whose answer `data.answer_pattern` does not find."""

    place: str
    text: str


@dataclass(frozen=True)
class Loaded:
    """The rows of a source, and how it came to them."""

    rows: list[Row]
    places: list[str]
    """Where each row stands in its file."""
    account: Account
    unmatched: dict[int, Unmatched]
    """By index of the row; their `answer` is None."""


def load_rows(data: Data, *, needs: tuple[str, ...] = ("problem",)) -> list[Row]:
    """The rows that `data` describes, with `problem`, `answer`, `solution` and their own columns.

    `answer` and `solution` are None where the recipe names no column for them; `earlier_turns`
    holds the messages before the problem. Raises ScalpelError where a named column does not exist
    or holds no text, a row lacks what `needs` names, or no row is left.
    """
    loaded = load(data, needs=needs)
    if "answer" in needs:
        check_matched(loaded, data)
    return loaded.rows


def check_matched(loaded: Loaded, data: Data) -> None:
    """Raise ScalpelError where the answer pattern finds nothing in a row."""
    if loaded.unmatched:
        first = next(iter(loaded.unmatched.values()))
        raise ScalpelError(
            f"data {data.describe()}: in {len(loaded.unmatched)} of {len(loaded.rows)} rows "
            f"answer_pattern finds no answer (the first is {first.place}: {first.text[:60]!r}); "
            "correct the pattern, or leave such rows out with `where`"
        )


def load(data: Data, *, needs: tuple[str, ...] = ("problem",)) -> Loaded:
    """As `load_rows`, with the account of all rows; answers that no pattern finds are given back.

    Raises ScalpelError as `load_rows` does.
    """
    placed = _read(data)
    account = Account(len(placed))
    if not placed:
        raise ScalpelError(f"data {data.describe()}: there is no row in it")
    known = list(dict.fromkeys(column for one in placed for column in one.row))
    columns = _checked_columns(data, known, needs)
    chosen = _choose(data, placed, known, account)
    roles: dict[str, str | None] = {"problem": None, "answer": None, "solution": None, **columns}
    rows: list[Row] = []
    places: list[str] = []
    unmatched: dict[int, Unmatched] = {}
    left_out: list[str] = []
    for one in chosen:
        try:
            row = _with_roles(one, data, roles, known, needs)
        except (NotText, Unreadable) as error:
            if not data.drop_unreadable:
                remedy = (
                    "; correct the row, or leave such rows out with `where`, `rows` or "
                    "drop_unreadable=true"
                )
                raise ScalpelError(
                    f"data {data.describe()}: {one.place}: {error}"
                    f"{remedy if isinstance(error, Unreadable) else ''}"
                ) from error
            left_out.append(f"{one.place}: {error}")
            continue
        text = row.pop(_UNMATCHED, None)
        if text is not None:
            unmatched[len(rows)] = Unmatched(one.place, text)
        rows.append(row)
        places.append(one.place)
    words = f"cannot be read (the first is {left_out[0]})" if left_out else ""
    account.drop("unreadable", len(left_out), words)
    if not rows:
        raise ScalpelError(
            f"data {data.describe()}: no row is left: {len(left_out)} {words}; name other columns"
        )
    return Loaded(rows, places, account, unmatched)


_UNMATCHED = "\0whole"  # the answer's text where the pattern finds nothing in it


def _checked_columns(data: Data, known: list[str], needs: tuple[str, ...]) -> dict[str, Any]:
    """The column of each role, once it is sure that there is such a column."""
    columns = data.columns.model_dump()
    messages = columns.pop("messages")
    if messages is not None:
        columns["problem"] = columns["solution"] = None
        named = [messages] if isinstance(messages, str) else messages
        columns["messages"] = named
        for column in named:
            if head_of(column, known) not in known:
                raise ScalpelError(_no_column(data, column, "messages", known))
    for role in ("problem", "answer", "solution"):
        column = columns[role]
        if column is None:
            continue
        for name in names_in(column, known) or [column]:
            there = head_of(name, known) in known
            if not there and (role in needs or column != role):
                raise ScalpelError(_no_column(data, name, role, known))
    return columns


def _no_column(data: Data, column: str, role: str, known: list[str]) -> str:
    return (
        f"data {data.describe()}: there is no column {column!r} to take the {role} from; "
        f"set columns.{role} to one of {', '.join(known) or 'those that there are (none)'}"
    )


def _choose(data: Data, placed: list[Placed], known: list[str], account: Account) -> list[Placed]:
    """The rows that `where`, `rows` and `limit` leave."""
    for column, wanted in data.where.items():
        if head_of(column, known) not in known:
            raise ScalpelError(
                f"data {data.describe()}: where.{column} names no column; "
                f"there are {', '.join(known)}"
            )
        values = wanted if isinstance(wanted, list) else [wanted]
        kept = [
            one for one in placed if any(matches(take(one.row, column), value) for value in values)
        ]
        if not kept:
            there = list(dict.fromkeys(plain(take(one.row, column))[:40] for one in placed))
            more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
            asked = ", ".join(plain(value) for value in values)
            raise ScalpelError(
                f"data {data.describe()}: where.{column} = {asked} leaves no row; the column has "
                f"{', '.join(there[:_SHOWN])}{more}"
            )
        account.drop("where", len(placed) - len(kept), f"left out by where.{column}")
        placed = kept
    before = len(placed)
    if data.rows is not None:
        placed = placed[parse_rows(data.rows)]
        account.drop("rows", before - len(placed), f"outside of `rows` {data.rows}")
    if data.limit is not None and data.limit < len(placed):
        account.drop("limit", len(placed) - data.limit, f"beyond the limit of {data.limit}")
        placed = random.Random(data.seed).sample(placed, data.limit)
    if not placed:
        raise ScalpelError(
            f"data {data.describe()}: `where` and `rows` leave no row of {before}; widen one of "
            "them"
        )
    return placed


def _with_roles(
    one: Placed, data: Data, columns: dict[str, Any], known: list[str], needs: tuple[str, ...]
) -> Row:
    """The row with its roles; raises Unreadable where something is missing, and NotText."""
    roles: Row = {EARLIER: []}
    if columns.get("messages"):
        roles |= _by_role(one.row, columns["messages"])
    for role in ("problem", "answer", "solution"):
        column = columns[role]
        if role in roles:
            continue
        try:
            said_by = "user" if role == "problem" else "assistant"
            roles[role] = None if column is None else text_at(one.row, column, known, said_by)
        except NotText as error:
            raise NotText(f"columns.{role} = {column} {error}") from error
    answer = roles["answer"]
    if data.answer_pattern is not None and answer is not None:
        found = re.search(data.answer_pattern, answer)
        roles["answer"] = (found.group(1) or "").strip() if found else None
    for role in needs:
        if role == "answer" and answer and not answer.isspace():
            continue  # what the pattern does not find is counted, and reported with the others
        if not (roles[role] or "").strip():
            source = columns.get("messages")
            if source and role != "answer":
                raise Unreadable(f"columns.messages: its last turn is of the user; no {role} there")
            raise Unreadable(f"there is no {role} in it (columns.{role} = {columns[role]})")
    row = {**as_plain_numbers(one.row), **roles}
    if answer and not roles["answer"]:
        row |= {"answer": None, _UNMATCHED: answer}
    return row


def _by_role(row: Row, columns: list[str]) -> Row:
    turns: Any = take(row, columns[0])
    if len(columns) > 1:
        parts = [take(row, column) for column in columns]
        for column, part in zip(columns, parts, strict=True):
            if not isinstance(part, list):
                raise Unreadable(
                    f"columns.messages: {column} holds {type(part).__name__} and not a list of "
                    "turns"
                )
        turns = [turn for part in parts for turn in part]
    try:
        found = conversation_of(turns)
    except Unreadable as error:
        raise Unreadable(f"columns.messages = {' + '.join(columns)}: {error}") from error
    earlier = [*_system_column(row, found.earlier), *found.earlier]
    return {EARLIER: earlier, "problem": found.problem, "solution": found.solution}


def _system_column(row: Row, turns: list[Message]) -> list[Message]:
    """The system turn of a column `system` beside the turns, as ShareGPT's files have it."""
    if row.get("tools") not in (None, "", "[]", []):
        raise Unreadable("it has `tools` beside its turns, which the model would not be shown")
    system = row.get("system")
    if not isinstance(system, str) or not system.strip():
        return []
    if not turns or turns[0]["role"] != "system":
        return [{"role": "system", "content": system}]
    if turns[0]["content"] != system:
        raise Unreadable("its column `system` and its system turn differ; remove one of them")
    return []


def _read(data: Data) -> list[Placed]:
    if data.generated is not None:
        from mlflow_scalpel.data import tiny_world

        return placed_rows(tiny_world.rows(split=data.split))
    if data.hub is not None:
        import datasets

        dataset = datasets.load_dataset(
            data.hub, data.config, split=data.split, revision=data.revision
        )
        return placed_rows(as_written(dataset, dataset.features.arrow_schema))
    return read_file(existing_file("data.file", data.file or ""), data.encoding)
