"""The ledger over all benchmarks together, one kind of each, with the tests of its counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from mlflow_scalpel.metrics.capabilities.benchmark import Benchmark, Finding, none, texts_of
from mlflow_scalpel.metrics.capabilities.exact_tests import mcnemar
from mlflow_scalpel.metrics.capabilities.gain_and_loss import chosen
from mlflow_scalpel.metrics.capabilities.ledger import against_chance
from mlflow_scalpel.metrics.registry import metric


def _used(benchmarks: Sequence[Benchmark]) -> list[Benchmark]:
    return [*chosen(benchmarks, "in"), *chosen(benchmarks, "out")]


def _counts(used: Sequence[Benchmark]) -> tuple[int, int, int]:
    """Gained, lost, and all problems."""
    gained, lost = (sum(int(getattr(one, of).sum()) for one in used) for of in ("gained", "lost"))
    return gained, lost, sum(one.n for one in used)


def _count(benchmarks: Sequence[Benchmark], *, lost: bool) -> list[Finding]:
    used = _used(benchmarks)
    if not used:
        return [none("no problem was graded of both models")]
    gained, gone, n = _counts(used)
    count = gone if lost else gained
    return [Finding(count, math.sqrt(count * (n - count) / n), n, texts=texts_of(*used))]


def _chance(benchmarks: Sequence[Benchmark], part: str, *, lost: bool) -> list[Finding]:
    used = _used(benchmarks)
    texts = texts_of(*used) if used else ""
    return [replace(one, texts=texts) for one in against_chance(used, part, lost=lost)]


@metric("capabilities/overall_gained", title="Gained problems, all benchmarks", unit="problems")
def overall_gained(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """capabilities/gained over all benchmarks, one kind of each, sampled before greedy."""
    return _count(benchmarks, lost=False)


@metric("capabilities/overall_lost", title="Lost problems, all benchmarks", unit="problems")
def overall_lost(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """capabilities/lost over all benchmarks, one kind of each, sampled before greedy."""
    return _count(benchmarks, lost=True)


@metric(
    "capabilities/overall_mcnemar_p",
    title="p of McNemar's test of gained against lost problems, all benchmarks",
    axis="p",
    unit="probability",
)
def overall_mcnemar_p(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """p of McNemar's exact two-sided test of all gained against all lost problems.

    Whether the balance of capabilities/overall_gained and overall_lost is on one side. Not
    corrected for the number of checkpoints that are looked at.
    """
    used = _used(benchmarks)
    if not used:
        return [none("no problem was graded of both models")]
    gained, lost, n = _counts(used)
    return [Finding(mcnemar(gained, lost), n=n, texts=texts_of(*used))]


@metric(
    "capabilities/overall_gained_null",
    title="Gained problems expected by chance, all benchmarks",
    unit="problems",
)
def overall_gained_null(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """capabilities/gained_null over all benchmarks; its error is that of overall_gained."""
    return _chance(benchmarks, "expected", lost=False)


@metric(
    "capabilities/overall_gained_null_low",
    title="Fewest gained problems that chance may give, all benchmarks",
    unit="problems",
)
def overall_gained_null_low(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """Least number of gained problems that chance may give over all of them (5 %, two-sided)."""
    return _chance(benchmarks, "low", lost=False)


@metric(
    "capabilities/overall_gained_null_high",
    title="Most gained problems that chance may give, all benchmarks",
    unit="problems",
)
def overall_gained_null_high(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """Largest number of gained problems that chance may give over all of them (5 %, two-sided)."""
    return _chance(benchmarks, "high", lost=False)


@metric(
    "capabilities/overall_gained_p",
    title="p of the gained problems against chance, all benchmarks",
    axis="p",
    unit="probability",
)
def overall_gained_p(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """p of the exact permutation test of capabilities/gained_p, over all benchmarks."""
    return _chance(benchmarks, "p", lost=False)


@metric(
    "capabilities/overall_lost_null",
    title="Lost problems expected by chance, all benchmarks",
    unit="problems",
)
def overall_lost_null(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """capabilities/lost_null over all benchmarks; its error is that of overall_lost."""
    return _chance(benchmarks, "expected", lost=True)


@metric(
    "capabilities/overall_lost_null_low",
    title="Fewest lost problems that chance may give, all benchmarks",
    unit="problems",
)
def overall_lost_null_low(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """Least number of lost problems that chance may give over all of them (5 %, two-sided)."""
    return _chance(benchmarks, "low", lost=True)


@metric(
    "capabilities/overall_lost_null_high",
    title="Most lost problems that chance may give, all benchmarks",
    unit="problems",
)
def overall_lost_null_high(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """Largest number of lost problems that chance may give over all of them (5 %, two-sided)."""
    return _chance(benchmarks, "high", lost=True)


@metric(
    "capabilities/overall_lost_p",
    title="p of the lost problems against chance, all benchmarks",
    axis="p",
    unit="probability",
)
def overall_lost_p(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """p of the exact permutation test of capabilities/lost_p, over all benchmarks."""
    return _chance(benchmarks, "p", lost=True)
