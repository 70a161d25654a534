"""The tidy table: one row a measured value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import pandas as pd

from mlflow_scalpel.comparison.parquet import read_bounded
from mlflow_scalpel.credentials import without_credentials

DTYPES = {
    "base": "string",  # model ID or name of the base
    "base_digest": "string",
    "model_id": "string",
    "model_digest": "string",
    "run_id": "string",
    "algorithm": "string",
    "step": "Int64",
    "metric": "string",  # full name, group first: weights/relative_frobenius
    "metric_version": "Int64",
    "layer": "Int64",  # null where it does not apply, as are head, matrix and bin
    "head": "Int64",
    "other": "string",  # model ID of the second checkpoint, where a metric is of two
    "matrix": "string",  # q_proj, k_proj, ...
    "part": "string",  # what the matrix is for: one of `tensors.places.PARTS`
    "bin": "Float64",
    "value": "Float64",  # null where status is not ok
    "stderr": "Float64",
    "n": "Int64",  # what the value is over: problems or tokens; elements of a tensor
    "unit": "string",
    "dtype": "string",  # of the forward pass, or of the stored weights
    "texts": "string",  # NAME sha256:<digest of the texts> template:<digest of the template>
    "status": "string",  # ok, or why there is no value
    "reason": "string",
}
COLUMNS = tuple(DTYPES)

#: Behind the name of a run whose rows were imported, not measured here.
IMPORTED = " (imported)"


def tidy(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a tidy table; what a row leaves out is null, and `status` is ok unless said.

    A value that is NaN or infinite loses its `ok`: the table says why there is none. Raises
    ValueError for a column that the table does not have.
    """
    records = [dict(row) for row in rows]
    unknown = sorted({key for record in records for key in record} - set(COLUMNS))
    if unknown:
        raise ValueError(f"the tidy table has no column {unknown[0]!r}; it has {COLUMNS}")
    for record in records:
        record.setdefault("status", "ok")
        value = record.get("value")
        if record["status"] == "ok" and (value is None or value != value):
            record["status"] = "undefined"
            record.setdefault("reason", "the metric has no value here (0 divided by 0, or NaN)")
        elif record["status"] == "ok" and value in (math.inf, -math.inf):
            record |= {"value": None, "status": "not finite"}
            record.setdefault("reason", "the value is infinite: something it is made of is")
        if record.get("reason"):  # which may quote the exception of a library
            record["reason"] = without_credentials(str(record["reason"]))
    frame = pd.DataFrame(records, columns=list(COLUMNS))
    return frame.astype(DTYPES)


def write_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write the table as Parquet."""
    table.to_parquet(path, index=False)
    return Path(path)


def read_table(path: str | Path | IO[bytes]) -> pd.DataFrame:
    """Read a table that `write_table` wrote; a column that is missing is null.

    Raises ScalpelError, which does not name the file, where it is damaged, too large, or holds what
    no tidy table does.
    """
    return read_bounded(path, DTYPES)
