"""Root mean square of an update's elements."""

from __future__ import annotations

import math

from mlflow_scalpel.metrics.registry import metric
from mlflow_scalpel.metrics.update_sums import Training, UpdateSums


@metric("weights/update_rms", title="RMS of the update", axis="RMS(Wₜ − W₀)", unit="weight")
def update_rms(moments: UpdateSums, training: Training) -> float:
    """RMS(W_t - W_0) over the elements of a matrix, in the unit of the weights."""
    return math.sqrt(moments.update_squares / moments.numel) if moments.numel else math.nan
