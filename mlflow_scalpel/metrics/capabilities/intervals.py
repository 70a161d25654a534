"""Intervals of shares and of their differences that hold at 0 and 1, and for few problems."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z = 1.959963984540054
"""Standard errors on either side of a 95 % normal interval."""

Interval = tuple[float, float]
#: A share with its standard error and the number of problems behind it.
Share = tuple[float, float, float]
UNKNOWN: Interval = (math.nan, math.nan)


def wilson(rate: float, stderr: float, n: float, z: float = Z) -> Interval:
    """95 % Wilson interval of a rate whose clustered standard error is known.

    Wilson's score interval (1927) for m = p (1 - p) / stderr^2 independent trials, the number that
    would give this error; for a rate of 0 or 1, which has none, m is the number n of problems. It
    stays within [0, 1], unlike p -+ 1.96 stderr, and is not of width 0 at its bounds.
    """
    m = rate * (1.0 - rate) / stderr**2 if stderr > 0.0 and 0.0 < rate < 1.0 else float(n)
    middle = (rate + z**2 / (2 * m)) / (1 + z**2 / m)
    half = z / (1 + z**2 / m) * math.sqrt(rate * (1 - rate) / m + z**2 / (4 * m**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def share_interval(rate: float, stderr: float, n: float) -> Interval:
    """`wilson` of what a table says of a share; NaN at both ends where that is too little.

    It needs a standard error, and at a share of 0 or 1, whose standard error is 0, n as well.
    """
    if math.isnan(rate) or math.isnan(stderr) or not 0.0 <= rate <= 1.0:
        return UNKNOWN
    if (stderr == 0.0 or rate in (0.0, 1.0)) and not n > 0:
        return UNKNOWN
    if stderr == 0.0 and 0.0 < rate < 1.0:  # all problems alike: as little is known as at a bound
        stderr = math.sqrt(rate * (1.0 - rate) / n)
    return wilson(rate, stderr, n)


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

    Made of the Wilson intervals of both. Where the problems are the same ones, it is too wide if
    anything. NaN at both ends where the interval of either is unknown.
    """
    low_a, high_a = share_interval(*before)
    low_b, high_b = share_interval(*after)
    a, b = before[0], after[0]
    change = b - a
    return (
        change - math.hypot(b - low_b, high_a - a),
        change + math.hypot(high_b - b, a - low_a),
    )
