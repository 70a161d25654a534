"""The one pass over a matrix and its later states from which the metrics of `weights` come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mlflow_scalpel.tensors.updates import Added

ROW = 4096  # elements summed in float32 before float64 takes over: an error of 1e-7 a row
SLICE_ROWS = 32  # rows an eager slice: half a megabyte in float32, which fits the cache
BLOCK = 1 << 23  # elements a compiled call, so that memory stays small where it has to run eagerly
AT_ONCE = 5  # checkpoints a compiled call: W_0 is read and converted once for them
COMPILED_FROM = 1 << 28  # elements from which compiling (seconds) is worth its time

# Sums of squares outside these may have lost terms to float32's range, and are taken in float64.
_SMALLEST, _LARGEST = 1e-20, 1e30

RowSums = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class UpdateSums:
    """What one pass over a matrix before (W_0) and after (W_t) gives; sums are float64."""

    numel: int
    base_squares: float
    """Sum of the squares of W_0's elements."""
    update_squares: float
    """Sum of the squares of the elements of W_t - W_0."""
    base_dot_update: float
    """Sum of the products of the elements of W_0 and of W_t - W_0."""
    largest_change: float
    """Largest absolute value of an element of W_t - W_0."""
    unchanged: int
    """Elements whose stored bits are the same."""
    unchanged_bfloat16: float
    """Elements whose bits are the same after rounding both to bfloat16."""


@dataclass(frozen=True)
class Training:
    """What a weight metric may know of the training that made W_t."""

    learning_rate_sum: float | None
    """Sum of the learning rates of all steps so far: 0 at the base, None where it is not known."""


class NotKnown(ValueError):
    """What a metric needs of the training is not known; the message says what."""


def row_sums(base: Tensor, *checkpoints: Tensor) -> tuple[Tensor, ...]:
    """Float32 sums of each row; a pure function of tensors, for eager use or `torch.compile`.

    Args:
        base: W_0, (R, N) of float32 or a narrower dtype, N at most `ROW`.
        checkpoints: W_t of each checkpoint, the same shape.

    Returns:
        (R,) float32 each: squares of W_0, the smallest of them; then, for each checkpoint,
        squares of the update, its products with W_0, the largest change, how many are equal.
    """
    w0 = base.float()
    squares = w0 * w0
    sums = [squares.sum(1), squares.amin(1)]
    for checkpoint in checkpoints:
        wt = checkpoint.float()
        update = wt - w0
        sums += [
            (update * update).sum(1),
            (w0 * update).sum(1),
            update.abs().amax(1),
            # Counts are sums of floats: an integer sum keeps the compiler from using vectors.
            torch.where(w0 == wt, 1.0, 0.0).sum(1),
        ]
    return tuple(sums)


def update_moments(
    base: Tensor, *checkpoints: Tensor, sums: RowSums = row_sums
) -> list[UpdateSums]:
    """UpdateSums of updates, to a relative error below 1e-6; nothing as large as a matrix is made.

    Rows of 4096 elements are summed in float32 and the rows in float64. What float32 cannot hold
    (float64 weights, sums out of its range, infinities, NaN) is summed in float64, in slices.

    Args:
        base: W_0, any shape and floating dtype.
        checkpoints: W_t of each checkpoint, the same shape; their dtypes may differ.
        sums: `row_sums`, or what `compiled` gives for it.

    Raises:
        ValueError: the shapes differ.
    """
    for one in checkpoints:
        if one.shape != base.shape:
            raise ValueError(f"shape {tuple(one.shape)} against the base's {tuple(base.shape)}")
    before, after = base.reshape(-1), [one.reshape(-1) for one in checkpoints]
    if not before.numel():
        return [UpdateSums(0, 0.0, 0.0, 0.0, 0.0, 0, 0)] * len(after)
    found: dict[int, UpdateSums] = {}
    for together in _calls([one.dtype for one in after], compiled=sums is not row_sums):
        if torch.float64 in (before.dtype, after[together[0]].dtype):
            found |= {at: _in_float64(before, after[at]) for at in {*together}}
            continue
        columns = _summed(before, [after[at] for at in together], sums)
        for number, at in enumerate(together):
            if at not in found:  # some fill up a call
                own = columns[2 + 4 * number : 6 + 4 * number]
                found[at] = _moments(before, after[at], columns[:2], own)
    return [found[at] for at in range(len(after))]


def added_moments(base: Tensor, checkpoint: Added) -> UpdateSums:
    """UpdateSums of an update that was never added to W_0, summed in float64 and in blocks of rows.

    W_t is W_0 plus the update in float64, and its bits are compared with W_0's there.

    Args:
        base: W_0, any shape and floating dtype.
        checkpoint: W_t, the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    squares = update_squares = dot = largest = 0.0
    unchanged = rounded = 0
    for before, update in checkpoint.blocks(base):
        if not update.numel():
            continue
        w0 = before.double()
        after = w0 + update
        squares += torch.sum(w0 * w0).item()
        update_squares += torch.sum(update * update).item()
        dot += torch.sum(w0 * update).item()
        change = update.abs().max().item()
        largest = change if change != change else max(change, largest)
        unchanged += int((after == w0).sum())
        rounded += _same_bits(before.reshape(-1), after.reshape(-1), torch.bfloat16)
    return UpdateSums(base.numel(), squares, update_squares, dot, largest, unchanged, rounded)


def untouched_moments(numel: int) -> UpdateSums:
    """The sums of a matrix that is W_0 itself, which is not read: they stand for any other."""
    return UpdateSums(numel, 1.0, 0.0, 0.0, 0.0, numel, numel)


def _calls(dtypes: Sequence[torch.dtype], *, compiled: bool) -> Iterator[list[int]]:
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


def _summed(before: Tensor, after: Sequence[Tensor], sums: RowSums) -> list[Tensor]:
    """The columns of `row_sums` over all rows, (R,) float64 each; the last row may be shorter."""
    whole = before.numel() // ROW * ROW
    size = BLOCK if sums is not row_sums else ROW * SLICE_ROWS
    parts = []
    for at in range(0, whole, size):
        stop = min(at + size, whole)
        # A compiled function is made anew for a single row.
        function = sums if stop - at > ROW else row_sums
        parts.append(function(*(one[at:stop].view(-1, ROW) for one in (before, *after))))
    if whole < before.numel():
        parts.append(row_sums(*(one[None, whole:] for one in (before, *after))))
    return [torch.cat(column).double() for column in zip(*parts, strict=True)]


def _moments(
    before: Tensor, after: Tensor, of_base: Sequence[Tensor], own: Sequence[Tensor]
) -> UpdateSums:
    """UpdateSums from the columns of W_0 and of one checkpoint, where float32 could hold them."""
    base_squares, update_squares, dot = (one.sum().item() for one in (of_base[0], *own[:2]))
    equal = int(own[3].sum().item())
    if not (_in_range(base_squares) and (_in_range(update_squares) or equal == before.numel())):
        return _in_float64(before, after)
    unchanged = equal + _zeros_of_other_sign(before, after, of_base[1])
    narrow = before.dtype == after.dtype == torch.bfloat16
    rounded = unchanged if narrow else _same_bits(before, after, torch.bfloat16)
    largest = own[2].max().item()
    return UpdateSums(
        before.numel(), base_squares, update_squares, dot, largest, unchanged, rounded
    )


def _zeros_of_other_sign(before: Tensor, after: Tensor, smallest: Tensor) -> int:
    """Minus the number of zeros that became zeros of the other sign: equal, but not the same bits.

    `smallest` holds the smallest square of each row of `ROW` elements; only rows with a zero (or
    with what is one when it is squared) are looked at.
    """
    other = 0
    for row in torch.nonzero(smallest == 0.0).flatten().tolist():
        w0, wt = (part[row * ROW : (row + 1) * ROW] for part in (before, after))
        other += int(((w0 == 0.0) & (wt == 0.0) & (w0.signbit() != wt.signbit())).sum())
    return -other


def _in_range(squares: float) -> bool:
    return squares == squares and _SMALLEST < squares < _LARGEST


def _slices(before: Tensor, after: Tensor) -> list[tuple[Tensor, Tensor]]:
    size = ROW * SLICE_ROWS
    return [
        (before[at : at + size], after[at : at + size]) for at in range(0, before.numel(), size)
    ]


def _in_float64(before: Tensor, after: Tensor) -> UpdateSums:
    squares = update_squares = dot = largest = 0.0
    for w0, wt in _slices(before, after):
        w0 = w0.double()
        update = wt.double() - w0
        squares += torch.dot(w0, w0).item()
        update_squares += torch.dot(update, update).item()
        dot += torch.dot(w0, update).item()
        change = update.abs().max().item()
        largest = change if change != change else max(change, largest)
    unchanged = _same_bits(before, after)
    rounded = _same_bits(before, after, torch.bfloat16)
    return UpdateSums(before.numel(), squares, update_squares, dot, largest, unchanged, rounded)


def _same_bits(before: Tensor, after: Tensor, rounded_to: torch.dtype | None = None) -> int:
    """Elements with the same bits, as stored, or rounded; dtypes that differ meet in the wider."""
    dtype = rounded_to or torch.promote_types(before.dtype, after.dtype)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    return sum(
        int((w0.to(dtype).view(bits) == wt.to(dtype).view(bits)).sum())
        for w0, wt in _slices(before, after)
    )
