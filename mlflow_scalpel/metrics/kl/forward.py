"""KL divergence of the checkpoint's next-token distributions from the base's."""

from __future__ import annotations

from mlflow_scalpel.metrics.estimates import Estimate, mean_over_problems
from mlflow_scalpel.metrics.kl.tokens import Texts, token_metric


@token_metric("kl", title="KL(base ‖ checkpoint)", unit="nats/token")
def forward(texts: Texts) -> list[Estimate]:
    """KL(base || checkpoint) in nats a token, mean within a problem and then over problems.

        KL_t = sum_v p_t(v) (log p_t(v) - log q_t(v)),   p the base, q the checkpoint

    Over the full vocabulary. (arXiv 2507.10616 takes all tokens, in bfloat16, and leaves problems
    with NaN out: `kl_paper_compat/all_tokens`. Here a problem with NaN leaves no value.)
    """
    return [mean_over_problems([text.forward for text in texts])]
