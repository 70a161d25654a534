"""The change of a success rate from base to checkpoint, paired over problems: test and interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlflow_scalpel.metrics.capabilities.benchmark import Benchmark
from mlflow_scalpel.metrics.capabilities.intervals import Interval, combined, exact_interval
from mlflow_scalpel.metrics.capabilities.sign_flip import ALPHA, inverted, sign_flip_p


@dataclass(frozen=True)
class Change:
    """Mean over benchmarks of the change of success rate, checkpoint minus base."""

    value: float
    stderr: float
    """Over problems; 0 where all changed alike, or none did: `low` and `high` then say more."""
    low: float
    high: float
    """Ends of the 95 % interval, which holds 0 where and only where `p` is above 0.05."""
    p: float
    """Two-sided, of the exact sign-flip test over problems."""


def paired_change(benchmarks: Sequence[Benchmark]) -> Change:
    """Mean over benchmarks of the change of success rate, with its test and its interval.

    Within a benchmark the mean over problems of r_i / k_i - b_i / k_i; paired, for both models
    answer the same problems. Benchmarks count alike and are independent.

    The test flips the signs of the problems' changes (`sign_flip_p`). The interval is that of the
    mean rise of the problems that rose minus the mean fall of those that fell (`mover`), combined
    over benchmarks. At 0 the exact test has the last word, so that interval and verdict agree:
    where it does not reject 0, the interval is extended to 0; where it does and the interval
    reaches over 0, that end is the inverted test's (`inverted`).
    """
    whole = []
    parts: list[tuple[float, Interval]] = []
    squares = []
    for one in benchmarks:
        unit = math.lcm(*np.unique(one.samples).tolist(), *np.unique(one.base_samples).tolist())
        steps = one.right * (unit // one.samples) - one.base_right * (unit // one.base_samples)
        whole.append((steps, unit * one.n * len(benchmarks)))
        changes = steps / unit  # (P,)
        parts.append((float(changes.mean()), mover(changes)))
        squares.append(float(changes.var(ddof=1)) / one.n if one.n > 1 else math.nan)
    value = float(np.mean([one for one, _ in parts]))
    p = sign_flip_p(whole)
    low, high = combined(value, parts)
    if p > ALPHA:
        low, high = min(low, 0.0), max(high, 0.0)
    elif low <= 0.0 <= high:
        exact = inverted(whole)
        low, high = (exact[0], high) if value > 0 else (low, exact[1])
    return Change(value, math.sqrt(sum(squares)) / len(parts), low, high, p)


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
