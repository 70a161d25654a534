"""Whether two checkpoints changed the same weights."""

from __future__ import annotations

import math

from mlflow_scalpel.metrics.pair_sums import PairSums
from mlflow_scalpel.metrics.registry import metric
from mlflow_scalpel.metrics.update_counts import Bin


@metric(
    "pairs/changed_overlap_total",
    title="Elements that both runs changed, against chance, over all sizes",
    axis="overlap / expected by chance",
    unit="ratio to chance",
)
def changed_overlap_total(paired: PairSums) -> list[Bin]:
    """Elements that both checkpoints changed, divided by what chance within the bins would give.

        sum_b both_b / sum_b (first_b * second_b / elements_b),   b as in `pairs/changed_overlap`

    So 1 is chance, with the magnitudes' part in it taken out. NaN where the sum below is 0.
    Elements of W_0 that are NaN or infinite are left out.
    """
    expected = sum(one.expected for one in paired.overlaps.values())
    both = sum(one.both for one in paired.overlaps.values())
    return [Bin(None, both / expected if expected else math.nan, paired.numel)]
