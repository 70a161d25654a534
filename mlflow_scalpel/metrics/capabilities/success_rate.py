"""Success rates over k samples a problem, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mlflow_scalpel.metrics.capabilities.benchmark import (
    Benchmark,
    Finding,
    benchmark_metric,
    none,
)
from mlflow_scalpel.metrics.capabilities.intervals import share_interval


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


def _rate(right: np.ndarray, samples: np.ndarray) -> tuple[float, float, int]:
    return (*clustered_ratio(right.astype(float), samples.astype(float)), len(right))


def _findings(right: np.ndarray, samples: np.ndarray, bound: int | None) -> list[Finding]:
    rate, stderr, n = _rate(right, samples)
    if not n:
        return [none("no problem was graded of both models")]
    if bound is None:
        return [Finding(rate, stderr, n)]
    if n == 1:
        stderr = 0.0  # not known: as for a rate at its bound, what one problem can say
    return [Finding(share_interval(rate, stderr, n)[bound], n=n)]


@benchmark_metric("capabilities/success_rate", title="Success rate", unit="accuracy")
def success_rate(benchmark: Benchmark) -> list[Finding]:
    """Share of the checkpoint's samples that are right, over the problems that both models have.

    The error is over problems, whose samples belong together (clustered_mean).
    """
    return _findings(benchmark.right, benchmark.samples, None)


@benchmark_metric(
    "capabilities/success_rate_low",
    title="Success rate, lower end of its interval",
    unit="accuracy",
    version=2,
)
def success_rate_low(benchmark: Benchmark) -> list[Finding]:
    """Lower end of the 95 % exact interval of capabilities/success_rate.

    Clopper and Pearson's, of as many independent trials as give the clustered standard error.
    """
    return _findings(benchmark.right, benchmark.samples, 0)


@benchmark_metric(
    "capabilities/success_rate_high",
    title="Success rate, upper end of its interval",
    unit="accuracy",
    version=2,
)
def success_rate_high(benchmark: Benchmark) -> list[Finding]:
    """Upper end of the 95 % exact interval of capabilities/success_rate."""
    return _findings(benchmark.right, benchmark.samples, 1)


@benchmark_metric(
    "capabilities/base_success_rate", title="Success rate of the base", unit="accuracy"
)
def base_success_rate(benchmark: Benchmark) -> list[Finding]:
    """Share of the base's samples that are right, on the same problems."""
    return _findings(benchmark.base_right, benchmark.base_samples, None)


@benchmark_metric(
    "capabilities/base_success_rate_low",
    title="Success rate of the base, lower end of its interval",
    unit="accuracy",
    version=2,
)
def base_success_rate_low(benchmark: Benchmark) -> list[Finding]:
    """Lower end of the 95 % exact interval of capabilities/base_success_rate."""
    return _findings(benchmark.base_right, benchmark.base_samples, 0)


@benchmark_metric(
    "capabilities/base_success_rate_high",
    title="Success rate of the base, upper end of its interval",
    unit="accuracy",
    version=2,
)
def base_success_rate_high(benchmark: Benchmark) -> list[Finding]:
    """Upper end of the 95 % exact interval of capabilities/base_success_rate."""
    return _findings(benchmark.base_right, benchmark.base_samples, 1)
