"""Largest change of a single weight."""

from __future__ import annotations

from mlflow_scalpel.metrics.moments import Moments, Training
from mlflow_scalpel.metrics.registry import metric


@metric("weights/largest_change", unit="weight")
def largest_change(moments: Moments, training: Training) -> float:
    """max |W_t - W_0| over the elements of a matrix, in the unit of the weights."""
    return moments.largest_change
