"""Whether a lost answer is gone, or only out of reach."""

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


def _change(benchmark: Benchmark, before: np.ndarray, after: np.ndarray) -> list[Finding]:
    lost = int(benchmark.lost.sum())
    if not lost:
        return [none("no problem was lost", status=NOT_APPLICABLE)]
    changes = (after - before)[benchmark.lost]
    changes = changes[np.isfinite(changes)]
    n = len(changes)
    if not n:
        return [
            none(
                f"no gold answer of the {lost} lost problems was scored; "
                "set gold_loglik in the evaluate recipe"
            )
        ]
    error = float(changes.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    said = f"{n} of {lost} lost problems have a value" if n < lost else None
    return [Finding(float(changes.mean()), error, n, reason=said)]


@benchmark_metric(
    "capabilities/gold_loglik_change",
    title="Change of the gold answer's log-likelihood, after the prompt",
    signed=True,
    unit="nats",
)
def gold_loglik_change(benchmark: Benchmark) -> list[Finding]:
    """Change of the gold answer's log-likelihood right after the prompt, mean over lost problems.

        log q(gold | prompt) - log p(gold | prompt),   p the base, q the checkpoint

    summed over the answer's tokens. It also falls where the checkpoint only begins its answers in
    another way: capabilities/gold_loglik_change_after_opening tells the two apart.
    """
    return _change(benchmark, benchmark.gold_loglik_base, benchmark.gold_loglik)


@benchmark_metric(
    "capabilities/gold_loglik_change_after_opening",
    title="Change of the gold answer's log-likelihood, after the base's opening",
    signed=True,
    unit="nats",
)
def gold_loglik_change_after_opening(benchmark: Benchmark) -> list[Finding]:
    r"""Change of the gold answer's log-likelihood after the base's opening, mean over lost ones.

    The opening is the base's own right completion up to where its answer begins: the last \boxed{
    or <answer>, or the first place where the answer itself stands, so that nothing can be copied.
    Where the answer is as likely there as it was under the base, it is out of reach, not gone.
    """
    return _change(
        benchmark, benchmark.gold_loglik_after_opening_base, benchmark.gold_loglik_after_opening
    )
