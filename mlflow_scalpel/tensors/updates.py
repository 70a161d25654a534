"""Updates of a tensor that are known apart from it, as an adapter stores them, in float64."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from mlflow_scalpel.tensors.cuts import Cut

BLOCK = 1 << 18  # elements of an update made at once: 2 MiB in float64


class Change(ABC):
    """An update D of a tensor W_0, made a few rows at a time.

    Tensors are taken as matrices: (R, C) as they are stored, and vectors as (R, 1).
    """

    @abstractmethod
    def rows(self, w0: Tensor, at: slice) -> Tensor:
        """Rows of D, (n, C) float64, given the same rows of W_0 as (n, C) float64."""

    def bound(self, w0: Tensor) -> Change:
        """The same, with all that it needs of W_0, (R, C) of any floating dtype, computed."""
        return self

    def cut(self, cut: Cut) -> Change | None:
        """The update of a matrix within W_0; None where that is not known without the others."""
        return None


@dataclass(frozen=True)
class LowRank(Change):
    """D = L R: for LoRA s B A, with s folded into L."""

    left: Tensor
    """L, (R, r) float64."""
    right: Tensor
    """R, (r, C) float64."""

    def rows(self, w0: Tensor, at: slice) -> Tensor:
        """Rows of L R, (n, C) float64."""
        return self.left[at] @ self.right

    def cut(self, cut: Cut) -> LowRank | None:
        """Some rows of L, and R; of D^T where the outputs are the columns of W_0."""
        if cut.expert is not None:
            return None
        upright = replace(cut, transposed=False)
        if cut.transposed:
            return LowRank(upright.of(self.right.T), self.left.T)
        return LowRank(upright.of(self.left), self.right)

    @property
    def shape(self) -> tuple[int, int]:
        """(R, C)."""
        return len(self.left), self.right.shape[1]

    def singular_values(self) -> Tensor:
        """Those of L R in falling order, (min(R, C),) float64, of which at most r are not 0.

        With L = Q_1 T_1 and R^T = Q_2 T_2 they are those of T_1 T_2^T, which is r x r.

        Raises:
            ValueError: an element is NaN or infinite.
        """
        import torch

        if not (self.left.isfinite().all() and self.right.isfinite().all()):
            raise ValueError("an element is NaN or infinite")
        first, second = (torch.linalg.qr(one, mode="r").R for one in (self.left, self.right.T))
        found = torch.linalg.svdvals(first @ second.T)
        # What rounding leaves where the factors have a lower rank than r.
        found = torch.where(found > found.amax() * found.numel() * 2e-16, found, 0.0)
        values = torch.zeros(min(self.shape), dtype=torch.float64)
        values[: len(found)] = found
        return values


@dataclass(frozen=True)
class Dora(Change):
    """D = m (W_0 + L R) / ||W_0 + L R|| - W_0, the norm of each output (arXiv 2402.09353)."""

    low: LowRank
    magnitude: Tensor
    """m, (outputs,) float64."""
    outputs: int
    """The dimension of W_0 that the outputs are in: 0 as in `nn.Linear`, 1 as in GPT-2."""

    def rows(self, w0: Tensor, at: slice) -> Tensor:
        """Not known without all of W_0: raises ValueError."""
        raise ValueError("the norms of W_0 are not known; use bound")

    def bound(self, w0: Tensor) -> Change:
        """With the norms, by one pass over W_0."""
        import torch

        squares = torch.zeros(len(self.magnitude), dtype=torch.float64)
        for at in row_slices(w0):
            moved = w0[at].double() + self.low.left[at] @ self.low.right
            if self.outputs == 0:
                squares[at] = moved.square().sum(1)
            else:
                squares += moved.square().sum(0)
        return _Scaled(self.low, self.magnitude / squares.sqrt(), self.outputs)


@dataclass(frozen=True)
class _Scaled(Change):
    """D = f (W_0 + L R) - W_0 with a factor f for each output."""

    low: LowRank
    factors: Tensor
    outputs: int

    def rows(self, w0: Tensor, at: slice) -> Tensor:
        factors = self.factors[at][:, None] if self.outputs == 0 else self.factors[None, :]
        # Not the difference of two large numbers: f is near 1.
        return (factors - 1.0) * w0 + factors * (self.low.left[at] @ self.low.right)


@dataclass(frozen=True)
class Replaced(Change):
    """Some rows of W_0 became others: what trained tokens are."""

    index: Tensor
    """Rows that are replaced, (n,) int64."""
    values: Tensor
    """Their new values, (n, C) float64."""

    def rows(self, w0: Tensor, at: slice) -> Tensor:
        """Zeros, and in the rows that were replaced the differences."""
        update = w0.new_zeros(w0.shape)
        here = (self.index >= at.start) & (self.index < at.stop)
        places = self.index[here] - at.start
        update[places] = self.values[here] - w0[places]
        return update


class Added:
    """A later state of W_0: a stored tensor, and an update that was never added to it.

    Stands where the tensor W_t would; `blocks` gives the update W_t - W_0 without rounding.

    Args:
        start: the tensor that the update is of: W_0, or that of another base.
        change: the update.
        dtype: of the numbers that the update is stored in.
        alone: the tensor is not known (a quantised one), and `start` holds zeros instead.
    """

    def __init__(self, start: Tensor, change: Change, dtype: dtype, *, alone: bool = False) -> None:
        self.start, self.change, self.dtype, self.alone = start, change, dtype, alone
        self.shape = start.shape
        self.ndim = start.ndim

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor that the update is of."""
        return self.start.numel() * self.start.element_size()

    def low_rank(self, w0: Tensor) -> LowRank | None:
        """The update where it is nothing but a product of factors."""
        low = self.change if isinstance(self.change, LowRank) else None
        return low if low is not None and self._is_of(w0) else None

    def blocks(self, w0: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Some rows of W_0 after others, (n, C) of its own dtype, and of W_t - W_0 in float64.

        Raises:
            ValueError: the shapes differ.
        """
        if w0.shape != self.shape:
            raise ValueError(f"shape {tuple(self.shape)} against the base's {tuple(w0.shape)}")
        before, start = as_matrix(w0), as_matrix(self.start)
        same, change = self._is_of(w0), self.change.bound(start)
        for at in row_slices(before):
            of_start = start[at].double()
            update = change.rows(of_start, at)
            if not same:
                update = (of_start - before[at].double()) + update
            yield before[at], update

    def update(self, w0: Tensor) -> Tensor:
        """W_t - W_0, float64 and as large as the matrix."""
        import torch

        return torch.cat([update for _, update in self.blocks(w0)]).reshape(self.shape)

    def whole(self, w0: Tensor) -> Tensor:
        """W_t, float64 and as large as the matrix."""
        return w0.double() + self.update(w0)

    def cut(self, cut: Cut) -> Added:
        """The state of a matrix within the tensor."""
        change = self.change.cut(cut)
        if change is None:
            change = _Dense(cut.of(self.update(self.start)))
        return Added(cut.of(self.start), change, self.dtype, alone=self.alone)

    def _is_of(self, w0: Tensor) -> bool:
        import torch

        if w0.data_ptr() == self.start.data_ptr():
            return True
        return w0.dtype == self.start.dtype and torch.equal(w0, self.start)


@dataclass(frozen=True)
class _Dense(Change):
    """An update as large as its matrix, (R, C) float64."""

    values: Tensor

    def rows(self, w0: Tensor, at: slice) -> Tensor:
        return self.values[at]


@dataclass(frozen=True)
class Untouched:
    """Stands for a tensor that training left out, so that it is W_0 itself."""

    shape: tuple[int, ...]
    dtype: dtype
    """Of the numbers that the update of the others is stored in."""
    nbytes: int

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


def as_matrix(tensor: Tensor) -> Tensor:
    """(R, C) of a tensor whose first dimension is R; a view."""
    return tensor.reshape(tensor.shape[0], -1) if tensor.ndim else tensor.reshape(1, 1)


def row_slices(matrix: Tensor) -> Iterator[slice]:
    """Slices of rows that hold `BLOCK` elements, or one row."""
    rows, columns = matrix.shape
    step = max(1, BLOCK // max(1, columns))
    return (slice(at, min(at + step, rows)) for at in range(0, rows, step))
