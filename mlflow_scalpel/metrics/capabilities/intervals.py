"""Intervals of shares and of their differences that hold at 0 and 1, and for few problems."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import betaincinv, stdtrit

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
