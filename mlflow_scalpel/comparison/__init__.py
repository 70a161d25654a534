"""Comparison: two versions go through the metrics, one tidy table comes out.

Names are looked up where they are used: reading a stored table needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_scalpel.comparison.engine import Comparison
    from mlflow_scalpel.comparison.measured_models import MeasuredModel
    from mlflow_scalpel.comparison.probes import Probe, build_probe
    from mlflow_scalpel.comparison.table import COLUMNS, read_table, tidy, write_table

_HOMES = {
    "COLUMNS": "table",
    "Comparison": "engine",
    "Probe": "probes",
    "MeasuredModel": "measured_models",
    "build_probe": "probes",
    "read_table": "table",
    "tidy": "table",
    "write_table": "table",
}

__all__ = [
    "COLUMNS",
    "Comparison",
    "MeasuredModel",
    "Probe",
    "build_probe",
    "read_table",
    "tidy",
    "write_table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
