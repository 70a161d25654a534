"""Singular values of a matrix and of an update, from which the group `spectra` comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

CHUNK = 1 << 22  # elements of a matrix that are in float64 at once
BLOCK = 256  # columns of the Gram matrix made at once; only its lower triangle is needed


@dataclass
class Spectra:
    """Singular values, float64 in falling order, each computed when it is first asked for."""

    w0: Tensor
    wt: Tensor
    base_values: Callable[[], Tensor]
    """Gives those of W_0, which many checkpoints share."""
    device: str = "cpu"

    @cached_property
    def base(self) -> Tensor:
        """Those of W_0, (min(R, C),)."""
        return self.base_values()

    @cached_property
    def checkpoint(self) -> Tensor:
        """Those of W_t."""
        return singular_values(self.wt, device=self.device)

    @cached_property
    def update(self) -> Tensor:
        """Those of W_t - W_0."""
        return singular_values(self.wt, self.w0, device=self.device)


def singular_values(
    matrix: Tensor, subtracted: Tensor | None = None, *, device: str = "cpu"
) -> Tensor:
    """Singular values as roots of the eigenvalues of the Gram matrix, which costs less than an SVD.

    About 3 times as fast as `torch.linalg.svdvals` in float64, 1.7 times as fast as in float32
    (`benchmarks/spectra.py`). Each is right to 1e-6 of the largest one, and what lies below the
    rounding is 0. In float32 the Gram matrix would leave about 2e-4 of the largest where there
    should be 0, and errors of 1e-6 in the drift, which is all that a small update has.

    Memory: two float64 squares of the shorter side. R C^2 + 4/3 C^3 FLOPs for C <= R. On a GPU
    (`device="cuda"`, not run by us) slices travel there, and only values return.

    Args:
        matrix: (R, C) of any floating dtype.
        subtracted: of the same shape, taken from `matrix` first.
        device: where to compute.

    Returns:
        (min(R, C),) float64 in falling order, on the CPU.

    Raises:
        ValueError: an element is NaN or infinite.
    """
    if matrix.shape[0] < matrix.shape[1]:
        return singular_values(
            matrix.T, None if subtracted is None else subtracted.T, device=device
        )
    rows, columns = matrix.shape
    gram = torch.zeros(columns, columns, dtype=torch.float64, device=device)  # (C, C)
    step = max(1, CHUNK // max(1, columns))
    for at in range(0, rows, step):
        part = matrix[at : at + step].to(device).double()  # (r, C)
        if subtracted is not None:
            part = part - subtracted[at : at + step].to(device).double()
        for left in range(0, columns, BLOCK):
            right = slice(left, left + BLOCK)
            gram[left:, right].addmm_(part[:, left:].T, part[:, right])
    if not gram.isfinite().all():
        raise ValueError("an element is NaN or infinite")
    squares = torch.linalg.eigvalsh(gram, UPLO="L").flip(0)  # (C,)
    if columns:
        noise = columns * torch.finfo(torch.float64).eps * squares[0]
        squares = torch.where(squares > noise, squares, 0.0)
    return squares.sqrt().cpu()
