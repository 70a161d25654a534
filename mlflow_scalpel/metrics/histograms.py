"""The group `histograms`: which weights of a matrix changed, and by how much, counted in bins."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlflow_scalpel.metrics.bits import ZERO, as_bits, classes, differ, exponents, ulps
from mlflow_scalpel.metrics.registry import metric

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from mlflow_scalpel.tensors.updates import Added


BLOCK = 1 << 26  # elements that one call of the compiled count is given
SLICE = 1 << 16  # elements counted at once, so that what is made of them fits the cache
ROW = 1024  # pairs of elements a row of the compiled count
# Powers of two that the compiled count tells apart; the few weights outside are counted one by one.
_LOW, _HIGH = -22, 1
_PACK = 4096.0  # two counts share a float32 sum: the second one counts this much
_CLASSES = 16  # of distances between two 16-bit numbers: 1, 2 to 3, 4 to 7, ...
_POWERS = [*(2.0**power for power in range(_LOW, _HIGH + 1)), math.inf]
# Bits of the powers of two from 2^_LOW on, and of infinity, in each 16-bit dtype.
_BFLOAT16: list[int] = (np.array(_POWERS, np.float32).view(np.int32) >> 16).tolist()
_FLOAT16: list[int] = np.array(_POWERS, np.float16).view(np.int16).tolist()

RowCounts = Callable[["Tensor", "Tensor", "dtype"], "tuple[Tensor, ...]"]


@dataclass(frozen=True)
class Bin:
    """One bar of a histogram; where `bad` is not 0, what is in none of them instead."""

    bin: float | None
    value: float
    n: int
    bad: int = 0
    """Elements that are NaN or infinite, and so in no bin."""


@dataclass(frozen=True)
class UpdateCounts:
    """How many elements of a matrix changed, and by how much."""

    numel: int
    moved: Mapping[int, int]
    """Elements by the lower edge (0, 1, 2, 4, 8, ...) of the units in the last place moved."""
    elements: Mapping[int, int]
    """Elements by the exponent of W_0, `bits.ZERO` for zeros."""
    changed: Mapping[int, int]
    """Those of them whose bits differ."""
    base_not_finite: int
    """Elements of W_0 that are NaN or infinite: they have no exponent."""
    not_finite: int
    """Elements that are NaN or infinite before or after: they have no distance."""


def row_counts(base: Tensor, checkpoint: Tensor, dtype: dtype) -> tuple[Tensor, ...]:
    """Counts in each row of 16-bit floats; a pure function of tensors for `torch.compile`.

    A masked sum for each bin: the compiler makes vectors of that, and of no scatter. Two counts
    share a float32 sum, one of them times `_PACK`.

    Args:
        base: W_0's bits, (R, ROW) int32: two neighbours in one number, since there are vectors of
            32-bit integers and none of 16-bit ones.
        checkpoint: W_t's bits, the same shape and dtype.
        dtype: what the bits are of, bfloat16 or float16. The thresholds that it stands for are
            constants to the compiler; as arguments they would keep it from making vectors.

    Returns:
        (R,) float32 each: for each power of two, elements with |W_0| at or above it, unchanged ones
        counted as 1 and changed ones as `_PACK`; elements that are not finite before or after; for
        k = 0, 2, 4, ..., elements that moved by at least 2^k units in the last place, and `_PACK`
        times those that moved by twice that.
    """
    import torch

    *powers, infinity = _thresholds(dtype)
    parts = []
    for before, after in zip(_halves(base), _halves(checkpoint), strict=True):
        size = before & 0x7FFF
        weight = torch.where(before == after, 1.0, _PACK)
        distance = (_in_order(after) - _in_order(before)).abs()
        bad = (size >= infinity) | ((after & 0x7FFF) >= infinity)
        parts.append(
            (
                *(torch.where(size >= power, weight, 0.0) for power in powers),
                bad.float(),
                *(
                    torch.where(
                        distance >= 2 << power,
                        1.0 + _PACK,
                        torch.where(distance >= 1 << power, 1.0, 0.0),
                    )
                    for power in range(0, _CLASSES, 2)
                ),
            )
        )
    return tuple((first + second).sum(1) for first, second in zip(*parts, strict=True))


def _thresholds(dtype: dtype) -> list[int]:
    """The bits that the compiled count compares with; none but for the 16-bit dtypes."""
    import torch

    if dtype == torch.bfloat16:
        return _BFLOAT16
    return _FLOAT16 if dtype == torch.float16 else []


def _halves(pairs: Tensor) -> tuple[Tensor, Tensor]:
    return (pairs << 16) >> 16, pairs >> 16


def _in_order(bits: Tensor) -> Tensor:
    """Integers in the order of the numbers that the bits are of, neighbours one apart."""
    import torch

    return torch.where(bits < 0, -0x8000 - bits, bits)


def count_changes(base: Tensor, checkpoint: Tensor, rows: RowCounts | None = None) -> UpdateCounts:
    """Count the changes from W_0 to W_t; nothing as large as a matrix is made.

    Args:
        base: W_0, any shape and floating dtype.
        checkpoint: W_t, the same shape; its dtype may differ.
        rows: `row_counts`, or what `compiled` gives for it, for pairs of one 16-bit dtype.

    Raises:
        ValueError: the shapes differ.
    """
    if base.shape != checkpoint.shape:
        raise ValueError(f"shape {tuple(checkpoint.shape)} against the base's {tuple(base.shape)}")
    before, after = base.reshape(-1), checkpoint.reshape(-1)
    counts = _Counts()
    common = before.dtype == after.dtype and bool(_thresholds(before.dtype))
    # Pairs of elements are read as one number, which must begin at an even one.
    even = not any(int(part.storage_offset()) % 2 for part in (before, after))
    fast = rows if common and even else None
    for at in range(0, before.numel(), BLOCK):
        counts.add_block(before[at : at + BLOCK], after[at : at + BLOCK], fast)
    return counts.result(before.numel())


def count_added_changes(base: Tensor, checkpoint: Added) -> UpdateCounts:
    """The same for an update that was never added to W_0: W_t is their sum in float64.

    Args:
        base: W_0, any shape and floating dtype.
        checkpoint: W_t, the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    counts = _Counts()
    for before, update in checkpoint.blocks(base):
        after = before.double() + update
        counts.add_block(before.reshape(-1), after.reshape(-1), None)
    return counts.result(base.numel())


def _edge(number: int) -> int:
    """The smallest distance of a class: 0, 1, 2, 4, ..."""
    return 1 << number - 1 if number else 0


class _Counts:
    """Counters that slices are added to."""

    def __init__(self) -> None:
        self._moved: Counter[int] = Counter()
        self._elements: Counter[int] = Counter()
        self._changed: Counter[int] = Counter()
        self._base_not_finite = self._not_finite = 0

    def result(self, numel: int) -> UpdateCounts:
        moved, elements = (
            {key: counter[key] for key in sorted(counter) if counter[key]}
            for counter in (self._moved, self._elements)
        )
        changed = {key: self._changed[key] for key in elements}
        return UpdateCounts(
            numel, moved, elements, changed, self._base_not_finite, self._not_finite
        )

    def add_block(self, before: Tensor, after: Tensor, rows: RowCounts | None) -> None:
        """Count whole rows at once where that can be done, and the rest in slices."""
        whole = before.numel() // (2 * ROW) * (2 * ROW) if rows is not None else 0
        if rows is not None and whole and not self._add_rows(before[:whole], after[:whole], rows):
            whole = 0
        for at in range(whole, before.numel(), SLICE):
            self._add(before[at : at + SLICE], after[at : at + SLICE])

    def _add(self, before: Tensor, after: Tensor) -> None:
        """Count a slice, whatever is in it."""
        import torch

        finite = before.isfinite()
        whole = finite & after.isfinite()
        numel, here, both = before.numel(), int(finite.sum()), int(whole.sum())
        self._base_not_finite += numel - here
        self._not_finite += numel - both
        w0, wt = (before, after) if both == numel else (before[whole], after[whole])
        for number, count in enumerate(torch.bincount(classes(ulps(w0, wt))).tolist()):
            self._moved[_edge(number)] += count
        w0, wt = (before, after) if here == numel else (before[finite], after[finite])
        self._add_magnitudes(w0, wt)

    def _add_magnitudes(self, before: Tensor, after: Tensor) -> None:
        import torch

        keys = 2 * (exponents(before) - ZERO) + differ(before, after)
        for key, count in enumerate(torch.bincount(keys).tolist()):
            self._elements[key // 2 + ZERO] += count
            self._changed[key // 2 + ZERO] += count * (key % 2)

    def _add_rows(self, before: Tensor, after: Tensor, rows: RowCounts) -> bool:
        """Count whole rows; False, and nothing counted, where too many hold uncommon weights."""
        import torch

        w0, wt = (part.view(torch.int32).view(-1, ROW) for part in (before, after))
        counts = torch.stack(rows(w0, wt, before.dtype))  # (bins, R)
        second = (counts / _PACK).floor_()
        first = counts.sub_(second, alpha=_PACK)
        powers = _HIGH - _LOW + 1
        changed, elements = second[:powers], first[:powers] + second[:powers]
        moved = torch.stack([first[powers + 1 :], second[powers + 1 :]], 1).flatten(0, 1)
        outside = (elements[0] < 2 * ROW) | (elements[-1] > 0)
        if first[powers].any() or 4 * int(outside.sum()) > len(outside):
            return False
        edges = [before.numel(), *moved.sum(1, dtype=torch.float64).tolist(), 0]
        for number in range(_CLASSES + 1):
            self._moved[_edge(number)] += int(edges[number] - edges[number + 1])
        for counter, sums in ((self._elements, elements), (self._changed, changed)):
            above = sums.sum(1, dtype=torch.float64).tolist()
            for power, (more, less) in enumerate(itertools.pairwise(above), _LOW):
                counter[power] += int(more - less)
        self._add_outside(before, after, outside)
        return True

    def _add_outside(self, before: Tensor, after: Tensor, rows: Tensor) -> None:
        """Count the elements of these rows whose exponent is none of the common ones."""
        low, *_, high, _ = _thresholds(before.dtype)
        w0, wt = (part.view(-1, 2 * ROW)[rows] for part in (before, after))  # copies
        magnitude = as_bits(w0) & 0x7FFF
        uncommon = (magnitude < low) | (magnitude >= high)
        self._add_magnitudes(w0[uncommon], wt[uncommon])


@metric(
    "histograms/ulp_change",
    title="By how many units in the last place elements moved",
    axis="fraction of elements",
    unit="fraction",
)
def ulp_change(changes: UpdateCounts) -> list[Bin]:
    """Fraction of a matrix's elements by the units in the last place that they moved.

    The distance is the number of steps from a number of the base's dtype to the next one, so it
    counts what the stored format can tell apart (arXiv 2505.11711, 2602.03839). Bins 0 (unmoved),
    1, 2, 4, 8, ... hold the distances from there to below the next; `n` is the matrix's elements.
    A checkpoint of another dtype is rounded to the base's. A zero that changed its sign moved by
    0. NaN and infinities are in no bin: a row of their own counts them.
    """
    found = [
        Bin(float(edge), count / changes.numel, changes.numel)
        for edge, count in changes.moved.items()
    ]
    if changes.not_finite:
        found.append(Bin(None, math.nan, changes.numel, changes.not_finite))
    return found


@metric(
    "histograms/change_by_magnitude",
    title="Which elements changed, by their size in the base",
    axis="fraction changed",
    unit="fraction",
)
def change_by_magnitude(changes: UpdateCounts) -> list[Bin]:
    """Fraction of the elements of each exponent of |W_0| whose stored bits changed.

    Bins are floor(log2 |W_0|), denormals by their own exponent; zeros are in bin -150, one below
    float32's smallest. `n` is the number of elements in the bin. In bfloat16 a step of one size
    changes small weights and is lost on large ones (arXiv 2505.11711, 2602.03839). Dtypes that
    differ meet in the wider one. Elements of W_0 that are NaN or infinite are in no bin: a row of
    their own counts them.
    """
    found = [
        Bin(float(exponent), changes.changed[exponent] / count, count)
        for exponent, count in changes.elements.items()
    ]
    if changes.base_not_finite:
        found.append(Bin(None, math.nan, changes.numel, changes.base_not_finite))
    return found
