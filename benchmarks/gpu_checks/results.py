"""One row a number that was seen, with what it is held to; and the table of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

GOOD = ("ok", "seen", "not run")


@dataclass(frozen=True)
class Row:
    """One number. `status` is ok, off (outside of its bound), seen (held to nothing), not run
    (with the reason as note), or failed (a check ended with an error, which the note names)."""

    what: str
    status: str
    value: float | None = None
    unit: str = ""
    expected: float | None = None
    note: str = ""
    check: str = ""


def within(
    what: str, value: float, expected: float, relative: float, unit: str = "", note: str = ""
) -> Row:
    """`value` is to be within `relative` of `expected`, as a share of it; NaN is not."""
    off = abs(value - expected) / abs(expected) if expected else math.nan
    told = f"{(value - expected) / abs(expected):+.1%}" if expected else "nothing to compare with"
    bound = f"{told}, may be {relative:.3g}" + (f"; {note}" if note else "")
    return Row(what, "ok" if off <= relative else "off", value, unit, expected, bound)


def at_most(what: str, value: float, limit: float, unit: str = "", note: str = "") -> Row:
    """`value` is to be no more than `limit`; NaN is more."""
    bound = f"at most {limit:.3g}" + (f"; {note}" if note else "")
    return Row(what, "ok" if value <= limit else "off", value, unit, note=bound)


def above(what: str, value: float, limit: float, unit: str = "", note: str = "") -> Row:
    """`value` is to be more than `limit`; NaN is not."""
    bound = f"above {limit:.3g}" + (f"; {note}" if note else "")
    return Row(what, "ok" if value > limit else "off", value, unit, note=bound)


def holds(what: str, true: bool, note: str = "") -> Row:
    """Something is to be so."""
    return Row(what, "ok" if true else "off", note=note)


def seen(what: str, value: float | None = None, unit: str = "", note: str = "") -> Row:
    """A number that is held to nothing."""
    return Row(what, "seen", value, unit, note=note)


def not_run(what: str, why: str) -> Row:
    """Something that this machine cannot show."""
    return Row(what, "not run", note=why)


def append(file: Path, row: Row) -> None:
    """Add a row to a file of JSON lines: what was seen before a crash is kept."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(asdict(row)) + "\n")


def read(file: Path, check: str) -> list[Row]:
    """The rows of a file of JSON lines, as those of a check; none where there is no file."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()
    return [Row(**{**json.loads(line), "check": check}) for line in lines]


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| check | what | | seen | expected | |", "| --- | --- | --- | ---: | ---: | --- |"]
    for row in rows:
        value, expected = (
            "" if number is None else f"{number:.5g} {row.unit}".strip()
            for number in (row.value, row.expected)
        )
        what, note = (text.replace("|", "\\|").replace("\n", " ") for text in (row.what, row.note))
        lines.append(f"| {row.check} | {what} | {row.status} | {value} | {expected} | {note} |")
    return "\n".join(lines)
