"""Relative Frobenius norm of an update."""

from __future__ import annotations

import math

from mlflow_scalpel.metrics.registry import metric
from mlflow_scalpel.metrics.update_sums import Training, UpdateSums


@metric(
    "weights/relative_frobenius",
    title="Relative norm of the update",
    axis="‖Wₜ − W₀‖ / ‖W₀‖",
    unit="ratio",
)
def relative_frobenius(moments: UpdateSums, training: Training) -> float:
    """||W_t - W_0||_F / ||W_0||_F (arXiv 2507.10616), a ratio; NaN for a matrix of zeros.

    The paper computes it in bfloat16, which is off by up to 0.4 %; here sums are float64.
    AdamW moves every entry by about the learning rate, so the norm also reflects 1 / RMS(W_0) and
    the rates: see `weights/update_rms` and `weights/relative_frobenius_per_lr`.
    """
    if moments.base_squares == 0.0:
        return math.nan
    return math.sqrt(moments.update_squares) / math.sqrt(moments.base_squares)
