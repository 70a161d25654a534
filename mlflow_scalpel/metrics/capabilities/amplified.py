"""Whether what was gained was there before."""

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


def _share(benchmark: Benchmark, members: np.ndarray, said: str) -> list[Finding]:
    gained = benchmark.gained
    n = int(gained.sum())
    if not n:
        return [none("no problem was gained", status=NOT_APPLICABLE)]
    k = int(benchmark.base_samples[gained].min())
    if k < 2:
        why = "the base has k = 1 sample a problem, which is wrong in every gained one"
        return [none(why, n, NOT_APPLICABLE)]
    share = float(members[gained].mean())
    return [Finding(share, math.sqrt(share * (1 - share) / n), n, reason=said.format(k=k))]


@benchmark_metric(
    "capabilities/amplified",
    title="Gained problems that the base had solved at least once",
    axis="fraction of gained problems",
    unit="fraction",
)
def amplified(benchmark: Benchmark) -> list[Finding]:
    """Of the gained problems, the share that the base solved at least once in its k samples.

    A problem is gained by its first samples (capabilities/gained), so the other k - 1 samples of
    the base decide. `reason` says k; the error is that of a share of n gained problems.
    """
    return _share(
        benchmark, benchmark.base_right > 0, "solved by the base at least once in k = {k} samples"
    )


@benchmark_metric(
    "capabilities/new",
    title="Gained problems that the base had not solved in k samples",
    axis="fraction of gained problems",
    unit="fraction",
)
def new(benchmark: Benchmark) -> list[Finding]:
    """Of the gained problems, the share that the base did not solve in its k samples.

    Unsolved in k samples is not unsolvable: the share falls as k grows, so k stands in `reason`.
    """
    return _share(
        benchmark,
        benchmark.base_right == 0,
        "unsolved by the base in k = {k} samples, which is not unsolvable",
    )
