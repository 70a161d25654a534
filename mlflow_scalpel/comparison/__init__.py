"""Comparison: two versions go through the metrics, one tidy table comes out."""

from mlflow_scalpel.comparison.engine import Comparison
from mlflow_scalpel.comparison.probes import Probe, build_probe
from mlflow_scalpel.comparison.subjects import Subject
from mlflow_scalpel.comparison.table import COLUMNS, read_table, tidy, write_table

__all__ = [
    "COLUMNS",
    "Comparison",
    "Probe",
    "Subject",
    "build_probe",
    "read_table",
    "tidy",
    "write_table",
]
