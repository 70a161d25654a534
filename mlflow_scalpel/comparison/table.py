"""The tidy table: one row a measured value."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pandas as pd

from mlflow_scalpel.comparison.parquet import read_bounded
from mlflow_scalpel.credentials import without_credentials

if TYPE_CHECKING:
    from mlflow_scalpel.metrics.registry import Metric

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
    """Rows as a tidy table; what a row leaves out is null, and `status` is then ok.

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


def metric_cells(metric: Metric) -> dict[str, Any]:
    """The cells by which a row names its metric."""
    return {"metric": metric.name, "metric_version": metric.version, "unit": metric.unit}


def write_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write a table of this module as Parquet."""
    table.to_parquet(path, index=False)
    return Path(path)


def read_table(path: str | Path | IO[bytes]) -> pd.DataFrame:
    """Read a table that `write_table` wrote; a column that is missing is null.

    Raises ScalpelError, which does not name the file, where it is damaged, too large, or holds what
    no tidy table does.
    """
    return read_bounded(path, DTYPES)


# Columns of the tables of single tokens (forward/divergence.py makes them).
TOKEN_DTYPES = {
    "model_id": "string",
    "step": "Int64",
    "texts": "string",  # as in the tidy table
    "problem": "Int64",  # its number in the texts, from 0
    "position": "Int64",  # in the text, from 0
    "token": "string",  # what follows there
    "token_id": "Int64",
    "answer": "bool",  # whether the token is of the answer
    "kl": "Float64",  # KL(base || checkpoint) in nats, as are reverse and base_entropy
    "reverse": "Float64",
    "base_entropy": "Float64",
    "rank": "Int64",  # 1 for the largest KL over all texts; null beyond 200
    "context": "string",  # the last 160 characters before the token; ranked tokens only
    "base_top": "object",  # the 5 most likely tokens as texts, and their probabilities
    "checkpoint_top": "object",
    "base_top_p": "object",
    "checkpoint_top_p": "object",
    "right_p_base": "Float64",  # probability of the token that follows
    "right_p_checkpoint": "Float64",
}


def token_file_name(step: int) -> str:
    """Name of a step's table of tokens in the run's folder `scalpel/tokens`."""
    return f"step-{step:06d}.parquet"


def token_step(path: str) -> int | None:
    """The step of a table of tokens by its path; None where the path is not one of such a table."""
    found = re.fullmatch(r"step-(\d+)\.parquet", path.rsplit("/", 1)[-1])
    return int(found[1]) if found else None


def read_tokens(path: str | Path | IO[bytes]) -> pd.DataFrame:
    """Read a table of tokens; raises ScalpelError as `read_table` does."""
    table = read_bounded(path, TOKEN_DTYPES)
    for name, dtype in TOKEN_DTYPES.items():
        if dtype == "object":
            table[name] = [[] if values is None else list(values) for values in table[name]]
    return table


# Columns of the ledger of problems (capabilities.py makes it).
LEDGER_DTYPES = {
    "model_id": "string",
    "step": "Int64",
    "domain": "string",
    "label": "string",
    "kind": "string",
    "problem_id": "string",
    "k": "Int64",  # samples that the base has of the problem
    "base_right": "Int64",  # how many of them are right
    "right": "Int64",  # how many of the checkpoint's are
    "status": "string",  # kept, gained, lost, never; or why it is not one of these: LEFT_OUT
    "problem": "string",
    "gold": "string",
    "base_completion": "string",  # the first sample, by which the status goes
    "completion": "string",
    "gold_loglik_base": "Float64",  # of lost problems, in nats; null elsewhere
    "gold_loglik": "Float64",
    "gold_loglik_after_opening_base": "Float64",
    "gold_loglik_after_opening": "Float64",
}

LEFT_OUT = {
    "ungraded": "not graded, because the gold answer cannot be read",
    "not graded": "not graded, because comparing an answer takes too long",
    "only base": "answered by the base only",
    "only checkpoint": "answered by the checkpoint only",
}
"""Statuses of problems that no number counts, and what they mean."""


def read_ledger(path: str | Path | IO[bytes]) -> pd.DataFrame:
    """Read a ledger; raises ScalpelError as `read_table` does."""
    return read_bounded(path, LEDGER_DTYPES)
