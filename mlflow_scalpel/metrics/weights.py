"""The group `weights`: how far each matrix moved from the base, from sums over its elements.

`update_sums.py` says how a metric of another sum is added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_scalpel.metrics.registry import metric
from mlflow_scalpel.metrics.update_sums import (
    Pair,
    UpdateSums,
    base_squares,
    reduction,
    update_squares,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Training:
    """What a weight metric may know of the training that made W_t."""

    learning_rate_sum: float | None
    """Sum of the learning rates of all steps so far: 0 at the base, None where it is not known."""


class NotKnown(ValueError):
    """What a metric needs of the training is not known; the message says what."""


@metric(
    "weights/relative_frobenius",
    title="Relative norm of the update",
    axis="‖Wₜ − W₀‖ / ‖W₀‖",
    unit="ratio",
)
def relative_frobenius(sums: UpdateSums, training: Training) -> float:
    """||W_t - W_0||_F / ||W_0||_F (arXiv 2507.10616), a ratio; NaN for a matrix of zeros.

    The paper computes it in bfloat16, which is off by up to 0.4 %; here sums are float64.
    AdamW moves every entry by about the learning rate, so the norm also reflects 1 / RMS(W_0) and
    the rates: see `weights/update_rms` and `weights/relative_frobenius_per_lr`.
    """
    if sums[base_squares] == 0.0:
        return math.nan
    return math.sqrt(sums[update_squares]) / math.sqrt(sums[base_squares])


@metric(
    "weights/relative_frobenius_per_lr",
    title="Relative norm, divided by the sum of learning rates so far",
    axis="relative norm / Σ lr",
    unit="1/learning rate",
)
def relative_frobenius_per_lr(sums: UpdateSums, training: Training) -> float | None:
    """||W_t - W_0||_F / ||W_0||_F divided by the sum of the learning rates of all steps so far.

    Raises NotKnown where that sum is not known; None at the base, where no step has been
    taken. In the runs of arXiv 2507.10616 the norms differ 44 times and this by 8 %: the difference
    is the rate's.
    """
    if training.learning_rate_sum is None:
        raise NotKnown("the learning rates of this model's training are not known")
    if training.learning_rate_sum == 0.0:
        return None
    return relative_frobenius(sums, training) / training.learning_rate_sum


@metric("weights/update_rms", title="RMS of the update", axis="RMS(Wₜ − W₀)", unit="weight")
def update_rms(sums: UpdateSums, training: Training) -> float:
    """RMS(W_t - W_0) over the elements of a matrix, in the unit of the weights."""
    return math.sqrt(sums[update_squares] / sums.numel) if sums.numel else math.nan


@reduction("max")
def largest(pair: Pair) -> Tensor:
    """Largest absolute value of an element of W_t - W_0."""
    return pair.update.abs()


@metric(
    "weights/largest_change",
    title="Largest change of an element",
    axis="max |Wₜ − W₀|",
    unit="weight",
)
def largest_change(sums: UpdateSums, training: Training) -> float:
    """max |W_t - W_0| over the elements of a matrix, in the unit of the weights."""
    return sums[largest]


@reduction("sum")
def base_dot_update(pair: Pair) -> tuple[Tensor, Tensor]:
    """Sum of the products of the elements of W_0 and of W_t - W_0."""
    return pair.w0, pair.update


@metric(
    "weights/cosine_distance",
    title="Cosine distance of the weights",
    axis="1 − cos(Wₜ, W₀)",
    unit="1 - cosine",
)
def cosine_distance(sums: UpdateSums, training: Training) -> float:
    """1 - cos(W_0, W_t) of the matrices as vectors, in [0, 2]; NaN where one of them is zero.

        1 - cos = (||U||^2 - (||W_t|| - ||W_0||)^2) / (2 ||W_0|| ||W_t||),   U = W_t - W_0

    Computed from the update: a cosine that is near 1 has lost the difference from 1 already when
    it is rounded. The difference of the norms is (2 W_0.U + ||U||^2) / (||W_t|| + ||W_0||).
    """
    before = math.sqrt(sums[base_squares])
    growth = 2.0 * sums[base_dot_update] + sums[update_squares]  # ||W_t||^2 - ||W_0||^2
    after = math.sqrt(max(sums[base_squares] + growth, 0.0))
    if before == 0.0 or after == 0.0:
        return math.nan
    longer = growth / (after + before)
    return max(sums[update_squares] - longer * longer, 0.0) / (2.0 * before * after)


@metric(
    "weights/unchanged",
    title="Elements that did not change",
    axis="fraction of elements",
    unit="fraction",
)
def unchanged(sums: UpdateSums, training: Training) -> float:
    """Fraction of a matrix's elements with the same bits before and after, as stored (2505.11711).

    In float32 nearly every weight changes in its last bits; `weights/unchanged_bfloat16` does not
    see those.
    """
    return sums.unchanged / sums.numel if sums.numel else math.nan


@metric(
    "weights/unchanged_bfloat16",
    title="Elements that did not change, rounded to bfloat16",
    axis="fraction of elements",
    unit="fraction",
)
def unchanged_bfloat16(sums: UpdateSums, training: Training) -> float:
    """Fraction of a matrix's elements with the same bits after rounding both to bfloat16.

    Rounding is to nearest, ties to even. Of weights that are stored in bfloat16 this is
    `weights/unchanged`. arXiv 2505.11711 counts changes above 1e-5 instead, which depends on the
    weights' size.
    """
    return sums.unchanged_bfloat16 / sums.numel if sums.numel else math.nan
