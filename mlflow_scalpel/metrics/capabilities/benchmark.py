"""What base and checkpoint got right on a benchmark, from which the group `capabilities` comes.

A sample is right if its score is 1. Where a problem has several samples, its status is that of the
first sample of each model: kept, gained, lost or never right. Then the base against itself with
another sample is a null of the same kind, and the ledger's completions are the ones that were
judged. Rates and pass@k use all samples.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlflow_scalpel.metrics.registry import metric

MEASURED, NONE_FOUND, NOT_MEASURED = "ok", "none found", "not measured"
NOT_APPLICABLE = "not applicable"
"""There is nothing to measure, which is a result: no problem was lost, or none has two samples."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark over the P problems on which both models were graded, (P,) each."""

    domain: str
    """`in` or `out`, as the suite declares it."""
    label: str
    kind: str
    digest: str
    """Of the IDs of all its problems, graded or not: `digest_of`."""
    base_first: np.ndarray
    """Whether the base's first sample is right; bool."""
    base_right: np.ndarray
    """How many of the base's samples are right; integers."""
    base_samples: np.ndarray
    """How many samples the base has."""
    first: np.ndarray
    """The same of the checkpoint: its first sample, right ones, all."""
    right: np.ndarray
    samples: np.ndarray
    gold_loglik_base: np.ndarray
    """Log-likelihood of the gold answer right after the prompt, in nats; NaN if not measured."""
    gold_loglik: np.ndarray
    gold_loglik_after_opening_base: np.ndarray
    """The same after the opening that the base gives the answer."""
    gold_loglik_after_opening: np.ndarray
    left_out: tuple[tuple[str, int], ...] = ()
    """Why problems are not among the P, and how many."""

    @property
    def n(self) -> int:
        """P, the number of problems."""
        return len(self.first)

    @property
    def gained(self) -> np.ndarray:
        """Problems that the base gets wrong and the checkpoint right, by their first samples."""
        return ~self.base_first & self.first

    @property
    def lost(self) -> np.ndarray:
        """Problems that the base gets right and the checkpoint wrong, by their first samples."""
        return self.base_first & ~self.first

    @property
    def k(self) -> int:
        """Samples that every problem has of both models; 0 without problems."""
        return int(min(self.base_samples.min(), self.samples.min())) if self.n else 0


@dataclass(frozen=True)
class Finding:
    """A value with its standard error over n problems, or why there is none."""

    value: float
    stderr: float = math.nan
    n: int = 0
    bin: float | None = None
    status: str = MEASURED
    reason: str | None = None
    texts: str = ""
    """What it is of: `texts_of` the benchmarks."""


def none(reason: str, n: int = 0, status: str = NOT_MEASURED) -> Finding:
    """That there is no value, and why."""
    return Finding(math.nan, n=n, status=status, reason=reason)


def digest_of(problem_ids: Iterable[str]) -> str:
    """First 16 hex digits of the SHA-256 of the sorted problem IDs, a line each."""
    return hashlib.sha256("\n".join(sorted(problem_ids)).encode()).hexdigest()[:16]


def texts_of(*benchmarks: Benchmark) -> str:
    """`domain/label/kind sha256:digest`; of several benchmarks, each part joined by plus signs."""
    parts = [
        "+".join(dict.fromkeys(getattr(one, part) for one in benchmarks))
        for part in ("domain", "label", "kind")
    ]
    digests = [one.digest for one in benchmarks]
    digest = digests[0] if len(digests) == 1 else digest_of(digests)
    return f"{'/'.join(parts)} sha256:{digest}"


def benchmark_metric(name: str, **declared: Any) -> Callable[[Any], Any]:
    """Register a function of one benchmark that returns findings; it is measured on each.

    `declared` is what `metric` takes beside the name.
    """

    def add(function: Callable[[Benchmark], list[Finding]]) -> Callable[..., Any]:
        @functools.wraps(function)
        def on_each(benchmarks: Sequence[Benchmark]) -> list[Finding]:
            return [
                replace(finding, texts=texts_of(one))
                for one in benchmarks
                for finding in function(one)
            ]

        metric(name, **declared)(on_each)
        return function

    return add
