"""Means over problems, and intervals of shares, changes and ratios that hold for few problems.

They hold at a share of 0 and of 1 too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959963984540054
"""Standard errors on either side of a 95 % normal interval."""

Interval = tuple[float, float]
#: A share with its standard error and the number of problems behind it.
Share = tuple[float, float, float]
UNKNOWN: Interval = (math.nan, math.nan)


def exact_interval(rate: float, stderr: float, n: float) -> Interval:
    """95 % Clopper-Pearson interval of a rate over n problems whose clustered error is known.

    The exact interval (Clopper and Pearson 1934) of m = p (1 - p) / stderr^2 independent trials,
    the number that would give this error, times (1.96 / t)^2 where that is estimated from more than
    one sample a problem, t Student's of n - 1 degrees of freedom (Korn and Graubard 1998). For a
    rate of 0 or 1, which has no error, m is the number n of problems. It stays within [0, 1], is
    not of width 0 at its bounds, and holds the rate in 95 % of cases or more, mostly more, where
    Wilson's holds it in 90 % near a bound.
    """
    from scipy.special import betaincinv, stdtrit

    m = float(n)
    if stderr > 0.0 and 0.0 < rate < 1.0:
        m = rate * (1.0 - rate) / stderr**2
        if n > 1 and m > n + 1e-6 * n:
            m = max(float(n), m * (Z / float(stdtrit(n - 1, 0.975))) ** 2)
    right, wrong = rate * m, (1.0 - rate) * m
    low = float(betaincinv(right, wrong + 1.0, 0.025)) if right > 0.0 else 0.0
    high = float(betaincinv(right + 1.0, wrong, 0.975)) if wrong > 0.0 else 1.0
    return low, high


def share_interval(rate: float, stderr: float, n: float) -> Interval:
    """`exact_interval` of what a table says of a share; NaN at both ends where that is too little.

    It needs a standard error, and at a share of 0 or 1, whose standard error is 0, n as well.
    """
    if math.isnan(rate) or math.isnan(stderr) or not 0.0 <= rate <= 1.0:
        return UNKNOWN
    if (stderr == 0.0 or rate in (0.0, 1.0)) and not n > 0:
        return UNKNOWN
    if stderr == 0.0 and 0.0 < rate < 1.0:  # all problems alike: as little is known as at a bound
        stderr = math.sqrt(rate * (1.0 - rate) / n)
    return exact_interval(rate, stderr, n)


def combined(value: float, parts: Sequence[tuple[float, Interval]]) -> Interval:
    """Interval of the mean of independent estimates, each (value, interval), by MOVER.

    The method of variance estimates recovery (Zou and Donner 2008): the distances of the ends from
    the estimates are added in squares, below and above apart.
    """
    below = math.sqrt(sum((one - low) ** 2 for one, (low, _) in parts)) / len(parts)
    above = math.sqrt(sum((high - one) ** 2 for one, (_, high) in parts)) / len(parts)
    return value - below, value + above


def unpaired_interval(before: Share, after: Share) -> Interval:
    """95 % interval of after - before, two independent shares: Newcombe (1998), method 10.

    Made of the exact intervals of both (there: Wilson's). Where the problems are the same ones, it
    is too wide if anything. NaN at both ends where the interval of either is unknown.
    """
    low_a, high_a = share_interval(*before)
    low_b, high_b = share_interval(*after)
    a, b = before[0], after[0]
    change = b - a
    return (
        change - math.hypot(b - low_b, high_a - a),
        change + math.hypot(high_b - b, a - low_a),
    )


def clustered_mean(problems: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Mean of all scores and its standard error, with the scores of one problem as a cluster.

    With S_i the sum and m_i the number of problem i's scores, R = sum S_i / sum m_i, and
    stderr^2 = n / (n - 1) * sum (S_i - R m_i)^2 / (sum m_i)^2 over the n problems. For equal m_i
    that is the standard error of the mean of the problems' means. (nan, nan) without problems, and
    a stderr of nan for one.
    """
    sums = np.array([np.sum(scores) for scores in problems], dtype=np.float64)  # (n,)
    sizes = np.array([len(scores) for scores in problems], dtype=np.float64)  # (n,)
    return clustered_ratio(sums, sizes)


def clustered_ratio(sums: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """`clustered_mean` from each problem's sum and number of scores, (n,) each."""
    n = len(sums)
    if n == 0:
        return math.nan, math.nan
    mean = sums.sum() / sizes.sum()
    if n == 1:
        return float(mean), math.nan
    spread = np.sum((sums - mean * sizes) ** 2) / sizes.sum() ** 2
    return float(mean), float(np.sqrt(n / (n - 1) * spread))


def mover(changes: np.ndarray) -> Interval:
    """95 % interval of the mean of changes (P,) between -1 and 1, sound for few changed problems.

    The mean is G - L, the mean rise minus the mean fall. Exact intervals of G and L, whose errors
    are over problems (`exact_interval`), are combined by MOVER for two correlated proportions
    (Newcombe 1998, method 10, which takes Wilson's; Zou and Donner 2008); their correlation follows
    from no problem rising and falling at once. Where nothing fell (or rose), that share lies below
    what 0 of P problems allows.
    """
    n = len(changes)
    sides = [np.clip(changes, 0.0, None), np.clip(-changes, 0.0, None)]
    means, errors, ends = [], [], []
    for side in sides:
        mean = float(side.mean())
        error = float(side.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
        if 0.0 < mean < 1.0 and error == 0.0:  # one problem, or all changed alike
            error = math.sqrt(mean * (1.0 - mean) / n)
        means.append(mean)
        errors.append(error)
        ends.append(exact_interval(mean, error, n))
    (up, down), ((up_low, up_high), (down_low, down_high)) = means, ends
    r = -up * down / (n * errors[0] * errors[1]) if errors[0] * errors[1] > 0 else 0.0
    r = max(-1.0, r)

    def distance(a: float, b: float) -> float:
        return math.sqrt(a * a - 2 * r * a * b + b * b)

    value = up - down
    return (
        max(-1.0, value - distance(up - up_low, down_high - down)),
        min(1.0, value + distance(up_high - up, down - down_low)),
    )


def ratio_interval(
    numerator: tuple[float, float, float], denominator: tuple[float, float, float]
) -> Interval:
    """95 % interval of a ratio of two independent estimates, each (value, low, high), by MOVER.

    Donner and Zou (2012). Where both intervals are symmetric it is Fieller's (1954). It holds 0
    where and only where the numerator's does. Raises ValueError where the denominator's interval
    holds 0, or reaches so far that the set of ratios is unbounded.
    """
    top, top_low, top_high = numerator
    down, down_low, down_high = denominator
    if not (down_low > 0.0 and 2 * down - down_high > 0.0):
        raise ValueError(
            f"the interval of the denominator, {down_low:.3g} to {down_high:.3g} about {down:.3g}, "
            "is too wide for one of the ratio"
        )
    product = top * down

    def end(bound: float, other: float, sign: int) -> float:
        # Where numerator - R denominator has this bound at 0: a quadratic equation in R.
        inside = product**2 - bound * other * (2 * top - bound) * (2 * down - other)
        return (product + sign * math.sqrt(max(0.0, inside))) / (other * (2 * down - other))

    # The denominator's end that pulls the same way; which one depends on the sign of R.
    return (
        end(top_low, down_high if top_low >= 0 else down_low, -1),
        end(top_high, down_low if top_high >= 0 else down_high, 1),
    )
