"""By how many units in the last place the weights moved."""

from __future__ import annotations

import math

from mlflow_scalpel.metrics.registry import metric
from mlflow_scalpel.metrics.update_counts import Bin, UpdateCounts


@metric(
    "histograms/ulp_change",
    title="By how many units in the last place elements moved",
    axis="fraction of elements",
    unit="fraction",
)
def ulp_change(changes: UpdateCounts) -> list[Bin]:
    """Fraction of a matrix's elements by the units in the last place that they moved.

    The distance is the number of steps from a number of the base's dtype to the next one, so it
    counts what the stored format can tell apart (arXiv 2505.11711, 2602.03839). Bins 0 (unmoved),
    1, 2, 4, 8, ... hold the distances from there to below the next; `n` is the matrix's elements.
    A checkpoint of another dtype is rounded to the base's. A zero that changed its sign moved by
    0. NaN and infinities are in no bin: a row of their own counts them.
    """
    found = [
        Bin(float(edge), count / changes.numel, changes.numel)
        for edge, count in changes.moved.items()
    ]
    if changes.not_finite:
        found.append(Bin(None, math.nan, changes.numel, changes.not_finite))
    return found
