"""Largest change of a single weight."""

from __future__ import annotations

from mlflow_scalpel.metrics.registry import metric
from mlflow_scalpel.metrics.update_sums import Training, UpdateSums


@metric(
    "weights/largest_change",
    title="Largest change of an element",
    axis="max |Wₜ − W₀|",
    unit="weight",
)
def largest_change(moments: UpdateSums, training: Training) -> float:
    """max |W_t - W_0| over the elements of a matrix, in the unit of the weights."""
    return moments.largest_change
