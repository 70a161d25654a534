"""How likely a weight is to change, by its magnitude."""

from __future__ import annotations

import math

from mlflow_scalpel.metrics.registry import metric
from mlflow_scalpel.metrics.update_counts import Bin, UpdateCounts


@metric(
    "histograms/change_by_magnitude",
    title="Which elements changed, by their size in the base",
    axis="fraction changed",
    unit="fraction",
)
def change_by_magnitude(changes: UpdateCounts) -> list[Bin]:
    """Fraction of the elements of each exponent of |W_0| whose stored bits changed.

    Bins are floor(log2 |W_0|), denormals by their own exponent; zeros are in bin -150, one below
    float32's smallest. `n` is the number of elements in the bin. In bfloat16 a step of one size
    changes small weights and is lost on large ones (arXiv 2505.11711, 2602.03839). Dtypes that
    differ meet in the wider one. Elements of W_0 that are NaN or infinite are in no bin: a row of
    their own counts them.
    """
    found = [
        Bin(float(exponent), changes.changed[exponent] / count, count)
        for exponent, count in changes.elements.items()
    ]
    if changes.base_not_finite:
        found.append(Bin(None, math.nan, changes.numel, changes.base_not_finite))
    return found
