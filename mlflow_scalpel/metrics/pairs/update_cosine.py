"""Cosine of two updates."""

from __future__ import annotations

import math

from mlflow_scalpel.metrics.pair_sums import PairSums
from mlflow_scalpel.metrics.registry import metric
from mlflow_scalpel.metrics.update_counts import Bin


@metric(
    "pairs/update_cosine",
    title="Cosine of two runs' updates",
    axis="cosine of the updates",
    signed=True,
    unit="cosine",
)
def update_cosine(paired: PairSums) -> list[Bin]:
    """cos(W_a - W_0, W_b - W_0) of two updates as vectors, in [-1, 1]; NaN where one of them is 0.

    Two updates that know nothing of each other are at 0, up to 1 / sqrt(number of elements).
    """
    lengths = math.sqrt(paired.first_squares) * math.sqrt(paired.second_squares)
    return [Bin(None, paired.dot / lengths if lengths else math.nan, paired.numel)]
