"""pass@k: the chance that one of k samples is right."""

from __future__ import annotations

import math

import numpy as np

from mlflow_scalpel.metrics.capabilities.benchmark import (
    Benchmark,
    Finding,
    benchmark_metric,
    none,
)

EVERY_K_TO = 16  # beyond, powers of two, and the last


def pass_at_k(right: np.ndarray, samples: np.ndarray, most: int) -> np.ndarray:
    """Unbiased pass@k of each problem for k = 1 ... most, (P, most).

        pass@k = 1 - C(n - c, k) / C(n, k)

    for c right ones of n samples (Chen et al. 2021, arXiv 2107.03374): the share of the subsets of
    k samples that hold a right one. As a product of k ratios, so nothing overflows.

    Args:
        right: (P,) numbers c of right samples.
        samples: (P,) numbers n of samples, each at least `most`.
        most: the largest k.

    Raises ValueError where a problem has fewer samples than `most`.
    """
    if len(samples) and most > samples.min():
        raise ValueError(f"pass@{most} needs {most} samples of each problem, not {samples.min()}")
    drawn = np.arange(most)  # (K,) samples drawn before
    wrong = np.clip((samples - right)[:, None] - drawn, 0, None)  # (P, K)
    return 1.0 - np.cumprod(wrong / (samples[:, None] - drawn), axis=1)


def shown(most: int) -> list[int]:
    """The k for which there is a row: all up to 16, then powers of two and the last."""
    powers = [2**power for power in range(int(math.log2(most)) + 1)] if most else []
    return sorted({*range(1, min(most, EVERY_K_TO) + 1), *powers, *([most] if most else [])})


def _curve(benchmark: Benchmark, right: np.ndarray, samples: np.ndarray) -> list[Finding]:
    k = benchmark.k
    if not k:
        return [none("no problem was graded of both models")]
    chances = pass_at_k(right, samples, k)  # (P, K)
    n = len(chances)
    errors = chances.std(axis=0, ddof=1) / math.sqrt(n) if n > 1 else np.full(k, math.nan)
    means = chances.mean(axis=0)
    return [Finding(float(means[one - 1]), float(errors[one - 1]), n, one) for one in shown(k)]


@benchmark_metric("capabilities/pass_at_k", title="pass@k", unit="probability")
def checkpoint_pass_at_k(benchmark: Benchmark) -> list[Finding]:
    """pass@k of the checkpoint, mean over problems; `bin` is k, error over problems.

    Unbiased: 1 - C(n - c, k) / C(n, k) for c right of n samples (Chen et al. 2021, arXiv
    2107.03374). It depends on the temperature and the token limit of the suite.
    """
    return _curve(benchmark, benchmark.right, benchmark.samples)


@benchmark_metric("capabilities/base_pass_at_k", title="pass@k of the base", unit="probability")
def base_pass_at_k(benchmark: Benchmark) -> list[Finding]:
    """pass@k of the base on the same problems; `bin` is k, error over problems."""
    return _curve(benchmark, benchmark.base_right, benchmark.base_samples)
