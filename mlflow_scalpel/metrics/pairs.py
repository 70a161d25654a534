"""The group `pairs`: how alike the updates of two checkpoints from one base are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_scalpel.metrics.bits import ZERO, differ, exponents
from mlflow_scalpel.metrics.histograms import SLICE, Bin
from mlflow_scalpel.metrics.registry import metric
from mlflow_scalpel.tensors.updates import Added, as_matrix, row_slices

if TYPE_CHECKING:
    from torch import Tensor


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
    import torch

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


Half = tuple["Tensor", "Tensor"]
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


@metric(
    "pairs/update_cosine",
    title="Cosine of two runs' updates",
    axis="cosine of the updates",
    signed=True,
    unit="cosine",
)
def update_cosine(paired: PairSums) -> list[Bin]:
    """cos(W_a - W_0, W_b - W_0) of two updates as vectors, in [-1, 1]; NaN where one of them is 0.

    Two updates that know nothing of each other are at 0, up to 1 / sqrt(number of elements).
    """
    lengths = math.sqrt(paired.first_squares) * math.sqrt(paired.second_squares)
    return [Bin(None, paired.dot / lengths if lengths else math.nan, paired.numel)]


@metric(
    "pairs/changed_overlap",
    title="Elements that both runs changed, against chance",
    axis="overlap / expected by chance",
    unit="ratio to chance",
)
def changed_overlap(paired: PairSums) -> list[Bin]:
    """Elements that both checkpoints changed, divided by what chance would give, for each exponent.

        both / (first * second / elements)   among the elements with floor(log2 |W_0|) = bin

    1 is chance, elements / max(first, second) the most there can be. Within bins, since which
    weights change depends on their magnitude above all (`histograms/change_by_magnitude`), which
    makes any two updates alike (arXiv 2505.11711). Changed means other bits, as stored. Zeros are
    in bin -150. NaN where one of the two changed none; `n` is the elements of the bin. Elements of
    W_0 that are NaN or infinite are in no bin: a row of their own counts them.
    """
    found = [
        Bin(float(exponent), one.both / one.expected if one.expected else math.nan, one.elements)
        for exponent, one in paired.overlaps.items()
    ]
    if paired.base_not_finite:
        found.append(Bin(None, math.nan, paired.numel, paired.base_not_finite))
    return found


@metric(
    "pairs/changed_overlap_total",
    title="Elements that both runs changed, against chance, over all sizes",
    axis="overlap / expected by chance",
    unit="ratio to chance",
)
def changed_overlap_total(paired: PairSums) -> list[Bin]:
    """Elements that both checkpoints changed, divided by what chance within the bins would give.

        sum_b both_b / sum_b (first_b * second_b / elements_b),   b as in `pairs/changed_overlap`

    So 1 is chance, with the magnitudes' part in it taken out. NaN where the sum below is 0.
    Elements of W_0 that are NaN or infinite are left out.
    """
    expected = sum(one.expected for one in paired.overlaps.values())
    both = sum(one.both for one in paired.overlaps.values())
    return [Bin(None, both / expected if expected else math.nan, paired.numel)]
