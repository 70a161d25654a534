"""The one pass over a pair of matrices from which every metric of the group `weights` comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ROW = 4096  # elements summed in float32 before float64 takes over: an error of 1e-7 a row
SLICE_ROWS = 32  # rows an eager slice: half a megabyte in float32, which fits the cache
COMPILED_FROM = 1 << 28  # elements from which compiling (seconds) is worth its time

# Sums of squares outside these may have lost terms to float32's range, and are taken in float64.
_SMALLEST, _LARGEST = 1e-20, 1e30

RowSums = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Moments:
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
    unchanged_bfloat16: int
    """Elements whose bits are the same after rounding both to bfloat16."""


@dataclass(frozen=True)
class Training:
    """What a weight metric may know of the training that made W_t."""

    learning_rate_sum: float | None
    """Sum of the learning rates of all steps so far: 0 at the base, None where it is not known."""


class NotKnown(ValueError):
    """What a metric needs of the training is not known; the message says what."""


def row_sums(base: Tensor, checkpoint: Tensor) -> tuple[Tensor, ...]:
    """Float32 sums of each row; a pure function of tensors, for eager use or `torch.compile`.

    Args:
        base: W_0, (R, N) of float32 or a narrower dtype, N at most `ROW`.
        checkpoint: W_t, the same shape.

    Returns:
        (R,) float32 each: squares of W_0, squares of the update, their products, the largest
        change, how many are equal, the smallest square of W_0.
    """
    w0, wt = base.float(), checkpoint.float()
    update, squares = wt - w0, w0 * w0
    # Counts are sums of floats: an integer sum keeps the compiler from using vectors.
    return (
        squares.sum(1),
        (update * update).sum(1),
        (w0 * update).sum(1),
        update.abs().amax(1),
        torch.where(w0 == wt, 1.0, 0.0).sum(1),
        squares.amin(1),
    )


def update_moments(base: Tensor, checkpoint: Tensor, sums: RowSums = row_sums) -> Moments:
    """Moments of an update, to a relative error below 1e-6; nothing as large as a matrix is made.

    Rows of 4096 elements are summed in float32 and the rows in float64. What float32 cannot hold
    (float64 weights, sums out of its range, infinities, NaN) is summed in float64, in slices.

    Args:
        base: W_0, any shape and floating dtype.
        checkpoint: W_t, the same shape; its dtype may differ.
        sums: `row_sums`, or what `compiled` gives for it.

    Raises:
        ValueError: the shapes differ.
    """
    if base.shape != checkpoint.shape:
        raise ValueError(f"shape {tuple(checkpoint.shape)} against the base's {tuple(base.shape)}")
    before, after = base.reshape(-1), checkpoint.reshape(-1)
    if torch.float64 in (before.dtype, after.dtype):
        return _in_float64(before, after)
    whole = before.numel() // ROW * ROW
    parts = []
    if whole:
        rows = before[:whole].view(-1, ROW), after[:whole].view(-1, ROW)
        if sums is row_sums:
            starts = range(0, len(rows[0]), SLICE_ROWS)
            parts += [sums(*(part[at : at + SLICE_ROWS] for part in rows)) for at in starts]
        else:
            parts.append(sums(*rows))
    if whole < before.numel():
        parts.append(row_sums(before[None, whole:], after[None, whole:]))
    if not parts:
        return Moments(0, 0.0, 0.0, 0.0, 0.0, 0, 0)
    columns = [torch.cat(column).double() for column in zip(*parts, strict=True)]
    base_squares, update_squares, dot = (column.sum().item() for column in columns[:3])
    largest = columns[3].max().item()
    equal = int(columns[4].sum().item())
    if not (_in_range(base_squares) and (_in_range(update_squares) or equal == before.numel())):
        return _in_float64(before, after)
    unchanged = equal + _zeros_of_other_sign(before, after, columns[5])
    narrow = before.dtype == after.dtype == torch.bfloat16
    rounded = unchanged if narrow else _same_bits(before, after, torch.bfloat16)
    return Moments(before.numel(), base_squares, update_squares, dot, largest, unchanged, rounded)


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


def _in_float64(before: Tensor, after: Tensor) -> Moments:
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
    return Moments(before.numel(), squares, update_squares, dot, largest, unchanged, rounded)


def _same_bits(before: Tensor, after: Tensor, rounded_to: torch.dtype | None = None) -> int:
    """Elements with the same bits, as stored, or rounded; dtypes that differ meet in the wider."""
    dtype = rounded_to or torch.promote_types(before.dtype, after.dtype)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    return sum(
        int((w0.to(dtype).view(bits) == wt.to(dtype).view(bits)).sum())
        for w0, wt in _slices(before, after)
    )
