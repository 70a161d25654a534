"""What was gained in-domain, and what that cost out-of-domain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mlflow_scalpel.metrics.capabilities.benchmark import (
    NOT_APPLICABLE,
    Benchmark,
    Finding,
    none,
    texts_of,
)
from mlflow_scalpel.metrics.capabilities.exact_tests import ALPHA, inverted, sign_flip_p
from mlflow_scalpel.metrics.capabilities.intervals import Interval, combined, mover, ratio_interval
from mlflow_scalpel.metrics.registry import metric


@dataclass(frozen=True)
class Change:
    """Mean over benchmarks of the change of success rate, checkpoint minus base."""

    value: float
    stderr: float
    """Over problems; 0 where all changed alike, or none did: `low` and `high` then say more."""
    low: float
    high: float
    """Ends of the 95 % interval, which holds 0 where and only where `p` is above 0.05."""
    p: float
    """Two-sided, of the exact sign-flip test over problems."""


def paired_change(benchmarks: Sequence[Benchmark]) -> Change:
    """Mean over benchmarks of the change of success rate, with its test and its interval.

    Within a benchmark the mean over problems of r_i / k_i - b_i / k_i; paired, for both models
    answer the same problems. Benchmarks count alike and are independent.

    The test flips the signs of the problems' changes (`sign_flip_p`). The interval is that of the
    mean rise of the problems that rose minus the mean fall of those that fell (`mover`), combined
    over benchmarks. At 0 the exact test has the last word, so that interval and verdict agree:
    where it does not reject 0, the interval is extended to 0; where it does and the interval
    reaches over 0, that end is the inverted test's (`inverted`).
    """
    whole = []
    parts: list[tuple[float, Interval]] = []
    squares = []
    for one in benchmarks:
        unit = math.lcm(*np.unique(one.samples).tolist(), *np.unique(one.base_samples).tolist())
        steps = one.right * (unit // one.samples) - one.base_right * (unit // one.base_samples)
        whole.append((steps, unit * one.n * len(benchmarks)))
        changes = steps / unit  # (P,)
        parts.append((float(changes.mean()), mover(changes)))
        squares.append(float(changes.var(ddof=1)) / one.n if one.n > 1 else math.nan)
    value = float(np.mean([one for one, _ in parts]))
    p = sign_flip_p(whole)
    low, high = combined(value, parts)
    if p > ALPHA:
        low, high = min(low, 0.0), max(high, 0.0)
    elif low <= 0.0 <= high:
        exact = inverted(whole)
        low, high = (exact[0], high) if value > 0 else (low, exact[1])
    return Change(value, math.sqrt(sum(squares)) / len(parts), low, high, p)


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


def _mean_change(
    benchmarks: Sequence[Benchmark], domain: str, sign: int, part: str = "value"
) -> list[Finding]:
    used = chosen(benchmarks, domain)
    if not used:
        return [
            none(
                f"no {_NAMES[domain]} benchmark was graded of both models; "
                f"a suite declares `domain: {domain}`"
            )
        ]
    found = paired_change(used)
    n, texts = sum(one.n for one in used), texts_of(*used)
    if part == "value":
        ks = sorted({int(k) for one in used for k in (*one.base_samples, *one.samples)})
        said = f"k = {' or '.join(map(str, ks))} sample{'s' * (ks != [1])} a problem"
        value = sign * found.value + 0.0  # never -0.0
        return [Finding(value, found.stderr, n, reason=said, texts=texts)]
    if part == "p":
        return [Finding(found.p, n=n, texts=texts)]
    low, high = sorted((sign * found.low + 0.0, sign * found.high + 0.0))
    return [Finding(low if part == "low" else high, n=n, texts=texts)]


@metric(
    "capabilities/in_domain_gain", title="In-domain gain", signed=True, unit="accuracy", version=2
)
def in_domain_gain(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """Rise of the success rate since the base, mean over the in-domain benchmarks.

    One benchmark for each label, sampled before greedy. The error is over problems, paired; where
    few problems changed it says little, and capabilities/in_domain_gain_low, _high and _p are the
    interval and the test. They cover the problems, not other seeds of training. `reason` says k.
    """
    return _mean_change(benchmarks, "in", 1)


@metric(
    "capabilities/in_domain_gain_low",
    title="In-domain gain, lower end of its interval",
    signed=True,
    unit="accuracy",
)
def in_domain_gain_low(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """Lower end of the 95 % interval of capabilities/in_domain_gain.

    Of the mean rise of the problems that rose minus the mean fall of the others, both with exact
    intervals, combined by MOVER (Newcombe 1998; Zou and Donner 2008). At 0 it agrees with the exact
    test: it holds 0 where and only where capabilities/in_domain_gain_p is above 0.05.
    """
    return _mean_change(benchmarks, "in", 1, "low")


@metric(
    "capabilities/in_domain_gain_high",
    title="In-domain gain, upper end of its interval",
    signed=True,
    unit="accuracy",
)
def in_domain_gain_high(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """Upper end of the 95 % interval of capabilities/in_domain_gain, as in_domain_gain_low."""
    return _mean_change(benchmarks, "in", 1, "high")


@metric(
    "capabilities/in_domain_gain_p",
    title="In-domain gain: p against no change",
    axis="p",
    unit="probability",
)
def in_domain_gain_p(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """Two-sided p of the exact sign-flip test that capabilities/in_domain_gain is 0.

    If nothing changed, the change of each problem is as likely to be of the other sign. For one
    sample a problem this is McNemar's exact test. Not corrected for the number of checkpoints that
    are looked at.
    """
    return _mean_change(benchmarks, "in", 1, "p")


@metric(
    "capabilities/out_of_domain_loss",
    title="Out-of-domain loss",
    signed=True,
    unit="accuracy",
    version=2,
)
def out_of_domain_loss(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """Fall of the success rate since the base, mean over the out-of-domain benchmarks.

    Positive where something was lost. Errors, interval and test as in capabilities/in_domain_gain.
    """
    return _mean_change(benchmarks, "out", -1)


@metric(
    "capabilities/out_of_domain_loss_low",
    title="Out-of-domain loss, lower end of its interval",
    signed=True,
    unit="accuracy",
)
def out_of_domain_loss_low(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """Lower end of the 95 % interval of capabilities/out_of_domain_loss, as in_domain_gain_low."""
    return _mean_change(benchmarks, "out", -1, "low")


@metric(
    "capabilities/out_of_domain_loss_high",
    title="Out-of-domain loss, upper end of its interval",
    signed=True,
    unit="accuracy",
)
def out_of_domain_loss_high(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """Upper end of the 95 % interval of capabilities/out_of_domain_loss."""
    return _mean_change(benchmarks, "out", -1, "high")


@metric(
    "capabilities/out_of_domain_loss_p",
    title="Out-of-domain loss: p against no change",
    axis="p",
    unit="probability",
)
def out_of_domain_loss_p(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """Two-sided p of the exact sign-flip test that capabilities/out_of_domain_loss is 0."""
    return _mean_change(benchmarks, "out", -1, "p")


def _ratio(benchmarks: Sequence[Benchmark], bound: int | None) -> list[Finding]:
    inside, outside = chosen(benchmarks, "in"), chosen(benchmarks, "out")
    for part in (in_domain_gain(benchmarks), out_of_domain_loss(benchmarks)):
        if part[0].status != "ok":
            return part
    gain, change = paired_change(inside), paired_change(outside)
    used = [*inside, *outside]
    n, texts = sum(one.n for one in used), texts_of(*used)
    if not gain.low > 0:
        why = (
            f"the in-domain gain, {gain.value:.3g} ({gain.low:.3g} to {gain.high:.3g}), is not "
            "above 0 with its 95 % interval, so nothing can be divided by it"
        )
        return [replace(none(why, n, NOT_APPLICABLE), texts=texts)]
    loss = -change.value
    ratio = loss / gain.value
    if bound is None:
        error = math.hypot(change.stderr, ratio * gain.stderr) / gain.value
        return [Finding(ratio + 0.0, error, n, texts=texts)]
    try:
        ends = ratio_interval((loss, -change.high, -change.low), (gain.value, gain.low, gain.high))
    except ValueError as error:
        return [replace(none(str(error), n, NOT_APPLICABLE), texts=texts)]
    return [Finding(ends[bound] + 0.0, n=n, texts=texts)]


@metric(
    "capabilities/gain_loss_ratio",
    title="Out-of-domain loss for each point of in-domain gain",
    signed=True,
    unit="lost per gained",
    version=2,
)
def gain_loss_ratio(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """Out-of-domain loss for each point of in-domain gain: loss / gain.

    Only where the gain's 95 % interval lies above 0; a ratio to anything less has no meaning. The
    error is by the delta method; the interval beside it is that of `ratio_interval`.
    """
    return _ratio(benchmarks, None)


@metric(
    "capabilities/gain_loss_ratio_low",
    title="Out-of-domain loss for each point of in-domain gain, lower end of its interval",
    signed=True,
    unit="lost per gained",
    version=2,
)
def gain_loss_ratio_low(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """Lower end of the 95 % interval of capabilities/gain_loss_ratio (Donner and Zou 2012).

    Made of the intervals of gain and loss, which are taken as independent, for they are of
    different problems; Fieller's where those are symmetric.
    """
    return _ratio(benchmarks, 0)


@metric(
    "capabilities/gain_loss_ratio_high",
    title="Out-of-domain loss for each point of in-domain gain, upper end of its interval",
    signed=True,
    unit="lost per gained",
    version=2,
)
def gain_loss_ratio_high(benchmarks: Sequence[Benchmark]) -> list[Finding]:
    """Upper end of the 95 % interval of capabilities/gain_loss_ratio."""
    return _ratio(benchmarks, 1)
