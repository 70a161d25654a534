"""The one pass over a pair of matrices from which every weight metric is computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SLICE = 1 << 18  # elements a slice: fits the cache in float64, whatever the matrix's size


@dataclass(frozen=True)
class Moments:
    """Sums over the elements of one matrix, before (W_0) and after (W_t), in float64."""

    numel: int
    base_squares: float
    """Sum of the squares of W_0's elements."""
    update_squares: float
    """Sum of the squares of the elements of W_t - W_0."""


@dataclass(frozen=True)
class Training:
    """What a weight metric may know of the training that made W_t."""

    learning_rate_sum: float | None
    """Sum of the learning rates of all steps so far: 0 at the base, None where it is not known."""


def update_moments(base: Tensor, checkpoint: Tensor) -> Moments:
    """Moments of an update, a slice at a time, each slice converted to and summed in float64.

    Args:
        base: W_0, any shape and floating dtype.
        checkpoint: W_t, the same shape; its dtype may differ.

    Raises:
        ValueError: the shapes differ.
    """
    if base.shape != checkpoint.shape:
        raise ValueError(f"shape {tuple(checkpoint.shape)} against the base's {tuple(base.shape)}")
    base_squares = update_squares = 0.0
    before, after = base.reshape(-1), checkpoint.reshape(-1)
    for start in range(0, before.numel(), SLICE):
        w0 = before[start : start + SLICE].to(torch.float64)
        update = after[start : start + SLICE].to(torch.float64) - w0
        base_squares += torch.dot(w0, w0).item()
        update_squares += torch.dot(update, update).item()
    return Moments(base.numel(), base_squares, update_squares)
