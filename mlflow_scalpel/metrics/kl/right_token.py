"""Change of the probability of the token that the text goes on with."""

from __future__ import annotations

import torch

from mlflow_scalpel.metrics.estimates import Estimate, mean_over_problems
from mlflow_scalpel.metrics.kl.tokens import Texts, TokenDivergence, token_metric


def _change(text: TokenDivergence) -> torch.Tensor:
    change = text.checkpoint_right - text.base_right
    # Nothing follows a text's last position.
    return change[~(torch.isnan(text.base_right) & torch.isfinite(text.base_entropy))]


@token_metric(
    "kl/right_token_change",
    title="Mean change of the right token's probability",
    signed=True,
    unit="probability",
)
def right_token_change(texts: Texts) -> list[Estimate]:
    """Mean of q(x) - p(x) for the token x that follows, as llama-perplexity's mean change of p.

    Mean within a problem and then over problems; a text's last token has no other after it, and is
    left out.
    """
    return [mean_over_problems([_change(text) for text in texts])]


@token_metric(
    "kl/right_token_rms", title="RMS change of the right token's probability", unit="probability"
)
def right_token_rms(texts: Texts) -> list[Estimate]:
    """Root mean square of q(x) - p(x) for the token x that follows, as llama-perplexity's RMS.

    Mean of squares within a problem and then over problems; the error by the delta method. A text's
    last token has no other after it, and is left out.
    """
    squares = mean_over_problems([_change(text) ** 2 for text in texts])
    root = squares.value**0.5
    error = squares.stderr / (2.0 * root) if root > 0.0 else 0.0
    return [Estimate(root, error, squares.n, bad=squares.bad)]
