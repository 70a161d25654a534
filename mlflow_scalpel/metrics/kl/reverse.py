"""KL divergence of the base's next-token distributions from the checkpoint's."""

from __future__ import annotations

from mlflow_scalpel.metrics.estimates import Estimate, mean_over_problems
from mlflow_scalpel.metrics.kl.tokens import Texts, token_metric


@token_metric("kl/reverse", title="KL(checkpoint ‖ base)", unit="nats/token")
def reverse(texts: Texts) -> list[Estimate]:
    """KL(checkpoint || base) in nats a token, mean within a problem and then over problems.

    Large where the checkpoint says what the base would not; `kl` is large where it no longer says
    what the base would.
    """
    return [mean_over_problems([text.reverse for text in texts])]
