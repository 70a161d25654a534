"""Reads Parquet files that anybody may have written, within bounds.

What a file says of its size is looked at before anything of it is read: a file of 2 MB can hold
100 million rows, which take gigabytes of memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import pandas as pd

from mlflow_scalpel.errors import ScalpelError

ROWS_VARIABLE = "SCALPEL_TABLE_ROWS"
MOST_ROWS = 10_000_000
MOST_COLUMNS = 200
MOST_BYTES = 1 << 30  # of a file's content, unpacked; and of its texts, each written out
LONGEST_TEXT = 1_000_000  # characters of one cell
LARGEST_INTEGER = 1 << 53  # of whole numbers: beyond it a float would not hold them
_BATCH_ROWS = 1 << 16  # rows
_NOT_NEGATIVE = {"step", "layer", "head", "n", "metric_version", "problem", "position", "rank", "k"}


def read_bounded(source: str | Path | IO[bytes], dtypes: Mapping[str, str] | None) -> pd.DataFrame:
    """The rows of a Parquet file.

    Args:
        source: the file.
        dtypes: its columns with their pandas dtypes (`string`, `Int64`, `Float64`, `bool`, and
            `object` for lists); others are left out, and one that the file does not have is null.
            None takes all columns as they are.

    Raises:
        ScalpelError: it is not a Parquet file, is damaged, is larger than what is read, or a column
            holds what it may not hold; the text says which, and what to do.
    """
    import pyarrow as pa

    try:
        return _read(source, dtypes)
    except ScalpelError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        why = str(error).strip().split("\n")[0][:200]
        raise ScalpelError(
            f"it cannot be read as Parquet ({type(error).__name__}: {why})"
        ) from error
    except (MemoryError, RecursionError) as error:
        raise ScalpelError(f"it is too large to be read ({type(error).__name__})") from error


def _read(source: str | Path | IO[bytes], dtypes: Mapping[str, str] | None) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(source) as file:
        _check_footer(file.metadata)
        schema = file.schema_arrow
        names = [name for name in schema.names if dtypes is None or name in dtypes]
        if len(set(names)) < len(names):
            raise ScalpelError("it has two columns of one name")
        for name in names:
            _check_type(name, schema.field(name).type, None if dtypes is None else dtypes[name])
    texts = [name for name in names if pa.types.is_string(schema.field(name).type)]
    if hasattr(source, "seek"):
        source.seek(0)  # type: ignore[union-attr]
    # A text that stands in many rows is kept once.
    with pq.ParquetFile(source, read_dictionary=texts) as file:
        batches, rows, unpacked = [], 0, 0
        for batch in file.iter_batches(_BATCH_ROWS, columns=names):
            rows += batch.num_rows
            unpacked += sum(_text_bytes(column) for column in batch.columns)
            if rows > most_rows() or unpacked > MOST_BYTES:
                raise ScalpelError(_too_large(rows, unpacked))
            batches.append(batch)
    table = pa.Table.from_batches(batches) if batches else schema.empty_table().select(names)
    frame = table.to_pandas()
    for name in frame.columns:
        if isinstance(frame[name].dtype, pd.CategoricalDtype):
            frame[name] = frame[name].astype(object)
    if dtypes is None:
        return frame
    frame = frame.reindex(columns=list(dtypes))
    for name, dtype in dtypes.items():
        frame[name] = _as(frame[name], dtype)
    return frame


def _check_footer(metadata: Any) -> None:
    """Raise ScalpelError for a file whose footer says that it is larger than what is read."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    rows = max(metadata.num_rows, sum(group.num_rows for group in groups))
    size = sum(group.total_byte_size for group in groups)
    if rows > most_rows() or size > MOST_BYTES:
        raise ScalpelError(_too_large(rows, size))
    if metadata.num_columns > MOST_COLUMNS:
        raise ScalpelError(f"it has {metadata.num_columns} columns, more than {MOST_COLUMNS}")


def _too_large(rows: int, size: int) -> str:
    return (
        f"it has {rows} rows and {size} bytes or more, and at most {most_rows()} rows and "
        f"{MOST_BYTES} bytes are read ({ROWS_VARIABLE} sets the rows)"
    )


def most_rows() -> int:
    """Rows of a file that are read at most: `$SCALPEL_TABLE_ROWS`, or 10 million."""
    given = os.environ.get(ROWS_VARIABLE) or str(MOST_ROWS)
    if not given.isdecimal() or int(given) < 1:
        raise ScalpelError(f"{ROWS_VARIABLE} = {given!r}: is not a number of rows")
    return int(given)


def _check_type(name: str, kind: Any, dtype: str | None) -> None:
    """Raise ScalpelError where a column's type does not fit its dtype."""
    import pyarrow as pa

    types = pa.types
    inner = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind
    if types.is_nested(inner):
        raise ScalpelError(f"its column {name} holds {str(kind)[:80]}, which is not read")
    fits = {
        None: True,
        "string": _is_text(kind),
        "object": inner is not kind,
        "bool": types.is_boolean(kind),
        "Int64": types.is_integer(kind) or types.is_floating(kind),
        "Float64": types.is_integer(kind) or types.is_floating(kind),
    }[dtype]
    if not (fits or types.is_null(kind)):
        raise ScalpelError(f"its column {name} holds {str(kind)[:80]} and not {dtype}")


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner))


def _text_bytes(column: Any) -> int:
    """Bytes that a column's texts take where each is written out; raises for one too long."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = column.flatten()
    texts = column.dictionary if pa.types.is_dictionary(column.type) else column
    if not _is_text(texts.type):
        return 0
    lengths = pc.binary_length(texts)
    longest = pc.max(lengths).as_py() or 0
    if longest > LONGEST_TEXT:
        raise ScalpelError(f"a text in it has {longest} bytes, more than {LONGEST_TEXT}")
    if pa.types.is_dictionary(column.type):
        lengths = lengths.take(column.indices)
    return pc.sum(lengths).as_py() or 0


def _as(column: pd.Series, dtype: str) -> pd.Series:
    """A column in its dtype; raises ScalpelError for a number that it may not hold."""
    if dtype == "object":
        return column
    if dtype == "bool":
        return column.fillna(False).astype("bool")
    try:
        converted = column.astype(dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise ScalpelError(
            f"its column {column.name} holds what is not {dtype} ({error})"
        ) from error
    if dtype == "Int64":
        low = 0 if column.name in _NOT_NEGATIVE else -LARGEST_INTEGER
        outside = converted[(converted < low) | (converted > LARGEST_INTEGER)]
        if len(outside):
            raise ScalpelError(f"its column {column.name} holds {outside.iloc[0]}")
    return converted
