"""McNemar's test of gained against lost problems."""

from __future__ import annotations

from scipy.stats import binomtest

from mlflow_scalpel.metrics.capabilities.benchmark import (
    Benchmark,
    Finding,
    benchmark_metric,
    none,
)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p: were each changed problem as likely gained as lost?

    Under that hypothesis the number gained is Binomial(gained + lost, 1/2); 1 where nothing
    changed. (McNemar 1947; exact form as in Fay 2010.)
    """
    changed = gained + lost
    return float(binomtest(gained, changed, 0.5).pvalue) if changed else 1.0


@benchmark_metric(
    "capabilities/mcnemar_p",
    title="p of McNemar's test of gained against lost problems",
    axis="p",
    unit="probability",
)
def mcnemar_p(benchmark: Benchmark) -> list[Finding]:
    """p of McNemar's exact two-sided test of the gained against the lost problems.

    Of the first sample of each model, so that problems are independent. It tests whether the rates
    differ; that some problems were lost may be chance all the same (capabilities/lost_null). Not
    corrected for the number of checkpoints and benchmarks that are looked at.
    """
    if not benchmark.n:
        return [none("no problem was graded of both models")]
    p = mcnemar(int(benchmark.gained.sum()), int(benchmark.lost.sum()))
    return [Finding(p, n=benchmark.n)]
