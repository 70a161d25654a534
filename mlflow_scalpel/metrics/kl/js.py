"""Jensen-Shannon divergence of the two models' next-token distributions."""

from __future__ import annotations

from mlflow_scalpel.metrics.estimates import Estimate, mean_over_problems
from mlflow_scalpel.metrics.kl.tokens import Texts, token_metric


@token_metric("kl/js", title="Jensen-Shannon divergence of base and checkpoint", unit="nats/token")
def js(texts: Texts) -> list[Estimate]:
    """KL(p || m)/2 + KL(q || m)/2 with m = (p + q)/2, in nats a token, at most ln 2 (Lin 1991)."""
    return [mean_over_problems([text.js for text in texts])]
