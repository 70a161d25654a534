"""What the ledger would show if nothing had changed: an exact permutation test within problems.

If the checkpoint is no other model than the base, all samples of a problem are exchangeable between
the two: given how many of them are right, each way of dealing them out is as likely. That gives the
exact chance of each number of gained (or lost) problems, and of its distance from what the base's
own samples say, whatever the rates of the problems are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom

from mlflow_scalpel.metrics.capabilities.benchmark import Benchmark

ALPHA = 0.05
TWO_ERRORS = 0.0455  # of a normal distribution lie outside of two standard deviations
EXACT_TO = 1 << 17
"""Largest number of different excesses; expectations of a problem are rounded to stay within."""
ROUNDING = 1e-13
"""Of a chance that comes out of a Fourier transform."""


@dataclass(frozen=True)
class Unchanged:
    """How many problems would be gained (or lost) by chance, beside how many were."""

    expected: float
    """From the base's samples alone: sum of c (k - c) / (k (k - 1))."""
    scatter: float
    """Standard error of observed - expected if nothing changed."""
    low: float
    """Numbers from `low` to `high` are not told apart from chance: of them, p is above 0.05."""
    high: float
    p: float
    """Two-sided: twice the smaller tail."""


def changed_by_chance(right: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Chance that of two samples of a model the first is wrong and the second right, (P,).

        q_i = c_i (k_i - c_i) / (k_i (k_i - 1))

    the mean over all ordered pairs of different samples, unbiased for p_i (1 - p_i).

    Args:
        right: (P,) right samples c_i of each problem.
        samples: (P,) all samples k_i, two or more.
    """
    return right * (samples - right) / (samples * (samples - 1))


def unchanged(benchmarks: Sequence[Benchmark], *, lost: bool = False) -> Unchanged:
    """The number of gained problems over all benchmarks against what no change would give.

    The sum of `changed_by_chance` of the base is the number that the base would gain against
    itself. The excess, observed - expected, has mean 0 if nothing changed. Its exact distribution
    follows from dealing each problem's samples out again: the number of right ones that the base
    gets is hypergeometric, and any of its samples is the first. So the scatter is that of the
    number itself and of the expectation, which comes from k samples, together.

    `scatter` is the standard deviation or, where the distribution is far from normal as where few
    problems can change, half the distance within which 95.45 % of it lie, if that is more: so many
    lie within two standard deviations of a normal one.

    Lost problems are those with the first samples the other way round. Raises ValueError where a
    problem has fewer than two samples of the base.
    """
    columns = ("base_right", "base_samples", "right", "samples")
    problems = np.concatenate(
        [np.stack([getattr(one, name) for name in columns]) for one in benchmarks], axis=1
    ).astype(np.int64)  # (4, P)
    if not problems.size or problems[1].min() < 2:
        raise ValueError("what chance gives needs problems, with two samples of the base each")
    observed = sum(int((one.lost if lost else one.gained).sum()) for one in benchmarks)
    return _unchanged(problems.tobytes(), observed, lost)


@functools.lru_cache(maxsize=64)  # several metrics are parts of one
def _unchanged(problems: bytes, observed: int, lost: bool) -> Unchanged:
    rights, k, right, others = np.frombuffer(problems, dtype=np.int64).reshape(4, -1)
    pooled = rights + right
    unit = math.lcm(*np.unique(k * (k - 1)).tolist())
    unit = min(unit, max(64, EXACT_TO // (2 * len(k))))
    groups, counts = np.unique(np.stack([k, others, pooled]), axis=1, return_counts=True)
    first, chances = _sum_of(
        [_excess(*group, unit, lost) for group in groups.T.tolist()], counts.tolist()
    )
    excess = observed * unit - int(_units(rights, k, unit).sum())
    values = first + np.arange(len(chances))
    at = excess - first
    p = min(1.0, 2 * min(float(chances[: at + 1].sum()), float(chances[at:].sum())))
    low, high = _inside(values, chances, ALPHA / 2)
    two_errors = max(map(abs, _inside(values, chances, TWO_ERRORS / 2)))
    middle = float(chances @ values)
    spread = math.sqrt(float(chances @ (values - middle) ** 2))
    return Unchanged(
        float(changed_by_chance(rights, k).sum()),
        max(spread, two_errors / 2) / unit,
        max(0.0, observed - (excess - low) / unit),
        observed - (excess - high) / unit,
        max(p, ROUNDING),
    )


def _inside(values: np.ndarray, chances: np.ndarray, tail: float) -> tuple[int, int]:
    """The least and the largest of the values at which a tail has more than this chance."""
    low = np.argmax(np.cumsum(chances) > tail + ROUNDING)
    high = np.argmax(np.cumsum(chances[::-1]) > tail + ROUNDING)
    return int(values[low]), int(values[len(values) - 1 - high])


def _units(right: np.ndarray, samples: np.ndarray, unit: int) -> np.ndarray:
    """`changed_by_chance` in whole numbers of 1 / unit."""
    return np.rint(changed_by_chance(right, samples) * unit).astype(np.int64)


@functools.lru_cache(maxsize=4096)
def _excess(k: int, others: int, pooled: int, unit: int, lost: bool) -> tuple[int, np.ndarray]:
    """Of one problem with so many right samples in all: the least excess, and the chance of each.

    The excess is whether it is gained, less what its base's samples expect, in numbers of 1 / unit.
    """
    right = np.arange(max(0, pooled - others), min(k, pooled) + 1)  # what the base may get
    chance = hypergeom.pmf(right, k + others, pooled, k)
    one, other = right / k, (pooled - right) / others
    changed = chance * (one * (1 - other) if lost else (1 - one) * other)
    expected = _units(right, np.full(len(right), k), unit)
    first = -int(expected.max())
    found = np.zeros(unit - int(expected.min()) - first + 1)
    np.add.at(found, -expected - first, chance - changed)
    np.add.at(found, unit - expected - first, changed)
    return first, found


def _sum_of(
    groups: Sequence[tuple[int, np.ndarray]], counts: Sequence[int]
) -> tuple[int, np.ndarray]:
    """The least sum over all problems, and the chance of each; `counts` problems of each group."""
    first = sum(start * count for (start, _), count in zip(groups, counts, strict=True))
    size = 1 + sum((len(c) - 1) * count for (_, c), count in zip(groups, counts, strict=True))
    room = 1 << (size - 1).bit_length()
    product = np.ones(room // 2 + 1, dtype=np.complex128)
    for (_, chances), count in zip(groups, counts, strict=True):
        if len(chances) > 1:
            product *= np.fft.rfft(chances, room) ** count
    found = np.fft.irfft(product, room)[:size] if room > 1 else np.ones(1)
    return first, np.clip(found, 0.0, None)
