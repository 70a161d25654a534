"""KL divergence of the checkpoint's next-token distributions from the base's."""

from __future__ import annotations

from mlflow_scalpel.metrics.estimates import Estimate, mean_over_problems
from mlflow_scalpel.metrics.kl.tokens import Texts, token_metric


@token_metric("kl", unit="nats/token")
def forward(texts: Texts) -> list[Estimate]:
    """KL(base || checkpoint) in nats a token, mean within a problem and then over problems.

        KL_t = sum_v p_t(v) (log p_t(v) - log q_t(v)),   p the base, q the checkpoint

    Over the full vocabulary, as in arXiv 2507.10616, which takes all tokens. There it is computed
    in bfloat16 and problems with NaN are left out; here a problem with NaN leaves no value.
    """
    return [mean_over_problems([text.forward for text in texts])]
