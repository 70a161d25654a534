"""Success rates over k samples a problem, pass@k, and the k at which two curves of it cross."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from mlflow_scalpel.metrics.capabilities.benchmark import (
    NONE_FOUND,
    NOT_APPLICABLE,
    Benchmark,
    Finding,
    benchmark_metric,
    none,
)
from mlflow_scalpel.metrics.capabilities.exact_tests import ALPHA
from mlflow_scalpel.metrics.capabilities.intervals import clustered_ratio, share_interval


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


FLIPS = 4999
SEED = 0
_SAME = 1e-9  # differences below this are rounding


@dataclass(frozen=True)
class Reversal:
    """Where the order of two curves is reversed; infinity where no reversal is told from chance."""

    k: float = math.inf
    low: float = math.inf
    high: float = math.inf
    leader: float = 0.0
    """Who is ahead at the smallest k at which the curves are told apart: 1 the checkpoint, -1 the
    base, 0 none."""
    of_means: float = math.inf
    """Smallest k at which the means alone are in the reverse order of the first that differ."""


def reversal(differences: np.ndarray) -> Reversal:
    """The smallest k at which the order of two pass@k curves is reversed beyond chance.

    At each k a curve is ahead where the mean difference is told from 0 by a sign-flip test over
    problems, at all k together (the largest of the standardised differences, Westfall and Young
    1993): if nothing changed, any k is told from 0 in at most 5 % of cases. A reversal needs both,
    one curve ahead at a smaller and the other at a larger k. It lies above the last k at which the
    first one is ahead beyond chance (`low` is the next), at or below the first at which the other
    is (`high`); `k` is the first in between whose mean is in the reverse order.

    Args:
        differences: (P, K) pass@k of the checkpoint minus the base's, for k = 1 ... K.
    """
    problems = len(differences)
    mean = differences.mean(axis=0)  # (K,)
    mean = np.where(np.abs(mean) < _SAME, 0.0, mean)
    signs = np.sign(mean)
    differing = signs[signs != 0]
    if not len(differing):
        return Reversal()
    against = signs == -differing[0]
    of_means = float(against.argmax() + 1) if against.any() else math.inf
    scale = np.sqrt((differences**2).sum(axis=0))  # (K,) of the sum, if signs were tossed
    known = scale > _SAME
    standard = differences[:, known] / scale[known]  # (P, k)
    largest = np.abs(_flips(problems) @ standard).max(axis=1)  # (FLIPS,)
    observed = np.abs(standard.sum(axis=0))  # (k,)
    hits = (largest[:, None] >= observed - _SAME).sum(axis=0)
    ahead = np.zeros(len(mean))
    ahead[known] = np.where((1 + hits) / (1 + FLIPS) <= ALPHA, signs[known], 0.0)
    sure = np.flatnonzero(ahead)
    if not len(sure):
        return Reversal(of_means=of_means)
    leader = float(ahead[sure[0]])
    turned = np.flatnonzero(ahead == -leader)
    if not len(turned):
        return Reversal(leader=leader, of_means=of_means)
    high = int(turned[0])
    low = int(np.flatnonzero(ahead[:high] == leader)[-1]) + 1
    k = low + int(np.argmax(signs[low : high + 1] == -leader))
    return Reversal(k + 1.0, low + 1.0, high + 1.0, leader, of_means)


@functools.lru_cache(maxsize=4)  # the same for every checkpoint
def _flips(problems: int) -> np.ndarray:
    """Signs of each problem in each flip, (FLIPS, P) float64."""
    tossed = np.random.default_rng(SEED).integers(0, 2, (FLIPS, problems))
    return tossed * 2.0 - 1.0


def _crossing(benchmark: Benchmark, end: str) -> list[Finding]:
    k, n = benchmark.k, benchmark.n
    if not n:
        return [none("no problem was graded of both models")]
    if k < 2:
        return [none("one sample a problem gives no curve; raise samples", n, NOT_APPLICABLE)]
    after = pass_at_k(benchmark.right, benchmark.samples, k)  # (P, K)
    before = pass_at_k(benchmark.base_right, benchmark.base_samples, k)
    found = reversal(after - before)
    names = {1.0: "checkpoint", -1.0: "base"}
    if math.isfinite(found.k):
        why = (
            f"here the {names[-found.leader]} comes to be ahead; both leads are told apart from "
            "chance (sign-flip test, 5 % over all k)"
        )
        return [Finding(getattr(found, end), n=n, reason=why)]
    why = f"no reversal of the curves is told apart from chance up to k = {k}"
    if found.leader:
        why += f"; the {names[found.leader]} is ahead beyond chance"
    if math.isfinite(found.of_means):
        why += f"; the means alone change order at k = {found.of_means:g}"
    return [none(why, n, NONE_FOUND)]


@benchmark_metric(
    "capabilities/crossing_k",
    title="k at which the pass@k curves cross",
    axis="k",
    unit="samples",
    version=2,
)
def crossing_k(benchmark: Benchmark) -> list[Finding]:
    """Smallest k at which the order of pass@k of base and checkpoint is the reverse of that before.

    Where a checkpoint leads at small k and the base at large k, training sharpened what the base
    could do already (arXiv 2504.13837). Only where both leads are told apart from chance: two
    models that are the same have curves that cross in half of the cases (`reversal`; 5 % for all k
    together). Looked for up to the number of samples, no further: the status is `none found` where
    there is none, which does not mean that there is none at larger k.
    """
    return _crossing(benchmark, "k")


@benchmark_metric(
    "capabilities/crossing_k_low",
    title="k at which the pass@k curves cross, lower end of its interval",
    axis="k",
    unit="samples",
    version=2,
)
def crossing_k_low(benchmark: Benchmark) -> list[Finding]:
    """Lower end of the 95 % interval of capabilities/crossing_k.

    The k after the last one at which the first leader is ahead beyond chance.
    """
    return _crossing(benchmark, "low")


@benchmark_metric(
    "capabilities/crossing_k_high",
    title="k at which the pass@k curves cross, upper end of its interval",
    axis="k",
    unit="samples",
    version=2,
)
def crossing_k_high(benchmark: Benchmark) -> list[Finding]:
    """Upper end of the 95 % interval of capabilities/crossing_k.

    The first k at which the other model is ahead beyond chance.
    """
    return _crossing(benchmark, "high")
