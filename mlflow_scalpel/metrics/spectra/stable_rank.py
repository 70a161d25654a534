"""Stable rank of an update."""

from __future__ import annotations

import math

from mlflow_scalpel.metrics.registry import metric
from mlflow_scalpel.metrics.singular_values import Spectra


@metric(
    "spectra/stable_rank",
    title="Stable rank of the update",
    axis="‖ΔW‖² / ‖ΔW‖₂²",
    unit="directions",
)
def stable_rank(spectra: Spectra) -> float:
    """||U||_F^2 / ||U||_2^2 of the update U = W_t - W_0: between 1 and its rank; NaN where U is 0.

    Unlike the rank it does not count directions that hold next to nothing
    (Rudelson and Vershynin, arXiv math/0503442).
    """
    values = spectra.update
    if not values.any():
        return math.nan
    return float((values / values[0]).square().sum())
