"""Share of the weights that training left as they were."""

from __future__ import annotations

import math

from mlflow_scalpel.metrics.registry import metric
from mlflow_scalpel.metrics.update_sums import Training, UpdateSums


@metric(
    "weights/unchanged",
    title="Elements that did not change",
    axis="fraction of elements",
    unit="fraction",
)
def unchanged(moments: UpdateSums, training: Training) -> float:
    """Fraction of a matrix's elements with the same bits before and after, as stored (2505.11711).

    In float32 nearly every weight changes in its last bits; `weights/unchanged_bfloat16` does not
    see those.
    """
    return moments.unchanged / moments.numel if moments.numel else math.nan
