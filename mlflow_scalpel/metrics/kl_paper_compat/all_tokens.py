"""KL in bfloat16."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from mlflow_scalpel.metrics.estimates import Estimate, over_means
from mlflow_scalpel.metrics.registry import metric


def bfloat16_divergence(base: Tensor, checkpoint: Tensor) -> Tensor:
    """KL(base || checkpoint) of each position from bfloat16 logits, nothing in a wider dtype.

    Args:
        base: (T, V) bfloat16 logits of the base.
        checkpoint: (T, V) bfloat16 logits of the checkpoint.

    Returns:
        (T,) bfloat16 nats; rounding alone can make it negative.
    """
    log_p, log_q = base.log_softmax(-1), checkpoint.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@metric("kl_paper_compat/all_tokens", unit="nats/token")
def all_tokens(problems: Sequence[Tensor]) -> list[Estimate]:
    """KL(base || checkpoint) in nats a token, the way of arXiv 2507.10616: bfloat16 throughout.

    Weights, forward passes, logits, log-softmax and sums are bfloat16; the mean over a problem's
    tokens is too, and then the mean over problems. Problems with NaN or infinity are left out, as
    the authors did, but n counts the others and the row says how many there were. Rounding puts a
    floor of 1e-4 to 1e-3 under the value, and may make it negative: `kl/all_tokens` has neither.

    Args:
        problems: KL of each position of a problem, (T,) bfloat16 each.
    """
    means = [float(values.mean()) for values in problems]
    finite = [mean for mean in means if math.isfinite(mean)]
    estimate = over_means(finite)
    if len(finite) == len(means):
        return [estimate]
    left_out = f"{len(means) - len(finite)} of {len(means)} problems gave NaN or infinity"
    return [replace(estimate, note=f"{left_out} in bfloat16 and are left out, as the authors did")]
