"""The noise that the dtype of the forward pass puts under the KL on the base's own samples."""

from __future__ import annotations

from mlflow_scalpel.metrics.estimates import Estimate, mean_over_problems
from mlflow_scalpel.metrics.kl.tokens import Texts
from mlflow_scalpel.metrics.registry import metric


@metric("kl_on_base_samples/floor/answer_tokens", unit="nats/token")
def floor(texts: Texts) -> list[Estimate]:
    """KL(base in float32 || base in the dtype in use) over the same samples; 0 in float32.

    A KL of the same size says nothing about the checkpoint. `texts` are of the base against itself.
    """
    return [mean_over_problems([text.forward for text in texts])]
