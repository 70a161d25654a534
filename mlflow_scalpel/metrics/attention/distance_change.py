"""Change of how far back heads look."""

from __future__ import annotations

import torch
from torch import Tensor

from mlflow_scalpel.metrics.measured_on import ROWS
from mlflow_scalpel.metrics.registry import metric


@metric(
    "attention/distance_change",
    title="Attention: change of the mean distance",
    signed=True,
    unit="tokens",
    on=ROWS,
)
def distance_change(before: Tensor, after: Tensor) -> Tensor:
    """Mean distance looked back by the checkpoint minus that by the base, in tokens.

        sum_{j <= t} (q_tj - p_tj) (t - j)

    Above 0 where a head looks further back than before (mean attention distance, arXiv 2010.11929,
    in tokens and with the causal mask). Mean over the rows t of each head, then over problems.

    Args:
        before: (H, T, T) float32 attention rows of the base.
        after: (H, T, T) float32 attention rows of the checkpoint.

    Returns:
        (H,) float64. About 3 passes over the rows.
    """
    position = torch.arange(before.shape[-2], device=before.device)
    distance = position[:, None] - position  # (T, T); masked positions have no weight
    moved = (after - before) * distance
    return moved.sum((-2, -1), dtype=torch.float64) / before.shape[-2]
