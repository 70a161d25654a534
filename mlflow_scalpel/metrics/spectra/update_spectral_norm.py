"""Largest singular value of an update."""

from __future__ import annotations

from mlflow_scalpel.metrics.registry import metric
from mlflow_scalpel.metrics.singular_values import Spectra


@metric(
    "spectra/update_spectral_norm", title="Spectral norm of the update", axis="‖ΔW‖₂", unit="weight"
)
def update_spectral_norm(spectra: Spectra) -> float:
    """||W_t - W_0||_2, the largest singular value of the update, in weights."""
    return float(spectra.update[0]) if len(spectra.update) else 0.0
