"""How far a matrix turned."""

from __future__ import annotations

import math

from mlflow_scalpel.metrics.registry import metric
from mlflow_scalpel.metrics.update_sums import Training, UpdateSums


@metric(
    "weights/cosine_distance",
    title="Cosine distance of the weights",
    axis="1 − cos(Wₜ, W₀)",
    unit="1 - cosine",
)
def cosine_distance(moments: UpdateSums, training: Training) -> float:
    """1 - cos(W_0, W_t) of the matrices as vectors, in [0, 2]; NaN where one of them is zero.

        1 - cos = (||U||^2 - (||W_t|| - ||W_0||)^2) / (2 ||W_0|| ||W_t||),   U = W_t - W_0

    Computed from the update: a cosine that is near 1 has lost the difference from 1 already when
    it is rounded. The difference of the norms is (2 W_0.U + ||U||^2) / (||W_t|| + ||W_0||).
    """
    before = math.sqrt(moments.base_squares)
    growth = 2.0 * moments.base_dot_update + moments.update_squares  # ||W_t||^2 - ||W_0||^2
    after = math.sqrt(max(moments.base_squares + growth, 0.0))
    if before == 0.0 or after == 0.0:
        return math.nan
    longer = growth / (after + before)
    return max(moments.update_squares - longer * longer, 0.0) / (2.0 * before * after)
