"""Change of the entropy of attention rows."""

from __future__ import annotations

import torch
from torch import Tensor

from mlflow_scalpel.metrics.measured_on import ROWS
from mlflow_scalpel.metrics.registry import metric


@metric(
    "attention/entropy_change",
    title="Attention: change of the rows' entropy",
    signed=True,
    unit="nats",
    on=ROWS,
)
def entropy_change(before: Tensor, after: Tensor) -> Tensor:
    """Entropy of the checkpoint's attention rows minus that of the base's, in nats.

        H(q_t) - H(p_t),   H(p_t) = -sum_{j <= t} p_tj log p_tj

    Above 0 where a head spreads its attention over more positions than before. Mean over the rows t
    of each head, then over problems. Summed in float64: small changes of large entropies.

    Args:
        before: (H, T, T) float32 attention rows of the base.
        after: (H, T, T) float32 attention rows of the checkpoint.

    Returns:
        (H,) float64. About 4 passes over the rows.
    """
    change = torch.special.entr(after.double()) - torch.special.entr(before.double())
    return change.sum((-2, -1)) / before.shape[-2]
