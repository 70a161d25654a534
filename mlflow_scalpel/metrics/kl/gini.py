"""Whether a few tokens carry the KL, or all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mlflow_scalpel.metrics.estimates import Estimate
from mlflow_scalpel.metrics.kl.tokens import Texts, over_problems, token_metric


@token_metric(
    "kl/gini",
    title="How concentrated the KL is",
    axis="Gini coefficient over tokens",
    unit="coefficient",
)
def gini(texts: Texts) -> list[Estimate]:
    """Gini coefficient of KL(base || checkpoint) over all problems' tokens.

        G = sum_i (2 i - n - 1) x_i / (n sum_i x_i),   x sorted, i from 1

    0 where every token has the same KL, near 1 where few have all of it; NaN where KL is 0
    everywhere. Error by the jackknife over problems.
    """
    return over_problems(texts, _gini, lambda text: text.forward)


def _gini(arrays: Sequence[np.ndarray]) -> np.ndarray:
    values = np.sort(np.concatenate(arrays))
    total = values.sum()
    if total == 0.0:
        return np.array([math.nan])
    ranks = 2.0 * np.arange(1, len(values) + 1) - len(values) - 1.0
    return np.array([(ranks * values).sum() / (len(values) * total)])
