"""Exact tests of whether anything changed: McNemar's, sign flips, and samples dealt out again.

Where nothing changed, base and checkpoint could be exchanged on any problem, which flips the sign
of that problem's change. So the sign-flip test of a mean change holds its level however few
problems changed, and at a score of 0 or 1; for one sample a problem it is McNemar's exact test.

What the ledger would show if nothing had changed comes from a permutation test within problems:
all samples of a problem are then exchangeable between the two models; given how many of them are
right, each way of dealing them out is as likely. That gives the exact chance of each number of
gained (or lost) problems, and of its distance from what the base's own samples say, whatever the
rates of the problems are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlflow_scalpel.metrics.capabilities.benchmark import Benchmark
from mlflow_scalpel.metrics.capabilities.intervals import Interval

EXACT_TO = 1 << 18
"""Largest sum of whole changes whose distribution is computed; beyond, flips are drawn."""
DRAWS = 20_000
SEED = 0
ALPHA = 0.05


def sign_flip_p(changes: Sequence[tuple[np.ndarray, int]]) -> float:
    """Two-sided p: share of all flips of sign with a mean at least as far from 0 as the observed.

    Args:
        changes: of each benchmark, whole changes (P,) of its problems, and what a change of 1 is
            divided by in the mean over problems and benchmarks; the statistic is the sum over
            benchmarks of sum(changes) / divisor.

    1 where no problem changed. Exact, by the distribution of the sum, where the changes share a
    lattice of a reasonable size; else p = (1 + hits) / (1 + DRAWS) of flips drawn, which holds the
    level as well (Phipson and Smyth 2010).
    """
    common = math.lcm(*(divisor for _, divisor in changes))
    sizes = [(np.abs(whole[whole != 0]), common // divisor) for whole, divisor in changes]
    total = sum(int(one.sum()) * factor for one, factor in sizes)
    if not total:
        return 1.0
    if total > EXACT_TO:
        return _drawn_p(changes)
    steps = np.concatenate([one * factor for one, factor in sizes])
    observed = abs(sum(int(whole.sum()) * (common // divisor) for whole, divisor in changes))
    unit = int(np.gcd.reduce(steps))
    steps, observed = steps // unit, observed // unit
    # Chance of each sum of the changes whose sign is negative: the mean is total - 2 sum.
    chances = np.zeros(int(steps.sum()) + 1)
    chances[0], top = 1.0, 0
    for step in steps.tolist():
        chances[step : top + step + 1] += chances[: top + 1].copy()
        chances *= 0.5
        top += step
    sums = top - 2 * np.arange(top + 1)
    return min(1.0, float(chances[np.abs(sums) >= observed].sum()))


def _drawn_p(changes: Sequence[tuple[np.ndarray, int]]) -> float:
    parts = np.concatenate([whole[whole != 0] / divisor for whole, divisor in changes])
    observed = abs(float(parts.sum()))
    rng, hits = np.random.default_rng(SEED), 0
    for _ in range(0, DRAWS, 1000):
        signs = rng.integers(0, 2, (1000, len(parts)), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ parts) >= observed * (1 - 1e-12)).sum())
    return (1 + hits) / (1 + DRAWS)


def inverted(changes: Sequence[tuple[np.ndarray, int]]) -> Interval:
    """95 % interval of the mean change that the sign-flip test of a shift does not reject.

    Its ends are quantiles of the means of random subsets of the problems (Hartigan 1969, typical
    values), of which DRAWS are drawn. No closer to 0 than the closest subset mean that is not 0, on
    a side where the test rejects 0.
    """
    values = np.concatenate([whole * (len(whole) / divisor) for whole, divisor in changes])
    weights = np.concatenate([np.full(len(whole), 1 / len(whole)) for whole, _ in changes])
    rng, means = np.random.default_rng(SEED), []
    for _ in range(0, DRAWS, 1000):
        inside = rng.integers(0, 2, (1000, len(values))).astype(bool)
        held = np.where(inside, weights, 0.0)
        some = held.any(axis=1)
        means.append((held[some] @ values) / held[some].sum(axis=1))
    drawn = np.concatenate(means) * len(changes)
    low, high = np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2])
    up, down = drawn[drawn > 0], drawn[drawn < 0]
    if low <= 0 < drawn.mean() and len(up):
        low = up.min()
    if high >= 0 > drawn.mean() and len(down):
        high = down.max()
    return float(low), float(high)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p: were each changed problem as likely gained as lost?

    Under that hypothesis the number gained is Binomial(gained + lost, 1/2); 1 where nothing
    changed. (McNemar 1947; exact form as in Fay 2010.)
    """
    from scipy.stats import binomtest

    changed = gained + lost
    return float(binomtest(gained, changed, 0.5).pvalue) if changed else 1.0


TWO_ERRORS = 0.0455  # of a normal distribution lie outside of two standard deviations
EXCESSES = 1 << 17
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
    unit = min(unit, max(64, EXCESSES // (2 * len(k))))
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
    from scipy.stats import hypergeom

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
