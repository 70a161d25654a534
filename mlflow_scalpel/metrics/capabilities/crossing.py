"""The k at which the pass@k curves of base and checkpoint cross."""

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
from mlflow_scalpel.metrics.capabilities.pass_at_k import pass_at_k

FLIPS = 4999
SEED = 0
ALPHA = 0.05
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
