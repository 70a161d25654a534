"""What stands in a column, at a path or by a template, as text: exactly, or refused."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

Row = dict[str, Any]

_INDEX = re.compile(r"-?\d+")
_NAME = re.compile(r"\{([^{}]+)\}")
# A list of turns or of content parts that was written into a cell, as JSON or as Python shows it
_WRITTEN_LIST = re.compile(r"""\s*\[\s*\{\s*['"](role|from|content|value|type)['"]\s*:""")
_ROLES = {"user": ("user", "human"), "assistant": ("assistant", "gpt")}
_MOST_DIGITS = 400  # before a number is written with an exponent


class NotText(Exception):
    """A value that is not a text; says what it is, and which column would do."""


def names_in(column: str, known: Iterable[str]) -> list[str] | None:
    """The columns or paths that a template such as "{instruction}\\n{input}" names.

    None for what is not a template: without a {name}, or the name of a column (`known`) as it is.
    """
    return None if column in known else (_NAME.findall(column) or None)


def take(row: Row, column: str) -> Any:
    """What is in a column, or at a path into it: `messages.-1.content`; None where there is none.

    A negative index counts from the end.
    """
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list | tuple) and _INDEX.fullmatch(part):
            index = int(part)
            value = value[index] if -len(value) <= index < len(value) else None
        else:
            return None
    return value


def head_of(column: str, known: Iterable[str]) -> str:
    """The column that a name or path begins with."""
    return column if column in known else column.partition(".")[0]


def text_at(row: Row, column: str, known: Iterable[str], said_by: str = "user") -> str | None:
    """The text of a column, path or template; None where nothing stands there.

    Raises NotText for a list, a mapping and whatever else is not a text or a number; of a list of
    messages it names the last one of `said_by` (user, assistant).
    """
    names = names_in(column, known)
    if names is None:
        return as_text(take(row, column), column, said_by)
    texts = {name: as_text(take(row, name), name, said_by) or "" for name in names}
    return _fill(column, texts) if any(texts.values()) else None


def _fill(template: str, texts: dict[str, str]) -> str:
    """The template with its texts; a line is left out where all that it names is empty."""
    lines: list[str] = []
    after_gap = False
    for line in template.split("\n"):
        names = _NAME.findall(line)
        if names and not any(texts[name] for name in names):
            after_gap = True
        elif after_gap and not line.strip() and (not lines or not lines[-1].strip()):
            pass  # else two empty lines would meet where one stood
        else:
            after_gap = False
            lines.append(_NAME.sub(lambda found: texts[found[1]], line))
    while after_gap and lines and not lines[-1].strip():
        lines.pop()  # led to what is left out
    return "\n".join(lines)


def as_text(value: Any, column: str, said_by: str = "user") -> str | None:
    """A value as text: numbers with their own digits, booleans as JSON has them, None as None.

    Raises NotText for what has no one text: a list, a mapping, bytes, NaN.
    """
    if value is None:
        return None
    if isinstance(value, str):
        if _WRITTEN_LIST.match(value):
            raise NotText(
                f"holds a list of messages that was written as text ({short(value)}); name it in "
                "columns.messages if it is JSON, or save the file as JSON lines or Parquet"
            )
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise NotText(
                f"holds half of a character ({value[error.start]!a}), which no tokenizer takes; "
                "write the text again"
            ) from error
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | Decimal):
        return _digits(value)
    if isinstance(value, datetime.date | datetime.datetime | datetime.time):
        return value.isoformat()
    raise NotText(_refusal(value, column, said_by))


def _digits(value: float | Decimal) -> str:
    finite = value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)
    if not finite:
        raise NotText(f"holds {value}, which is not a number; write null where there is none")
    if isinstance(value, Decimal):  # a literal of JSON, or a decimal column
        return format(value, "f") if abs(value.adjusted()) < _MOST_DIGITS else str(value)
    # A column of integers beside nulls is one of floats in many files.
    return str(int(value)) if value.is_integer() else format(Decimal(repr(value)), "f")


def _refusal(value: Any, column: str, said_by: str) -> str:
    if not isinstance(value, dict | list | tuple):
        return f"holds {type(value).__name__} and not a text ({short(repr(value))})"
    path = path_to_text(value, column, _ROLES[said_by])
    if path is None:
        return "holds no text; name another column"
    if isinstance(value, dict):
        return f"holds a mapping; write {path}"
    if isinstance(value[0], dict) and {"role", "from"} & set(value[0]):
        return f"holds a list of messages; write {path}, or for conversations columns.messages"
    return f"holds a list of {len(value)}; write {path}"


def path_to_text(value: Any, path: str, roles: tuple[str, ...] = ()) -> str | None:
    """The path to a text within a value: of the last turn of one of `roles`, or the first there is.

    None where there is none.
    """
    if isinstance(value, list | tuple):
        turns = [
            number
            for number, turn in enumerate(value)
            if isinstance(turn, dict) and turn.get("role", turn.get("from")) in roles
        ]
        inner = [(number, value[number]) for number in [*turns[-1:], *range(len(value))]]
    elif isinstance(value, dict):
        known = [key for key in ("content", "value", "text") if key in value]
        inner = [(key, value[key]) for key in [*known, *value]]
    else:
        return None if value is None or isinstance(value, bytes) else path
    found = (path_to_text(one, f"{path}.{key}", roles) for key, one in inner)
    return next((there for there in found if there is not None), None)


def matches(value: Any, wanted: Any) -> bool:
    """Whether a value of a row is the one that `where` asks for.

    A number is equal to the text that it is written as, and to another number of its size; a
    boolean to `true` and `false` in any case; null to null alone.
    """
    if value is None or wanted is None:
        return value is None and wanted is None
    if isinstance(value, bool) or isinstance(wanted, bool):
        return _word(value) == _word(wanted)
    if isinstance(value, str) or isinstance(wanted, str):
        return plain(value) == plain(wanted)
    if isinstance(value, int | float | Decimal) and isinstance(wanted, int | float):
        return _exact(value) == _exact(wanted)
    return plain(value) == plain(wanted)


def plain(value: Any) -> str:
    """A value as text, for comparing and showing; lists and mappings too."""
    try:
        return str(as_text(value, "")) if value is not None else "null"
    except NotText:
        return value if isinstance(value, str) else repr(value)


def _word(value: Any) -> str:
    return plain(value).casefold() if isinstance(value, str | bool) else plain(value)


def _exact(value: float | Decimal) -> Decimal:
    return value if isinstance(value, Decimal) else Decimal(repr(value))


def as_plain_numbers(value: Any) -> Any:
    """The value with each Decimal as an int or float, lists and mappings included."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {key: as_plain_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain_numbers(inner) for inner in value]
    return value


def short(text: str, most: int = 60) -> str:
    """A text on one line, cut to `most` characters, for messages."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
