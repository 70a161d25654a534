"""The one pass over a matrix and its later states: named sums over the elements, for `weights`.

A sum over elements that no metric has needed yet is one entry beside the metric that uses it, in
`weights.py` or in another package:

    @reduction("sum")
    def absolute_update(pair: Pair) -> Tensor:
        return pair.update.abs()

    @metric("weights/mean_change", title="Mean change of an element", unit="weight")
    def mean_change(sums: UpdateSums, training: Training) -> float:
        return sums[absolute_update] / sums.numel

The pass takes it up by itself: in float32 rows, compiled with the others where that is worth it; in
float64 where float32 cannot hold the numbers, and for adapters' updates; for a matrix that training
left out, it is computed of one element that did not change. `python benchmarks/weights.py` before
and after shows what the sum costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from mlflow_scalpel.metrics.bits import differ

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from mlflow_scalpel.tensors.updates import Added

ROW = 4096  # elements summed in float32 before float64 takes over: an error of 1e-7 per row
SLICE_ROWS = 32  # rows per eager slice: half a megabyte in float32, which fits the cache
BLOCK = 1 << 23  # elements per compiled call: memory stays small where it has to run eagerly
AT_ONCE = 5  # checkpoints per compiled call: W_0 is read and converted once for them
COMPILED_FROM = 1 << 28  # elements from which compiling (seconds) is worth its time

# Sums of squares outside these may have lost terms to float32's range, and are taken in float64.
_SMALLEST, _LARGEST = 1e-20, 1e30

RowSums = Callable[..., "tuple[Tensor, ...]"]


class Pair(NamedTuple):
    """Some elements of W_0 and W_t, all of one shape, in float32 or in float64."""

    w0: Tensor
    """NaN where W_0 is not known, but only the update."""
    wt: Tensor
    """NaN where W_0 is not known."""
    update: Tensor
    """W_t - W_0."""


Terms = Callable[[Pair], "Tensor | tuple[Tensor, Tensor]"]
"""What is summed for each element, or two factors of it."""


@dataclass(frozen=True, eq=False)
class Reduction:
    """A number over all elements of W_0 and W_t: what is made of each, and how that is joined."""

    function: Terms
    kind: Literal["sum", "max"]
    of_base: bool
    """Whether it is of W_0 alone, and so computed once for many checkpoints."""

    def rows(self, pair: Pair) -> Tensor:
        """The number of each row of a pair (R, N), (R,)."""
        terms = self.function(pair)
        if isinstance(terms, tuple):
            return (terms[0] * terms[1]).sum(1)
        return terms.amax(1) if self.kind == "max" else terms.sum(1)

    def of_rows(self, rows: Tensor) -> float:
        """The number of all rows together, (R,) float64."""
        return (rows.max() if self.kind == "max" else rows.sum()).item()

    def total(self, pair: Pair) -> float:
        """The number of a pair in float64, of any shape."""
        terms = self.function(pair)
        if isinstance(terms, tuple):
            first, second = terms
            return (first.dot(second) if first.ndim == 1 else (first * second).sum()).item()
        return (terms.max() if self.kind == "max" else terms.sum()).item()

    def joined(self, numbers: Iterable[float]) -> float:
        """The number of all parts together; NaN where one of them is."""
        whole = 0.0  # of no elements, and no maximum is less: they are of absolute values
        for number in numbers:
            if self.kind != "max":
                whole += number
            elif not number <= whole:
                whole = number if whole == whole else whole
        return whole


_REDUCTIONS: list[Reduction] = []


def reduction(
    kind: Literal["sum", "max"], *, of_base: bool = False
) -> Callable[[Terms], Reduction]:
    """Decorator: make the function of a `Pair` a sum that every pass computes.

    Args:
        kind: `sum` of what the function gives for each element, or its `max`, which must not be
            negative. Of two factors that it gives, the products are summed.
        of_base: the function looks at `w0` alone.
    """

    def add(function: Terms) -> Reduction:
        made = Reduction(function, kind, of_base)
        _REDUCTIONS.append(made)
        return made

    return add


@reduction("sum", of_base=True)
def base_squares(pair: Pair) -> tuple[Tensor, Tensor]:
    """Sum of the squares of W_0's elements."""
    return pair.w0, pair.w0


@reduction("sum")
def update_squares(pair: Pair) -> tuple[Tensor, Tensor]:
    """Sum of the squares of the elements of W_t - W_0."""
    return pair.update, pair.update


@dataclass(frozen=True)
class UpdateSums:
    """What one pass over a matrix before (W_0) and after (W_t) gives; sums are float64."""

    numel: int
    unchanged: int
    """Elements whose stored bits are the same."""
    unchanged_bfloat16: float
    """Elements whose bits are the same after rounding both to bfloat16; NaN if not known."""
    values: Mapping[Reduction, float]
    """Every `reduction`."""

    def __getitem__(self, which: Reduction) -> float:
        return self.values[which]


def row_sums(base: Tensor, *checkpoints: Tensor) -> tuple[Tensor, ...]:
    """Float32 sums of each row; a pure function of tensors, for eager use or `torch.compile`.

    Args:
        base: W_0, (R, N) of float32 or a narrower dtype, N at most `ROW`.
        checkpoints: W_t of each checkpoint, the same shape.

    Returns:
        (R,) float32 each: the smallest square of W_0's elements, the reductions of W_0 alone; then,
        for each checkpoint, how many elements are equal, and the other reductions.
    """
    import torch

    of_base, of_each = _ordered()
    w0 = base.float()
    sums = [(w0 * w0).amin(1), *(one.rows(Pair(w0, w0, w0)) for one in of_base)]
    for checkpoint in checkpoints:
        wt = checkpoint.float()
        pair = Pair(w0, wt, wt - w0)
        # Counts are sums of floats: an integer sum keeps the compiler from using vectors.
        sums += [torch.where(w0 == wt, 1.0, 0.0).sum(1), *(one.rows(pair) for one in of_each)]
    return tuple(sums)


def _ordered() -> tuple[list[Reduction], list[Reduction]]:
    """Those of W_0 alone, and those of each checkpoint."""
    return (
        [one for one in _REDUCTIONS if one.of_base],
        [one for one in _REDUCTIONS if not one.of_base],
    )


def update_sums(base: Tensor, *checkpoints: Tensor, rows: RowSums = row_sums) -> list[UpdateSums]:
    """UpdateSums of updates, to a relative error below 1e-6; nothing as large as a matrix is made.

    Rows of 4096 elements are summed in float32 and the rows in float64. What float32 cannot hold
    (float64 weights, sums out of its range, infinities, NaN) is summed in float64, in slices.

    Args:
        base: W_0, any shape and floating dtype.
        checkpoints: W_t of each checkpoint, the same shape; their dtypes may differ.
        rows: `row_sums`, or what `compiled` gives for it.

    Raises:
        ValueError: the shapes differ.
    """
    import torch

    for one in checkpoints:
        if one.shape != base.shape:
            raise ValueError(f"shape {tuple(one.shape)} against the base's {tuple(base.shape)}")
    before, after = base.reshape(-1), [one.reshape(-1) for one in checkpoints]
    found: dict[int, UpdateSums] = {}
    for together in _calls([one.dtype for one in after], compiled=rows is not row_sums):
        these = [after[at] for at in together]
        if not before.numel() or torch.float64 in (before.dtype, these[0].dtype):
            measured: list[UpdateSums | None] = [None] * len(these)
        else:
            measured = list(_in_float32(before, these, rows))
        for at, sums in zip(together, measured, strict=True):
            if at not in found:  # some fill up a call
                found[at] = sums or _in_float64(before, after[at])
    return [found[at] for at in range(len(after))]


def added_update_sums(base: Tensor, checkpoint: Added) -> UpdateSums:
    """UpdateSums of an update that was never added to W_0, summed in float64 and in blocks of rows.

    W_t is W_0 plus the update in float64, and compared with W_0 there.

    Args:
        base: W_0, any shape and floating dtype.
        checkpoint: W_t, the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    import torch

    unchanged = rounded = 0

    def pairs() -> Iterator[Pair]:
        nonlocal unchanged, rounded
        for before, update in checkpoint.blocks(base):
            if update.numel():
                w0 = before.double()
                wt = w0 + update
                unchanged += int((wt == w0).sum())
                rounded += _same_bits(before.reshape(-1), wt.reshape(-1), torch.bfloat16)
                yield Pair(w0, wt, update)

    values = _totals(pairs())
    return UpdateSums(base.numel(), unchanged, rounded, values)


def update_alone_sums(checkpoint: Added) -> UpdateSums:
    """UpdateSums of an update of a matrix that is not known: NaN where they depend on it."""
    unchanged = 0

    def pairs() -> Iterator[Pair]:
        nonlocal unchanged
        for _, update in checkpoint.blocks(checkpoint.start):
            if update.numel():
                unchanged += int((update == 0.0).sum())
                unknown = update.new_full(update.shape, math.nan)
                yield Pair(unknown, unknown, update)

    values = _totals(pairs())
    return UpdateSums(checkpoint.start.numel(), unchanged, math.nan, values)


def untouched_sums() -> UpdateSums:
    """The sums of a matrix that is W_0 itself, which is not read: one element stands for all."""
    import torch

    one = torch.ones(1)
    return update_sums(one, one)[0]


def _calls(dtypes: Sequence[dtype], *, compiled: bool) -> Iterator[list[int]]:
    """Indices of the checkpoints of each call, all of one dtype, at most `AT_ONCE`.

    Each number of checkpoints is compiled anew, which takes seconds. So there are calls of one, and
    full ones, in which the last index is repeated to fill a few places: that costs less than calls
    of one for three.
    """
    for dtype in dict.fromkeys(dtypes):
        same = [at for at, one in enumerate(dtypes) if one == dtype]
        for first in range(0, len(same), AT_ONCE):
            together = same[first : first + AT_ONCE]
            if not compiled:
                yield together
            elif len(together) < 3:
                yield from ([at] for at in together)
            else:
                yield together + together[-1:] * (AT_ONCE - len(together))


def _in_float32(
    before: Tensor, after: Sequence[Tensor], rows: RowSums
) -> Iterator[UpdateSums | None]:
    """UpdateSums from `row_sums`; None where float32 could not hold what they are made of."""
    import torch

    whole = before.numel() // ROW * ROW  # the last row may be shorter
    size = BLOCK if rows is not row_sums else ROW * SLICE_ROWS
    parts = []
    for at in range(0, whole, size):
        stop = min(at + size, whole)
        # A compiled function is made anew for a single row.
        function = rows if stop - at > ROW else row_sums
        parts.append(function(*(one[at:stop].view(-1, ROW) for one in (before, *after))))
    if whole < before.numel():
        parts.append(row_sums(*(one[None, whole:] for one in (before, *after))))
    columns = (torch.cat(column) for column in zip(*parts, strict=True))  # (R,) each
    of_base, of_each = _ordered()

    def joined(these: Sequence[Reduction]) -> dict[Reduction, float]:
        return {one: one.of_rows(next(columns).double()) for one in these}

    smallest, shared = next(columns), joined(of_base)
    for one in after:
        equal = int(next(columns).double().sum().item())
        values = shared | joined(of_each)
        changed = equal < before.numel()
        squares = [values[base_squares], *([values[update_squares]] if changed else [])]
        if not all(_SMALLEST < square < _LARGEST for square in squares):
            yield None
            continue
        unchanged = equal - _zeros_of_other_sign(before, one, smallest)
        narrow = before.dtype == one.dtype == torch.bfloat16
        rounded = unchanged if narrow else _same_bits(before, one, torch.bfloat16)
        yield UpdateSums(before.numel(), unchanged, rounded, values)


def _zeros_of_other_sign(before: Tensor, after: Tensor, smallest: Tensor) -> int:
    """The number of zeros that became zeros of the other sign: equal, but not the same bits.

    `smallest` holds the smallest square of each row of `ROW` elements; only rows with a zero (or
    with what is one when it is squared) are looked at.
    """
    other = 0
    for row in (smallest == 0.0).nonzero().flatten().tolist():
        w0, wt = (part[row * ROW : (row + 1) * ROW] for part in (before, after))
        other += int(((w0 == 0.0) & (wt == 0.0) & (w0.signbit() != wt.signbit())).sum())
    return other


def _in_float64(before: Tensor, after: Tensor) -> UpdateSums:
    """UpdateSums of matrices of any dtype, (N,), in slices."""
    import torch

    wide = ((w0.double(), wt.double()) for w0, wt in _slices(before, after))
    values = _totals(Pair(w0, wt, wt - w0) for w0, wt in wide)
    rounded = _same_bits(before, after, torch.bfloat16)
    return UpdateSums(before.numel(), _same_bits(before, after), rounded, values)


def _totals(pairs: Iterable[Pair]) -> dict[Reduction, float]:
    """Every reduction in float64, of the parts of a matrix one after another."""
    totals = [[one.total(pair) for one in _REDUCTIONS] for pair in pairs]
    parts = zip(*totals, strict=True) if totals else [()] * len(_REDUCTIONS)
    return {one: one.joined(found) for one, found in zip(_REDUCTIONS, parts, strict=True)}


def _slices(before: Tensor, after: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = ROW * SLICE_ROWS
    for at in range(0, before.numel(), size):
        yield before[at : at + size], after[at : at + size]


def _same_bits(before: Tensor, after: Tensor, rounded_to: dtype | None = None) -> int:
    """Elements with the same bits, as stored, or rounded; dtypes that differ meet in the wider."""
    same = 0
    for w0, wt in _slices(before, after):
        if rounded_to is not None:
            w0, wt = w0.to(rounded_to), wt.to(rounded_to)
        same += len(w0) - int(differ(w0, wt).sum())
    return same
