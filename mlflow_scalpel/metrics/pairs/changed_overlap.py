"""Whether two checkpoints changed the same weights, by their magnitude."""

from __future__ import annotations

import math

from mlflow_scalpel.metrics.pair_sums import PairSums
from mlflow_scalpel.metrics.registry import metric
from mlflow_scalpel.metrics.update_counts import Bin


@metric(
    "pairs/changed_overlap",
    title="Elements that both runs changed, against chance",
    axis="overlap / expected by chance",
    unit="ratio to chance",
)
def changed_overlap(paired: PairSums) -> list[Bin]:
    """Elements that both checkpoints changed, divided by what chance would give, for each exponent.

        both / (first * second / elements)   among the elements with floor(log2 |W_0|) = bin

    1 is chance, elements / max(first, second) the most there can be. Within bins, since which
    weights change depends on their magnitude above all (`histograms/change_by_magnitude`), which
    makes any two updates alike (arXiv 2505.11711). Changed means other bits, as stored. Zeros are
    in bin -150. NaN where one of the two changed none; `n` is the elements of the bin. Elements of
    W_0 that are NaN or infinite are in no bin: a row of their own counts them.
    """
    found = [
        Bin(float(exponent), one.both / one.expected if one.expected else math.nan, one.elements)
        for exponent, one in paired.overlaps.items()
    ]
    if paired.base_not_finite:
        found.append(Bin(None, math.nan, paired.numel, paired.base_not_finite))
    return found
