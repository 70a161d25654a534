"""What was gained in-domain, and what that cost out-of-domain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mlflow_scalpel.metrics.capabilities.benchmark import (
    NOT_APPLICABLE,
    Benchmark,
    Finding,
    Z,
    none,
    texts_of,
)
from mlflow_scalpel.metrics.registry import metric

PREFERRED_KINDS = ("sampled", "greedy")
_NAMES = {"in": "in-domain", "out": "out-of-domain"}


def chosen(benchmarks: Sequence[Benchmark], domain: str) -> list[Benchmark]:
    """One benchmark for each label of a domain: sampled before greedy, since kinds share problems.

    A label with other kinds only gives its first one.
    """
    order = {kind: place for place, kind in enumerate(PREFERRED_KINDS)}
    best: dict[str, Benchmark] = {}
    for one in benchmarks:
        if one.domain != domain or not one.n:
            continue
        seen = best.get(one.label)
        if seen is None or order.get(one.kind, 2) < order.get(seen.kind, 2):
            best[one.label] = one
    return list(best.values())


def paired_change(benchmarks: Sequence[Benchmark]) -> tuple[float, float]:
    """Mean over benchmarks of the change of success rate, checkpoint minus base, and its error.

    Within a benchmark the mean over problems of r_i / k_i - b_i / k_i, whose error is over
    problems; paired, for both models answer the same ones. Benchmarks count alike and are
    independent.
    """
    means, squares = [], []
    for one in benchmarks:
        changes = one.right / one.samples - one.base_right / one.base_samples  # (P,)
        means.append(float(changes.mean()))
        squares.append(float(changes.var(ddof=1)) / one.n if one.n > 1 else math.nan)
    return float(np.mean(means)), math.sqrt(sum(squares)) / len(means)


def fieller(
    numerator: float, numerator_error: float, denominator: float, denominator_error: float
) -> tuple[float, float]:
    """95 % interval of a ratio of two independent normal estimates (Fieller 1954).

    The R with (numerator - R denominator)^2 <= z^2 (numerator_error^2 + R^2 denominator_error^2).
    Raises ValueError where the denominator's own interval holds 0: the set is then unbounded.
    """
    a = denominator**2 - (Z * denominator_error) ** 2
    if not a > 0.0:
        raise ValueError("the interval of the denominator holds 0, so that of the ratio is open")
    b = numerator * denominator
    c = numerator**2 - (Z * numerator_error) ** 2
    half = math.sqrt(max(0.0, b * b - a * c))
    return (b - half) / a, (b + half) / a


def _mean_change(benchmarks: Sequence[Benchmark], domain: str, sign: int) -> list[Finding]:
    used = chosen(benchmarks, domain)
    if not used:
        return [
            none(
                f"no {_NAMES[domain]} benchmark was graded of both models; "
                f"a suite declares `domain: {domain}`"
            )
        ]
    value, error = paired_change(used)
    n = sum(one.n for one in used)
    return [Finding(sign * value + 0.0, error, n, texts=texts_of(*used))]  # never -0.0


@metric("capabilities/in_domain_gain", unit="accuracy")
def in_domain_gain(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """Rise of the success rate since the base, mean over the in-domain benchmarks.

    One benchmark for each label, sampled before greedy. The error is over problems, paired; the
    95 % interval is the value -+ 1.96 of it. It covers the problems, not other seeds of training.
    """
    return _mean_change(benchmarks, "in", 1)


@metric("capabilities/out_of_domain_loss", unit="accuracy")
def out_of_domain_loss(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """Fall of the success rate since the base, mean over the out-of-domain benchmarks.

    Positive where something was lost. Errors and interval as in capabilities/in_domain_gain.
    """
    return _mean_change(benchmarks, "out", -1)


def _ratio(benchmarks: Sequence[Benchmark], bound: int | None) -> list[Finding]:
    (gain,), (loss,) = in_domain_gain(benchmarks), out_of_domain_loss(benchmarks)
    for part in (gain, loss):
        if part.status != "ok":
            return [part]
    used = [*chosen(benchmarks, "in"), *chosen(benchmarks, "out")]
    n, texts = gain.n + loss.n, texts_of(*used)
    if not gain.value > Z * gain.stderr:
        why = (
            f"the in-domain gain, {gain.value:.3g} ± {Z * gain.stderr:.2g}, is not above 0 with "
            "its 95 % interval, so nothing can be divided by it"
        )
        return [replace(none(why, n, NOT_APPLICABLE), texts=texts)]
    ratio = loss.value / gain.value
    if bound is not None:
        ends = fieller(loss.value, loss.stderr, gain.value, gain.stderr)
        return [Finding(ends[bound], n=n, texts=texts)]
    error = math.hypot(loss.stderr, ratio * gain.stderr) / gain.value
    return [Finding(ratio, error, n, texts=texts)]


@metric("capabilities/gain_loss_ratio", unit="lost per gained")
def gain_loss_ratio(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """Out-of-domain loss for each point of in-domain gain: loss / gain.

    Only where the gain's 95 % interval lies above 0; a ratio to anything less has no meaning. The
    error is by the delta method; the interval beside it is Fieller's.
    """
    return _ratio(benchmarks, None)


@metric("capabilities/gain_loss_ratio_low", unit="lost per gained")
def gain_loss_ratio_low(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """Lower end of Fieller's 95 % interval of capabilities/gain_loss_ratio.

    Gain and loss taken as independent, for they are of different problems.
    """
    return _ratio(benchmarks, 0)


@metric("capabilities/gain_loss_ratio_high", unit="lost per gained")
def gain_loss_ratio_high(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """Upper end of Fieller's 95 % interval of capabilities/gain_loss_ratio."""
    return _ratio(benchmarks, 1)
