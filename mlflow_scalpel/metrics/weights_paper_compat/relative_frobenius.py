"""Relative Frobenius norm of an update, in bfloat16."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from mlflow_scalpel.metrics.registry import metric

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
    norms = [torch.linalg.vector_norm(part).float() for part in parts]
    return torch.linalg.vector_norm(torch.tensor(norms)).bfloat16()
