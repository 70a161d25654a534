"""Quantiles of the KL of single tokens."""

from __future__ import annotations

import numpy as np

from mlflow_scalpel.metrics.estimates import Estimate
from mlflow_scalpel.metrics.kl.tokens import Texts, over_problems, token_metric

QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)


@token_metric("kl/quantile", title="KL of single tokens, by quantile", unit="nats/token")
def quantiles(texts: Texts) -> list[Estimate]:
    """Quantiles of KL(base || checkpoint) over all problems' tokens; `bin` is the quantile.

    The set that llama-perplexity prints, with minimum (0) and maximum (1). Errors by the jackknife
    over problems, since the tokens of one problem are not independent; that of an extreme is rough.
    """
    return over_problems(
        texts,
        lambda arrays: np.quantile(np.concatenate(arrays), QUANTILES),
        lambda text: text.forward,
        QUANTILES,
    )
