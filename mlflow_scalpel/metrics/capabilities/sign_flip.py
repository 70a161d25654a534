"""The exact sign-flip permutation test of a mean change over problems, and its interval.

Where nothing changed, base and checkpoint could be exchanged on any problem, which flips the sign
of that problem's change. So the test holds its level however few problems changed, and at a score
of 0 or 1; for one sample a problem it is McNemar's exact test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

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
