"""Share of the weights that bfloat16 cannot tell from the base's."""

from __future__ import annotations

import math

from mlflow_scalpel.metrics.registry import metric
from mlflow_scalpel.metrics.update_sums import Training, UpdateSums


@metric(
    "weights/unchanged_bfloat16",
    title="Elements that did not change, rounded to bfloat16",
    axis="fraction of elements",
    unit="fraction",
)
def unchanged_bfloat16(moments: UpdateSums, training: Training) -> float:
    """Fraction of a matrix's elements with the same bits after rounding both to bfloat16.

    Rounding is to nearest, ties to even. Of weights that are stored in bfloat16 this is
    `weights/unchanged`. arXiv 2505.11711 counts changes above 1e-5 instead, which depends on the
    weights' size.
    """
    return moments.unchanged_bfloat16 / moments.numel if moments.numel else math.nan
