"""The ledger: which problems a checkpoint kept, gained, lost, and never had."""

from __future__ import annotations

import math

import numpy as np

from mlflow_scalpel.metrics.capabilities.benchmark import Benchmark, Finding, benchmark_metric

STATUSES = ("never", "gained", "lost", "kept")


def status_of(base_right: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`kept`, `gained`, `lost` or `never` of each problem, from one sample of each model."""
    return np.array(STATUSES)[2 * base_right.astype(int) + right.astype(int)]


def _count(members: np.ndarray) -> Finding:
    n = len(members)
    count = int(members.sum())
    error = math.sqrt(count * (n - count) / n) if n else math.nan
    return Finding(count, error, n)


@benchmark_metric("capabilities/kept", title="Kept problems", unit="problems")
def kept(benchmark: Benchmark) -> list[Finding]:
    """Problems that both models get right, by the first sample of each.

    The error is that of a number of successes among n problems, sqrt(n p (1 - p)).
    """
    return [_count(benchmark.base_first & benchmark.first)]


@benchmark_metric("capabilities/gained", title="Gained problems", unit="problems")
def gained(benchmark: Benchmark) -> list[Finding]:
    """Problems that the base gets wrong and the checkpoint right, by the first sample of each.

    With one sample a problem most of it may be chance: capabilities/gained_null stands beside it.
    The error is that of a number of successes among n problems, sqrt(n p (1 - p)).
    """
    return [_count(benchmark.gained)]


@benchmark_metric("capabilities/lost", title="Lost problems", unit="problems")
def lost(benchmark: Benchmark) -> list[Finding]:
    """Problems that the base gets right and the checkpoint wrong, by the first sample of each.

    With one sample a problem most of it may be chance: capabilities/lost_null stands beside it.
    The error is that of a number of successes among n problems, sqrt(n p (1 - p)).
    """
    return [_count(benchmark.lost)]


@benchmark_metric("capabilities/never", title="Problems that neither model solves", unit="problems")
def never(benchmark: Benchmark) -> list[Finding]:
    """Problems that both models get wrong, by the first sample of each.

    The error is that of a number of successes among n problems, sqrt(n p (1 - p)).
    """
    return [_count(~benchmark.base_first & ~benchmark.first)]


@benchmark_metric("capabilities/left_out", title="Problems left out", unit="problems")
def left_out(benchmark: Benchmark) -> list[Finding]:
    """Problems that no number of this group counts: not graded, or answered by one model only."""
    why = "; ".join(f"{number} {reason}" for reason, number in benchmark.left_out)
    count = sum(number for _, number in benchmark.left_out)
    return [Finding(count, n=benchmark.n + count, reason=why or None)]
