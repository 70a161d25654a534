"""Effective rank of an update."""

from __future__ import annotations

import math

import torch

from mlflow_scalpel.metrics.registry import metric
from mlflow_scalpel.metrics.singular_values import Spectra


@metric(
    "spectra/effective_rank",
    title="Effective rank of the update",
    axis="effective rank",
    unit="directions",
)
def effective_rank(spectra: Spectra) -> float:
    """exp(H(p)), p_i = s_i / sum_j s_j of the update's singular values s; NaN where it is 0.

    H is the entropy in nats: k equal singular values give k (Roy and Vetterli, EUSIPCO 2007).
    """
    values = spectra.update
    if not values.any():
        return math.nan
    shares = values / values.sum()
    return math.exp(float(torch.special.entr(shares).sum()))
