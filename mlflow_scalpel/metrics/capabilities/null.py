"""What the ledger shows where nothing changed: the base against itself with another sample."""

from __future__ import annotations

import math

import numpy as np

from mlflow_scalpel.metrics.capabilities.benchmark import (
    NOT_APPLICABLE,
    Benchmark,
    Finding,
    benchmark_metric,
    none,
)


def changed_by_chance(right: np.ndarray, samples: np.ndarray) -> tuple[float, float]:
    """Expected number of problems gained by another sample of the same model, and its scatter.

        sum_i q_i,   q_i = c_i (k_i - c_i) / (k_i (k_i - 1))

    q_i is the mean over all ordered pairs of different samples of a problem of "first wrong, second
    right", unbiased for p_i (1 - p_i). As many are lost, by symmetry. The scatter is how far the
    number of one such pair of samples a problem lies from its mean, sqrt(sum_i q_i (1 - q_i)), for
    the same problems.

    Args:
        right: (P,) right samples c_i of each problem.
        samples: (P,) all samples k_i, two or more.
    """
    q = right * (samples - right) / (samples * (samples - 1))  # (P,)
    return float(q.sum()), math.sqrt(float((q * (1.0 - q)).sum()))


def _null(benchmark: Benchmark) -> list[Finding]:
    if not benchmark.n:
        return [none("no problem was graded of both models")]
    k = int(benchmark.base_samples.min())
    if k < 2:
        why = "the base has one sample a problem, and two are needed; raise samples"
        return [none(why, benchmark.n, NOT_APPLICABLE)]
    value, scatter = changed_by_chance(benchmark.base_right, benchmark.base_samples)
    return [Finding(value, scatter, benchmark.n, reason=f"from k = {k} samples of the base")]


@benchmark_metric("capabilities/gained_null", unit="problems")
def gained_null(benchmark: Benchmark) -> list[Finding]:
    """Problems that the base would gain against itself with another sample.

    sum_i c_i (k - c_i) / (k (k - 1)) with c_i of the base's k samples right: the expectation over
    pairs of its samples. A ledger of one sample a problem is mostly regression to the mean, and
    this is how much of it. The error is how far such a number scatters on the same problems, so
    that capabilities/gained within two errors of it may be chance alone.
    """
    return _null(benchmark)


@benchmark_metric("capabilities/lost_null", unit="problems")
def lost_null(benchmark: Benchmark) -> list[Finding]:
    """Problems that the base would lose against itself with another sample.

    As many as it would gain (capabilities/gained_null): pairs of samples have no order.
    """
    return _null(benchmark)
