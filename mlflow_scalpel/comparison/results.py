"""Keeps what was measured, by content: the same question about the same bytes is answered once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mlflow_scalpel.checkpoints.atomic import write_atomically
from mlflow_scalpel.checkpoints.reading import cache
from mlflow_scalpel.comparison.measured_models import MeasuredModel
from mlflow_scalpel.comparison.table import read_table, read_tokens
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics.registry import Metric

_LAYOUT = 4  # goes up when rows are made otherwise than before
# What another version of a library, or a file put right, would measure.
_NOT_KEPT = ("not measured", "not readable", "not supported")


def key_of(
    base: MeasuredModel,
    checkpoint: MeasuredModel,
    metrics: Iterable[Metric],
    settings: Sequence[Any],
) -> str:
    """Names the rows of one checkpoint: digests of both models, metrics, versions, and settings.

    `settings` is all else that the values depend on (texts, template, dtype, learning rates).
    """
    parts = [
        _LAYOUT,
        base.digest,
        checkpoint.digest,
        checkpoint.adapted_digest,
        [(one.name, one.version) for one in metrics],
        list(settings),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def kept_rows(key: str) -> list[dict[str, Any]] | None:
    """The rows kept under a key, or None."""
    table = _read(_file("comparisons", key), read_table)
    if table is None:
        return None
    records: list[dict[str, Any]] = (
        table.astype(object).where(table.notna(), None).to_dict("records")
    )
    return [{name: value for name, value in row.items() if value is not None} for row in records]


def keep_rows(key: str, table: pd.DataFrame) -> None:
    """Keep the rows of a tidy table under a key; none where some may be measured another time."""
    if table["status"].isin(_NOT_KEPT).any():
        return
    _write(_file("comparisons", key), table)


def kept_tokens(key: str) -> pd.DataFrame | None:
    """The table of tokens kept under a key, or None."""
    return _read(_file("tokens", key), read_tokens)


def keep_tokens(key: str, table: pd.DataFrame) -> None:
    """Keep a table of tokens under a key."""
    _write(_file("tokens", key), table)


def _file(kind: str, key: str) -> Path:
    return cache.directory() / kind / f"{key}.parquet"


def _read(file: Path, read: Callable[[Path], pd.DataFrame]) -> pd.DataFrame | None:
    """A kept table; one that is damaged is removed, and measured anew."""
    if not file.is_file():
        return None
    try:
        return read(file)
    except ScalpelError:
        file.unlink()
        return None


def _write(file: Path, table: pd.DataFrame) -> None:
    write_atomically(file, table.to_parquet(index=False))
