"""How far the singular values of a matrix moved."""

from __future__ import annotations

import math

import torch

from mlflow_scalpel.metrics.registry import metric
from mlflow_scalpel.metrics.singular_values import Spectra


@metric(
    "spectra/singular_value_drift",
    title="Drift of the singular values",
    axis="relative drift",
    unit="ratio",
)
def singular_value_drift(spectra: Spectra) -> float:
    """||s(W_t) - s(W_0)||_2 / ||s(W_0)||_2, s in falling order; NaN where W_0 is 0.

    At most `weights/relative_frobenius` (Mirsky), and far less where training turns the singular
    vectors and leaves the values (arXiv 2511.08567). Both are computed in float64.
    """
    before = float(torch.linalg.norm(spectra.base))
    return (
        float(torch.linalg.norm(spectra.checkpoint - spectra.base)) / before if before else math.nan
    )
