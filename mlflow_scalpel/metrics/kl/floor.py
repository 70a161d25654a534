"""The noise that the dtype of the forward pass puts under every KL."""

from __future__ import annotations

from mlflow_scalpel.metrics.estimates import Estimate, mean_over_problems
from mlflow_scalpel.metrics.kl.tokens import Texts, token_metric


@token_metric("kl/floor", title="Noise floor of the KL", unit="nats/token")
def floor(texts: Texts) -> list[Estimate]:
    """KL(base in float32 || base in the dtype in use), the noise under KL there; 0 in float32.

    A KL of the same size says nothing about the checkpoint. `texts` are of the base against itself;
    mean within a problem and then over problems.
    """
    return [mean_over_problems([text.forward for text in texts])]
