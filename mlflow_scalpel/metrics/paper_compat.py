"""What the authors of arXiv 2507.10616 computed, as they did: in bfloat16 from end to end.

`weights/relative_frobenius` and `kl/all_tokens` beside it are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_scalpel.metrics.on_texts import ALL_BFLOAT16, Estimate, over_means
from mlflow_scalpel.metrics.registry import metric

if TYPE_CHECKING:
    from torch import Tensor


SLICE = 1 << 27  # elements whose difference is made at once


@metric(
    "weights_paper_compat/relative_frobenius",
    title="Relative norm of the update, in bfloat16 as the paper's authors compute it",
    axis="‖Wₜ − W₀‖ / ‖W₀‖",
    unit="ratio",
)
def relative_frobenius(base: Tensor, checkpoint: Tensor) -> float:
    """||W_t - W_0||_F / ||W_0||_F with both matrices, their difference and both norms in bfloat16.

    So the authors of arXiv 2507.10616 computed it: off by up to 0.4 %, and more where the
    difference itself is rounded. `weights/relative_frobenius` beside it is exact. Matrices above
    2^27 elements go in slices, whose norms are joined in float32. NaN for a matrix of zeros.
    """
    w0, wt = base.reshape(-1), checkpoint.reshape(-1)
    slices = [slice(at, at + SLICE) for at in range(0, w0.numel(), SLICE)]
    norm = _norm(w0[these].bfloat16() for these in slices)
    moved = _norm(wt[these].bfloat16() - w0[these].bfloat16() for these in slices)
    return float(moved / norm) if norm else math.nan


def _norm(parts: Iterator[Tensor]) -> Tensor:
    import torch

    norms = [torch.linalg.vector_norm(part).float() for part in parts]
    return torch.linalg.vector_norm(torch.tensor(norms)).bfloat16()


def bfloat16_divergence(base: Tensor, checkpoint: Tensor) -> Tensor:
    """KL(base || checkpoint) of each position from bfloat16 logits, nothing in a wider dtype.

    As in the authors' script: softmax in bfloat16, and then its logarithm, not log-softmax. A
    probability that bfloat16 rounds to 0 has the logarithm -inf, and makes the position NaN.

    Args:
        base: (T, V) bfloat16 logits of the base.
        checkpoint: (T, V) bfloat16 logits of the checkpoint.

    Returns:
        (T,) bfloat16 nats; rounding alone can make it negative. NaN where a token has probability 0
        under the base, infinite where it has it under the checkpoint only.
    """
    p, q = base.softmax(-1), checkpoint.softmax(-1)
    return (p * (p.log() - q.log())).sum(-1)


@metric(
    "kl_paper_compat/all_tokens",
    title="KL(base ‖ checkpoint), in bfloat16 as the paper's authors compute it",
    unit="nats/token",
    version=2,
    on=ALL_BFLOAT16,
)
def all_tokens(problems: Sequence[Tensor]) -> list[Estimate]:
    """KL(base || checkpoint) in nats a token, the way of arXiv 2507.10616: bfloat16 throughout.

    Weights, forward passes, logits, softmax, the logarithm of the softmax and sums are bfloat16;
    the mean over a problem's tokens is too, and that over problems. Problems with NaN or infinity
    (a logit gap of 100 is enough) are left out, as the authors did, but n counts the others and
    the row says how many there were. Rounding puts a floor of 1e-4 to 1e-3 under the value and may
    make it negative: `kl/all_tokens` has neither. The standard error is that of the problems'
    means, in float64.

    Args:
        problems: KL of each position of a problem, (T,) bfloat16 each.
    """
    import torch

    means = [values.mean() for values in problems]
    finite = [mean for mean in means if math.isfinite(mean)]
    estimate = over_means([float(mean) for mean in finite])
    if finite:
        estimate = replace(estimate, value=float(torch.stack(finite).mean()))
    if len(finite) == len(means):
        return [estimate]
    left_out = f"{len(means) - len(finite)} of {len(means)} problems gave NaN or infinity"
    return [replace(estimate, note=f"{left_out} in bfloat16 and are left out, as the authors did")]
