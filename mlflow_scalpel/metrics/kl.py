"""KL divergence of the checkpoint's next-token distributions from the base's."""

from __future__ import annotations

import torch
from torch import Tensor

from mlflow_scalpel.metrics.registry import divergence_metric


@divergence_metric("kl", unit="nats/token")
def kl_divergence(base_logits: Tensor, checkpoint_logits: Tensor) -> Tensor:
    """KL(base || checkpoint) in nats at each position, over the full vocabulary.

        KL_t = sum_v p_t(v) (log p_t(v) - log q_t(v))

    Reduced in float64, since a float32 reduction is off by as much as early GRPO changes. The paper
    (arXiv 2507.10616) computes it in bfloat16, which puts a floor of 1e-4 to 1e-3 under it.

    Args:
        base_logits: (T, V) float32, of the base (p).
        checkpoint_logits: (T, V) float32, of the checkpoint (q).

    Returns:
        (T,) float64; 0 where the logits are equal.
    """
    log_p = torch.log_softmax(base_logits.to(torch.float64), dim=-1)  # (T, V)
    log_q = torch.log_softmax(checkpoint_logits.to(torch.float64), dim=-1)  # (T, V)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)  # (T,)
