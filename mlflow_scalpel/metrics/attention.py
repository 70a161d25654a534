"""The group `attention`: how far heads attend elsewhere than the base's do.

Functions take the attention rows of base and checkpoint over one text, (H, T, T) each: row t holds
the weights that position t gives to positions 0 to t, and zeros after them. They give the mean over
the T rows for each head, (H,) float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_scalpel.metrics.on_texts import ROWS
from mlflow_scalpel.metrics.registry import metric

if TYPE_CHECKING:
    from torch import Tensor


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
    import torch

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
    import torch

    change = torch.special.entr(after.double()) - torch.special.entr(before.double())
    return change.sum((-2, -1)) / before.shape[-2]


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
    import torch

    return (after[..., 0] - before[..., 0]).sum(-1, dtype=torch.float64) / before.shape[-2]


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
    import torch

    position = torch.arange(before.shape[-2], device=before.device)
    distance = position[:, None] - position  # (T, T); masked positions have no weight
    moved = (after - before) * distance
    return moved.sum((-2, -1), dtype=torch.float64) / before.shape[-2]
