"""The group `spectra`: how many directions an update has, and what it does to singular values."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from mlflow_scalpel.metrics.registry import metric
from mlflow_scalpel.tensors.updates import Added

if TYPE_CHECKING:
    from torch import Tensor


CHUNK = 1 << 22  # elements of a matrix that are in float64 at once
BLOCK = 256  # columns of the Gram matrix made at once; only its lower triangle is needed
MEMORY = 512 << 20  # bytes that matrices side by side may take; one alone may need more


class Spectra:
    """Singular values, float64 in falling order, each computed when it is first asked for.

    Args:
        w0: W_0, (R, C) of any floating dtype.
        wt: W_t, the same shape; of an update that was never added to W_0 the singular values come
            from its factors.
        base_values: gives the singular values of W_0, which many checkpoints share.
        device: where to compute.
    """

    def __init__(
        self,
        w0: Tensor,
        wt: Tensor | Added,
        base_values: Callable[[], Tensor],
        device: str = "cpu",
    ) -> None:
        self._ways: dict[str, Callable[[], Tensor]] = {
            "base": base_values,
            "checkpoint": lambda: singular_values(_whole(w0, wt), device=device),
            "update": lambda: _update_values(w0, wt, device),
        }
        self.known: dict[str, Tensor] = {}
        """What was asked for so far."""
        self.columns = min(w0.shape)
        """Of the Gram matrices."""

    @property
    def base(self) -> Tensor:
        """Those of W_0, (min(R, C),)."""
        return self.values("base")

    @property
    def checkpoint(self) -> Tensor:
        """Those of W_t."""
        return self.values("checkpoint")

    @property
    def update(self) -> Tensor:
        """Those of W_t - W_0."""
        return self.values("update")

    def values(self, name: str) -> Tensor:
        """Those of `base`, `checkpoint` or `update`."""
        if name not in self.known:
            self.known[name] = self._ways[name]()
        return self.known[name]


def _whole(w0: Tensor, wt: Tensor | Added) -> Tensor:
    return wt.whole(w0) if isinstance(wt, Added) else wt


def _update_values(w0: Tensor, wt: Tensor | Added, device: str) -> Tensor:
    """The singular values of W_t - W_0, from its factors where it has some."""
    if not isinstance(wt, Added):
        return singular_values(wt, w0, device=device)
    low = wt.low_rank(w0)
    if low is not None:
        return low.singular_values()
    return singular_values(wt.update(w0), device=device)


def needed(functions: Iterable[Callable[[Spectra], object]]) -> set[str]:
    """What the functions ask of a `Spectra`, seen on an example, which they may refuse."""
    import torch

    ones = torch.ones(1, 1)
    example = Spectra(ones, 2 * ones, lambda: ones[0].double())
    for function in functions:
        with contextlib.suppress(ValueError):
            function(example)
    return set(example.known)


def prepare(spectra: Sequence[Spectra], names: Collection[str]) -> None:
    """Compute what is named of the spectra of one W_0, side by side on the CPU.

    Half of an eigenvalue solver waits for memory, and two threads on one matrix hardly help it: two
    matrices, each with one thread, are done in two thirds of the time. What cannot be computed is
    left to who asks for it to raise.
    """
    import torch

    jobs = [
        (one, name)
        for number, one in enumerate(spectra)
        for name in sorted(names)
        if name != "base" or number == 0
    ]
    threads = torch.get_num_threads()
    each = max((16 * one.columns**2 + 16 * CHUNK for one in spectra), default=1)
    at_once = max(1, min(threads, MEMORY // each))
    for first in range(0, len(jobs), at_once):
        together = jobs[first : first + at_once]
        share = threads // len(together)
        with ThreadPoolExecutor(
            len(together), initializer=torch.set_num_threads, initargs=(share,)
        ) as pool:
            for job in [pool.submit(one.values, name) for one, name in together]:
                if not isinstance(job.exception(), ValueError | None):
                    job.result()


def singular_values(
    matrix: Tensor, subtracted: Tensor | None = None, *, device: str = "cpu"
) -> Tensor:
    """Singular values as roots of the eigenvalues of the Gram matrix, which costs less than an SVD.

    `benchmarks/spectra.py` holds it against `torch.linalg.svdvals`. Each is right to 1e-6 of the
    largest one, and what lies below the rounding is 0. In float32 the Gram matrix would leave about
    2e-4 of the largest where there should be 0, and errors of 1e-6 in the drift, which is all that
    a small update has.

    Memory: two float64 squares of the shorter side. R C^2 + 4/3 C^3 FLOPs for C <= R. On a GPU
    (`device="cuda"`) slices travel there, and only values return.

    Args:
        matrix: (R, C) of any floating dtype.
        subtracted: of the same shape, taken from `matrix` first.
        device: where to compute.

    Returns:
        (min(R, C),) float64 in falling order, on the CPU.

    Raises:
        ValueError: an element is NaN or infinite.
    """
    import torch

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


@metric(
    "spectra/update_spectral_norm", title="Spectral norm of the update", axis="‖ΔW‖₂", unit="weight"
)
def update_spectral_norm(spectra: Spectra) -> float:
    """||W_t - W_0||_2, the largest singular value of the update, in weights."""
    return float(spectra.update[0]) if len(spectra.update) else 0.0


@metric(
    "spectra/stable_rank",
    title="Stable rank of the update",
    axis="‖ΔW‖² / ‖ΔW‖₂²",
    unit="directions",
)
def stable_rank(spectra: Spectra) -> float:
    """||U||_F^2 / ||U||_2^2 of the update U = W_t - W_0: between 1 and its rank; NaN where U is 0.

    Unlike the rank it does not count directions that hold next to nothing
    (Rudelson and Vershynin, arXiv math/0503442).
    """
    values = spectra.update
    if not values.any():
        return math.nan
    return float((values / values[0]).square().sum())


@metric(
    "spectra/effective_rank",
    title="Effective rank of the update",
    axis="effective rank",
    unit="directions",
)
def effective_rank(spectra: Spectra) -> float:
    """exp(H(p)), p_i = s_i / sum_j s_j of the update's singular values s; NaN where it is 0.

    H is the entropy in nats: k equal singular values give k (Roy and Vetterli, EUSIPCO 2007).
    """
    import torch

    values = spectra.update
    if not values.any():
        return math.nan
    shares = values / values.sum()
    return math.exp(float(torch.special.entr(shares).sum()))


@metric(
    "spectra/singular_value_drift",
    title="Drift of the singular values",
    axis="relative drift",
    unit="ratio",
)
def singular_value_drift(spectra: Spectra) -> float:
    """||s(W_t) - s(W_0)||_2 / ||s(W_0)||_2, s in falling order; NaN where W_0 is 0.

    At most `weights/relative_frobenius` (Mirsky), and far less where training turns the singular
    vectors and leaves the values (arXiv 2511.08567). Both are computed in float64.
    """
    import torch

    before = float(torch.linalg.norm(spectra.base))
    return (
        float(torch.linalg.norm(spectra.checkpoint - spectra.base)) / before if before else math.nan
    )
