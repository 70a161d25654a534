"""The pass over two updates of one matrix from which every metric of the group `pairs` comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mlflow_scalpel.metrics.bits import ZERO, differ, exponents
from mlflow_scalpel.metrics.update_counts import SLICE
from mlflow_scalpel.tensors.updates import Added, as_matrix, row_slices


@dataclass(frozen=True)
class Overlap:
    """Of the elements with one exponent of W_0, how many each checkpoint changed."""

    elements: int
    first: int
    second: int
    both: int

    @property
    def expected(self) -> float:
        """How many both would change if they chose theirs among the elements by chance."""
        return self.first * self.second / self.elements


@dataclass(frozen=True)
class PairSums:
    """What one pass over W_0 and two checkpoints' W_a and W_b gives; sums are float64."""

    numel: int
    first_squares: float
    """Sum of the squares of the elements of W_a - W_0."""
    second_squares: float
    """The same of W_b - W_0."""
    dot: float
    """Sum of the products of the elements of the two updates."""
    overlaps: Mapping[int, Overlap]
    """By exponent of W_0, `bits.ZERO` for zeros."""
    base_not_finite: int
    """Elements of W_0 that are NaN or infinite: they have no exponent."""


def count_pair(base: Tensor, first: Tensor | Added, second: Tensor | Added) -> PairSums:
    """Sums and counts over two updates, in float64 and in slices that fit the cache.

    Args:
        base: W_0, any shape and floating dtype.
        first: W_a, the same shape; dtypes may differ, and an update may never have been added.
        second: W_b, the same.

    Raises:
        ValueError: the shapes differ.
    """
    for other in (first, second):
        if base.shape != other.shape:
            raise ValueError(f"shape {tuple(other.shape)} against the base's {tuple(base.shape)}")
    squares_a = squares_b = dot = 0.0
    counts: Counter[int] = Counter()
    bad = 0
    for before, (update_a, differ_a), (update_b, differ_b) in _slices(base, first, second):
        squares_a += torch.dot(update_a, update_a).item()
        squares_b += torch.dot(update_b, update_b).item()
        dot += torch.dot(update_a, update_b).item()
        finite = before.isfinite()
        bad += before.numel() - int(finite.sum())
        keys = 4 * (exponents(before) - ZERO)
        keys += 2 * differ_a + differ_b
        for key, count in enumerate(torch.bincount(keys[finite]).tolist()):
            counts[key] += count
    overlaps = {}
    for exponent in sorted({key // 4 for key, count in counts.items() if count}):
        neither, only_second, only_first, both = (counts[4 * exponent + kind] for kind in range(4))
        elements = neither + only_second + only_first + both
        overlaps[exponent + ZERO] = Overlap(elements, only_first + both, only_second + both, both)
    return PairSums(base.numel(), squares_a, squares_b, dot, overlaps, bad)


Half = tuple[Tensor, Tensor]
"""An update, (n,) float64, and whether the bits differ, (n,)."""


def _slices(
    base: Tensor, first: Tensor | Added, second: Tensor | Added
) -> Iterator[tuple[Tensor, Half, Half]]:
    """Elements of W_0, (n,), with what the two checkpoints made of them."""
    w0 = as_matrix(base)
    blocks = zip(row_slices(w0), _halves(base, first), _halves(base, second), strict=True)
    for rows, (update_a, differ_a), (update_b, differ_b) in blocks:
        before = w0[rows].reshape(-1)
        for start in range(0, before.numel(), SLICE):
            at = slice(start, start + SLICE)
            yield before[at], (update_a[at], differ_a[at]), (update_b[at], differ_b[at])


def _halves(base: Tensor, checkpoint: Tensor | Added) -> Iterator[Half]:
    """What a checkpoint made of each block of rows of W_0."""
    if isinstance(checkpoint, Added):
        for before, update in checkpoint.blocks(base):
            exact = before.double()
            yield update.reshape(-1), differ(exact, exact + update).reshape(-1)
        return
    w0, after = as_matrix(base), as_matrix(checkpoint)
    for at in row_slices(w0):
        update = after[at].double() - w0[at].double()
        yield update.reshape(-1), differ(w0[at], after[at]).reshape(-1)
