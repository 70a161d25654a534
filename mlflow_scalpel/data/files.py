"""Rows of a data file, each value as it stands there, and the place of each row.

Numbers keep their digits (a JSON number with a fraction is a Decimal), CSV cells are text and
empty ones None. Whatever cannot be read exactly raises ScalpelError with file, line and remedy.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from mlflow_scalpel.data.values import short
from mlflow_scalpel.errors import ScalpelError

Row = dict[str, Any]

_BOMS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}  # the longer one of two that begin alike first
_PACKED = (".gz", ".bz2", ".zst", ".lz4")
_LONGEST_CELL = 2**31 - 1  # characters; the csv module stops at 131072 by default


@dataclass(frozen=True)
class Placed:
    """A row, and where it stands: `line 3`, or `row 2` where there are no lines."""

    row: Row
    place: str


def read_file(path: Path, encoding: str | None = None) -> list[Placed]:
    """The rows of a .jsonl, .json, .csv, .tsv or .parquet file, which may be compressed.

    `encoding` is that of the text; None takes UTF-8, or what a byte order mark says. Raises
    ScalpelError with file, line and remedy.
    """
    names = [suffix.lower() for suffix in path.suffixes]
    if names and names[-1] in _PACKED:
        names.pop()
    suffix = names[-1] if names else ""
    if suffix == ".parquet":
        return _read_parquet(path)
    readers: dict[str, Callable[[Path, str], list[Placed]]] = {
        ".jsonl": lambda file, text: _read_lines(file, text, first=True),
        ".ndjson": lambda file, text: _read_lines(file, text, first=True),
        ".json": lambda file, text: _read_lines(file, text, first=False),
        ".csv": lambda file, text: _read_cells(file, text, ",;\t|"),
        ".tsv": lambda file, text: _read_cells(file, text, "\t,;|"),
    }
    if suffix not in readers:
        raise ScalpelError(
            f"data.file = {path}: files of kind {suffix!r} are not read; "
            f"use one of {', '.join((*readers, '.parquet'))}"
        )
    text = _decode(path, _bytes(path), encoding)
    if not text.strip():
        raise ScalpelError(f"data.file = {path}: is empty; there is no row in it")
    return readers[suffix](path, text)


def _bytes(path: Path) -> bytes:
    import pyarrow

    try:
        with pyarrow.input_stream(str(path), compression="detect") as stream:  # by the suffix
            return bytes(stream.read())
    except OSError as error:
        raise ScalpelError(
            f"data.file = {path}: cannot be read ({short(str(error))}); if it is compressed, it "
            "may be cut off: copy or make it again"
        ) from error


def _decode(path: Path, raw: bytes, encoding: str | None) -> str:
    marked = next((name for mark, name in _BOMS.items() if raw.startswith(mark)), None)
    name = encoding or marked or "utf-8"
    try:
        text = raw.decode(name)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        hint = ""
        if encoding is None and marked is None:
            begin = max(raw.rfind(b"\n", 0, error.start) + 1, error.start - 20)
            around = raw[begin : error.start + 20].split(b"\n")[0]
            hint = f" (as cp1252, or latin-1, there stands {around.decode('cp1252', 'replace')!r})"
        raise ScalpelError(
            f"data.file = {path}: line {line}: the byte {raw[error.start]:#04x} is not {name}"
            f"{hint}; set data.encoding to the file's own, or save the file as UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ScalpelError(
            f"data.file = {path}: line {line}: has bytes that are 0, as UTF-16 without a byte "
            "order mark has; set data.encoding (utf-16-le, utf-16-be), or save the file as UTF-8"
        )
    return text.removeprefix("\ufeff")


def _read_lines(path: Path, text: str, *, first: bool) -> list[Placed]:
    """JSON, as lines or as one document; `first` says that lines are tried first.

    A file with the suffix of the one often holds the other.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # a string cannot hold one as it is
    # Not splitlines(): that splits at characters which a string may hold.
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    ahead: Any = _try(lines[0][1])
    one_a_line = isinstance(ahead, dict) and (first or len(lines) > 1)
    if one_a_line or (first and _try(text) is None):
        return [Placed(_object(path, line, n, text), f"line {n}") for n, line in lines]
    try:
        document = _load(text)
    except (ValueError, RecursionError) as error:
        raise ScalpelError(_not_json(path, error, 1)) from error
    found = _rows_of(path, document)
    for number, item in enumerate(found):
        if not isinstance(item, dict):
            raise ScalpelError(
                f"data.file = {path}: row {number} (counted from 0) is "
                f"{short(json.dumps(item, default=str))} and not an object with the columns; "
                'write each row as {"problem": ...}'
            )
    return [Placed(item, f"row {n} (counted from 0)") for n, item in enumerate(found)]


def _rows_of(path: Path, document: Any) -> list[Any]:
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        raise ScalpelError(
            f"data.file = {path}: line 1: holds {short(json.dumps(document, default=str))} and "
            'not rows; write an array of objects, or an object a line, such as {"problem": ...}'
        )
    lists = {
        key: value
        for key, value in document.items()
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    }
    turns = [key for key, value in lists.items() if {"role", "from"} & set(value[0])]
    plain = any(not isinstance(value, dict | list) for value in document.values())
    if turns or (plain and not lists):
        return [document]  # one row
    if len(lists) == 1:
        return list(next(iter(lists.values())))
    known = ", ".join(lists) or ", ".join(document)
    raise ScalpelError(
        f"data.file = {path}: is one object with {known}, of which it is not clear what the rows "
        'are; write the rows an object a line (with pandas: to_json(..., orient="records", '
        "lines=True)) into a file of their own"
    )


def _object(path: Path, line: str, number: int, text: str) -> Row:
    try:
        value = _load(line)
    except (ValueError, RecursionError) as error:
        raise ScalpelError(_not_json(path, error, number)) from error
    if not isinstance(value, dict):
        raise ScalpelError(
            f"data.file = {path}: line {number}: holds {short(line)} and not an object with the "
            'columns; write each row as {"problem": ...}'
        )
    return value


def _not_json(path: Path, error: Exception, first: int) -> str:
    line = first
    why = str(error) or type(error).__name__
    if isinstance(error, json.JSONDecodeError):
        line += error.lineno - 1
        why = f"{error.msg} at column {error.colno}"
    return (
        f"data.file = {path}: line {line}: is not complete JSON ({short(why)}); correct or remove "
        "it, or write the file again if it was cut off"
    )


def _try(text: str) -> Any:
    """The JSON in a text, or None where it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _load(text: str) -> Any:
    return json.loads(text, parse_float=Decimal, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} is given twice")
    return row


def _read_cells(path: Path, text: str, delimiters: str) -> list[Placed]:
    """CSV with a header; the first of `delimiters`, or another one where the header shows it."""
    csv.field_size_limit(_LONGEST_CELL)
    head, _, rest = text.partition("\n")
    delimiter = next((mark for mark in delimiters if mark in head), delimiters[0])
    before = 0
    stated = re.fullmatch(r'"?sep=(.)"?\r?', head, re.IGNORECASE)
    if stated:  # Excel's own line, which says the delimiter and is not the header
        delimiter, text, before = stated[1], rest, 1
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    skipped = before
    placed: list[Placed] = []
    header: list[str] | None = None
    try:
        for cells in reader:
            line, before = before + 1, skipped + reader.line_num
            if not cells:
                continue
            if header is None:
                header = _header(path, cells, line)
                continue
            if len(cells) != len(header):
                raise ScalpelError(
                    f"data.file = {path}: line {line}: has {len(cells)} cells, and the header has "
                    f"{len(header)} ({short(', '.join(header))}), separated by {delimiter!r}; put "
                    "quotes around cells that hold it or a line break, and double quotes within"
                )
            row = {name: cell or None for name, cell in zip(header, cells, strict=True) if name}
            placed.append(Placed(row, f"line {line}"))
    except csv.Error as error:
        raise ScalpelError(
            f"data.file = {path}: line {before + 1}: is not complete CSV ({error}); a quote is "
            "opened there or below and not closed, or stands inside a quoted cell without being "
            "doubled"
        ) from error
    return placed


def _header(path: Path, cells: list[str], line: int) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = [name for name, count in Counter(filter(None, names)).items() if count > 1]
    if twice:
        raise ScalpelError(
            f"data.file = {path}: line {line}: has two columns {twice[0]!r}; rename one of them"
        )
    return names


def _read_parquet(path: Path) -> list[Placed]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(str(path)).read()
    except (OSError, pyarrow.ArrowException) as error:
        raise ScalpelError(
            f"data.file = {path}: is not readable Parquet ({short(str(error))}); write it again"
        ) from error
    names = table.column_names
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise ScalpelError(f"data.file = {path}: has two columns {twice!r}; rename one of them")
    return placed_rows(as_written(table.to_pylist(), table.schema))


def as_written(rows: Iterable[Row], schema: Any) -> Iterator[Row]:
    """The rows of an Arrow schema, narrow floats with the digits that stand for them.

    Arrow gives 0.1 of a float32 column as 0.10000000149011612, the double of the same bits.
    """
    narrow = {field.name: field.type for field in schema if "float" in str(field.type)}
    for row in rows:
        yield {**row, **{name: _narrow(row[name], kind) for name, kind in narrow.items()}}


def _narrow(value: Any, kind: Any) -> Any:
    from pyarrow import types

    if isinstance(value, float) and (types.is_float32(kind) or types.is_float16(kind)):
        return float(str(kind.to_pandas_dtype()(value)))
    if isinstance(value, dict) and types.is_struct(kind):
        return {name: _narrow(inner, kind.field(name).type) for name, inner in value.items()}
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_narrow(inner, kind.value_type) for inner in value]
    return value


def placed_rows(rows: Iterable[Row]) -> list[Placed]:
    """Rows that stand in no line of a file."""
    return [Placed(row, f"row {number} (counted from 0)") for number, row in enumerate(rows)]
