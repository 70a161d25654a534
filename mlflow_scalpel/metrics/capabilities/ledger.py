"""The ledger: which problems a checkpoint kept, gained, lost and never had, beside chance.

Then of the gained ones whether the base had them within reach, and of the lost ones how likely
their gold answers still are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mlflow_scalpel.metrics.capabilities.benchmark import (
    NOT_APPLICABLE,
    Benchmark,
    Finding,
    benchmark_metric,
    none,
)
from mlflow_scalpel.metrics.capabilities.exact_tests import mcnemar, unchanged

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


def against_chance(benchmarks: Sequence[Benchmark], part: str, *, lost: bool) -> list[Finding]:
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
