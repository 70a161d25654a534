"""Jensen-Shannon divergence of attention rows."""

from __future__ import annotations

import torch
from torch import Tensor

from mlflow_scalpel.metrics.measured_on import ROWS
from mlflow_scalpel.metrics.registry import metric

_NEAR = 0.0625  # r^2 below which f(r) is taken from its series, which keeps its digits


@metric(
    "attention/js",
    title="Attention: divergence of the rows",
    axis="Jensen-Shannon, nats",
    unit="nats",
    on=ROWS,
)
def js(before: Tensor, after: Tensor) -> Tensor:
    """Jensen-Shannon divergence of base's and checkpoint's attention rows in nats (Lin 1991).

        JS_t = KL(p_t || m_t)/2 + KL(q_t || m_t)/2,   m_t = (p_t + q_t)/2, at most ln 2

    Mean over the rows t of each head, then over problems. With r = (q - p)/(q + p) it is computed
    as sum m f(r) / 2, f(r) = (1-r) log(1-r) + (1+r) log(1+r), whose terms are never negative:
    nothing cancels, and a model is at exactly 0 from itself.

    Args:
        before: (H, T, T) float32 attention rows of the base.
        after: (H, T, T) float32 attention rows of the checkpoint.

    Returns:
        (H,) float64. About 15 passes over the rows.
    """
    total = before + after
    r = torch.where(total > 0.0, (after - before) / total, 0.0)
    square = r * r
    series = torch.zeros_like(square)
    for k in range(6, 0, -1):
        series = square * (1.0 / (k * (2 * k - 1)) + series)
    # Where r is 1 or -1 a logarithm is infinite and its factor 0; elsewhere none is below -17.
    down, up = torch.log1p(-r).clamp(min=-20.0), torch.log1p(r).clamp(min=-20.0)
    terms = total * torch.where(square < _NEAR, series, (1.0 - r) * down + (1.0 + r) * up)
    return 0.25 * terms.sum((-2, -1), dtype=torch.float64) / before.shape[-2]
