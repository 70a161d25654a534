"""Share of the positions at which both models would say the same."""

from __future__ import annotations

from mlflow_scalpel.metrics.estimates import Estimate, mean_over_problems
from mlflow_scalpel.metrics.kl.tokens import Texts, token_metric


@token_metric(
    "kl/same_top",
    title="Tokens whose most likely next token is the same",
    axis="fraction of tokens",
    unit="fraction",
)
def same_top(texts: Texts) -> list[Estimate]:
    """Fraction of tokens whose most likely next token is the same, as llama-perplexity prints it.

    Mean within a problem and then over problems.
    """
    return [mean_over_problems([text.same_top for text in texts])]
