"""What the ledger shows where nothing changed: the base against itself with another sample."""

from __future__ import annotations

from mlflow_scalpel.metrics.capabilities.benchmark import (
    NOT_APPLICABLE,
    Benchmark,
    Finding,
    benchmark_metric,
    none,
)
from mlflow_scalpel.metrics.capabilities.unchanged import unchanged


def against_chance(benchmarks: list[Benchmark], part: str, *, lost: bool) -> list[Finding]:
    """One part of `unchanged`, over all the benchmarks; or why chance is not known."""
    n = sum(one.n for one in benchmarks)
    if not n:
        return [none("no problem was graded of both models")]
    ks = sorted({int(k) for one in benchmarks for k in one.base_samples})
    if ks[0] < 2:
        why = "the base has one sample a problem, and two are needed; raise samples"
        return [none(why, n, NOT_APPLICABLE)]
    found = unchanged([one for one in benchmarks if one.n], lost=lost)
    said = f"from k = {' or '.join(map(str, ks))} samples of the base"
    if part == "expected":
        return [Finding(found.expected, found.scatter, n, reason=said)]
    return [Finding(getattr(found, part), n=n, reason=said)]


@benchmark_metric(
    "capabilities/gained_null",
    title="Gained problems expected by chance",
    unit="problems",
    version=2,
)
def gained_null(benchmark: Benchmark) -> list[Finding]:
    """Problems that the base would gain against itself with another sample.

    sum_i c_i (k - c_i) / (k (k - 1)) with c_i of the base's k samples right: the expectation over
    pairs of its samples. A ledger of one sample a problem is mostly regression to the mean, and
    this is how much of it. The error is how far capabilities/gained lies from it where nothing
    changed, the scatter of both together (`unchanged`): a model that is the base lies within two
    errors in 95.4 % of cases or more, at every k. capabilities/gained_p is the test.
    """
    return against_chance([benchmark], "expected", lost=False)


@benchmark_metric(
    "capabilities/gained_null_low",
    title="Fewest gained problems that chance may give",
    unit="problems",
)
def gained_null_low(benchmark: Benchmark) -> list[Finding]:
    """Least number of gained problems that chance may give on a benchmark (5 %, two-sided)."""
    return against_chance([benchmark], "low", lost=False)


@benchmark_metric(
    "capabilities/gained_null_high",
    title="Most gained problems that chance may give",
    unit="problems",
)
def gained_null_high(benchmark: Benchmark) -> list[Finding]:
    """Largest number of gained problems that chance may give on a benchmark (5 %, two-sided)."""
    return against_chance([benchmark], "high", lost=False)


@benchmark_metric(
    "capabilities/gained_p",
    title="p of the gained problems against chance",
    axis="p",
    unit="probability",
)
def gained_p(benchmark: Benchmark) -> list[Finding]:
    """p of an exact permutation test: is capabilities/gained what no change would give?

    The distance of capabilities/gained from capabilities/gained_null, where all samples of a
    problem are dealt out anew between base and checkpoint; two-sided. Not corrected for the number
    of checkpoints and benchmarks that are looked at.
    """
    return against_chance([benchmark], "p", lost=False)


@benchmark_metric(
    "capabilities/lost_null", title="Lost problems expected by chance", unit="problems", version=2
)
def lost_null(benchmark: Benchmark) -> list[Finding]:
    """Problems that the base would lose against itself with another sample.

    As many as it would gain (capabilities/gained_null): pairs of samples have no order. Its error
    is that of capabilities/lost where nothing changed.
    """
    return against_chance([benchmark], "expected", lost=True)


@benchmark_metric(
    "capabilities/lost_null_low", title="Fewest lost problems that chance may give", unit="problems"
)
def lost_null_low(benchmark: Benchmark) -> list[Finding]:
    """Least number of lost problems that chance may give on a benchmark (5 %, two-sided)."""
    return against_chance([benchmark], "low", lost=True)


@benchmark_metric(
    "capabilities/lost_null_high", title="Most lost problems that chance may give", unit="problems"
)
def lost_null_high(benchmark: Benchmark) -> list[Finding]:
    """Largest number of lost problems that chance may give on a benchmark (5 %, two-sided)."""
    return against_chance([benchmark], "high", lost=True)


@benchmark_metric(
    "capabilities/lost_p",
    title="p of the lost problems against chance",
    axis="p",
    unit="probability",
)
def lost_p(benchmark: Benchmark) -> list[Finding]:
    """p of an exact permutation test: is capabilities/lost what no change would give?

    As capabilities/gained_p, of the lost problems.
    """
    return against_chance([benchmark], "p", lost=True)
