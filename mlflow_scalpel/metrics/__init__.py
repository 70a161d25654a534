"""Metrics: pure functions on tensors, one file each, and the registry that finds them.

A package adds metrics of its own through the entry-point group `mlflow_scalpel.metrics`: each entry
point names a module, which registers its metrics when it is imported.
"""

from mlflow_scalpel.metrics.registry import Metric, metrics_of_kind, weight_metric

__all__ = ["Metric", "metrics_of_kind", "weight_metric"]
