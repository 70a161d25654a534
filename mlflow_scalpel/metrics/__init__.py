"""Metrics: pure functions, one file each in the folder of its group, and the registry of them.

A package adds metrics of its own through the entry-point group `mlflow_scalpel.metrics`: each entry
point names a module, which registers its metrics when it is imported.
"""

from mlflow_scalpel.metrics.registry import (
    GROUPS,
    Metric,
    all_metrics,
    choose_metrics,
    find_metric,
    metric,
)

__all__ = ["GROUPS", "Metric", "all_metrics", "choose_metrics", "find_metric", "metric"]
