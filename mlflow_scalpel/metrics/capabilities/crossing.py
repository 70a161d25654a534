"""The k at which the pass@k curves of base and checkpoint cross."""

from __future__ import annotations

import functools
import math

import numpy as np

from mlflow_scalpel.metrics.capabilities.benchmark import (
    NONE_FOUND,
    NOT_APPLICABLE,
    Benchmark,
    Finding,
    benchmark_metric,
    none,
)
from mlflow_scalpel.metrics.capabilities.pass_at_k import pass_at_k

RESAMPLES = 2000
SEED = 0
_SAME = 1e-12  # differences below this are rounding


def crossings(
    differences: np.ndarray, resamples: int = RESAMPLES
) -> tuple[float, np.ndarray, float]:
    """The smallest k at which the order of two pass@k curves is reversed, and resamples of it.

    The order is that at the smallest k where the curves differ; infinity where it is never
    reversed. Of each resample (problems drawn with replacement) it is the smallest k at which the
    order is the reverse of the full data's.

    Args:
        differences: (P, K) pass@k of the checkpoint minus the base's, for k = 1 ... K.
        resamples: number of bootstrap resamples; seeded, so the result repeats.

    Returns the k, (resamples,) ks, and who is ahead before: 1 the checkpoint, -1 the base, 0 none.
    """
    problems = len(differences)
    mean = differences.mean(axis=0)  # (K,)
    signs = np.sign(np.where(np.abs(mean) < _SAME, 0.0, mean))
    differing = signs[signs != 0]
    if not len(differing):
        return math.inf, np.full(resamples, math.inf), 0.0
    means = _draws(problems, resamples) @ differences / problems  # (R, K)
    reversed_order = np.vstack([mean, means]) * -differing[0] > _SAME  # (1 + R, K)
    ks = np.where(reversed_order.any(axis=1), reversed_order.argmax(axis=1) + 1.0, math.inf)
    return float(ks[0]), ks[1:], float(differing[0])


@functools.lru_cache(maxsize=4)  # the same for every checkpoint
def _draws(problems: int, resamples: int) -> np.ndarray:
    """How often each problem is drawn in each resample, (R, P) float64."""
    even = np.full(problems, 1 / problems)
    counts = np.random.default_rng(SEED).multinomial(problems, even, size=resamples)
    return counts.astype(np.float64)


def _crossing(benchmark: Benchmark, quantile: float | None) -> list[Finding]:
    k, n = benchmark.k, benchmark.n
    if not n:
        return [none("no problem was graded of both models")]
    if k < 2:
        return [none("one sample a problem gives no curve; raise samples", n, NOT_APPLICABLE)]
    after = pass_at_k(benchmark.right, benchmark.samples, k)  # (P, K)
    before = pass_at_k(benchmark.base_right, benchmark.base_samples, k)
    found, resampled, leader = crossings(after - before)
    if quantile is not None:
        found = float(np.quantile(resampled, quantile, method="inverted_cdf"))
    share = float(np.isfinite(resampled).mean())
    said = f"{share:.0%} of {RESAMPLES} resamples of the problems cross up to k = {k}"
    if math.isinf(found):
        where = "the order of the curves is not reversed" if quantile is None else "beyond the last"
        return [none(f"{where} up to k = {k}; {said}", n, NONE_FOUND)]
    ahead = "base" if leader > 0 else "checkpoint"
    return [Finding(found, n=n, reason=f"here the {ahead} comes to be ahead; {said}")]


@benchmark_metric("capabilities/crossing_k", unit="samples")
def crossing_k(benchmark: Benchmark) -> list[Finding]:
    """Smallest k at which the order of pass@k of base and checkpoint is the reverse of that before.

    Where a checkpoint leads at small k and the base at large k, training sharpened what the base
    could do already (arXiv 2504.13837). Looked for up to the number of samples, no further: the
    status is `none found` where there is none, which does not mean that there is none at larger k.
    """
    return _crossing(benchmark, None)


@benchmark_metric("capabilities/crossing_k_low", unit="samples")
def crossing_k_low(benchmark: Benchmark) -> list[Finding]:
    """Lower end of the 95 % interval of capabilities/crossing_k: 2.5 % of bootstrap resamples.

    2000 resamples over problems; one without a crossing counts as beyond all k.
    """
    return _crossing(benchmark, 0.025)


@benchmark_metric("capabilities/crossing_k_high", unit="samples")
def crossing_k_high(benchmark: Benchmark) -> list[Finding]:
    """Upper end of the 95 % interval of capabilities/crossing_k; `none found` where it is open."""
    return _crossing(benchmark, 0.975)
