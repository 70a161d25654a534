"""Change of the attention to the first token."""

from __future__ import annotations

import torch
from torch import Tensor

from mlflow_scalpel.metrics.measured_on import ROWS
from mlflow_scalpel.metrics.registry import metric


@metric(
    "attention/first_token_change",
    title="Attention: change of the weight on the first token",
    axis="attention weight",
    signed=True,
    unit="probability",
    on=ROWS,
)
def first_token_change(before: Tensor, after: Tensor) -> Tensor:
    """Weight that the checkpoint's rows give to the first token, minus the base's: q_t0 - p_t0.

    Heads that have nothing to look for rest on the first token (attention sinks, arXiv 2309.17453).
    Mean over the rows t of each head (in row 0 it is 0), then over problems.

    Args:
        before: (H, T, T) float32 attention rows of the base.
        after: (H, T, T) float32 attention rows of the checkpoint.

    Returns:
        (H,) float64.
    """
    return (after[..., 0] - before[..., 0]).sum(-1, dtype=torch.float64) / before.shape[-2]
