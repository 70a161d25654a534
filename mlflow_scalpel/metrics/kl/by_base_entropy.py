"""KL by how sure the base is."""

from __future__ import annotations

import numpy as np
import torch

from mlflow_scalpel.metrics.estimates import Estimate, mean_over_problems
from mlflow_scalpel.metrics.kl.tokens import Texts, token_metric


@token_metric("kl/by_base_entropy", title="KL by how sure the base is", unit="nats/token")
def by_base_entropy(texts: Texts) -> list[Estimate]:
    """KL(base || checkpoint) of the tokens in each decile of the base's entropy; `bin` is 1 to 10.

    Decile 10 holds the tokens at which the base is least sure (forking tokens, arXiv 2506.01939).
    Mean within a problem and then over the problems that have such tokens.
    """
    if not texts:
        return []
    entropies = torch.cat([text.base_entropy for text in texts]).numpy()
    if not np.isfinite(entropies).all():
        return [mean_over_problems([text.forward for text in texts], bin=1.0)]
    edges = np.quantile(entropies, np.arange(0.1, 1.0, 0.1))
    found = []
    for decile in range(10):
        part = [
            text.forward[torch.from_numpy(np.searchsorted(edges, text.base_entropy) == decile)]
            for text in texts
        ]
        if any(len(values) for values in part):
            found.append(mean_over_problems(part, bin=decile + 1.0))
    return found
