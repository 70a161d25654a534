"""Bounds of metrics: imported values are held to it before they become a run.

KL is at least 0, and a mean over tokens above 50 nats is not a KL of language models: that is a
checkpoint that gave every token of the text one chance in 5e21. Rounding alone may take KL in
bfloat16 or float16 down to -0.01.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from mlflow_scalpel.errors import ScalpelError

MOST_NATS = 50.0
ROUNDING = {"bfloat16": 0.01, "float16": 0.01}
"""How far below 0 rounding takes a KL, in nats, by dtype; 1e-6 in others."""

SCALARS = {
    "kl/all_tokens": "nats/token",
    "kl/answer_tokens": "nats/token",
    "kl_paper_compat/all_tokens": "nats/token",
    "kl_on_base_samples/answer_tokens": "nats/token",
}
"""Metrics with one value per checkpoint, beside the scores of benchmarks, with their units."""

_EVAL = re.compile(r"eval/(in|out)/[^/]+/[^/]+")
_ANY = (-math.inf, math.inf)
_SHARE = (0.0, 1.0)
_SIGNED_SHARE = (-1.0, 1.0)
_NOT_NEGATIVE = (0.0, math.inf)
_KL = (0.0, MOST_NATS)
_BOUNDS = {
    # The first that a metric begins with counts.
    "weights/cosine_distance": (0.0, 2.0),
    "weights/unchanged": _SHARE,
    "weights": _NOT_NEGATIVE,
    "histograms": _SHARE,
    "spectra": _NOT_NEGATIVE,
    "pairs/update_cosine": _SIGNED_SHARE,
    "pairs": _NOT_NEGATIVE,
    "attention/js": (0.0, math.log(2.0)),
    "attention/first_token_change": _SIGNED_SHARE,
    "kl/js": (0.0, math.log(2.0)),
    "kl/gini": _SHARE,
    "kl/same_top": _SHARE,
    "kl/right_token_change": _SIGNED_SHARE,
    "kl/right_token_rms": _SHARE,
    # Of single tokens, some of which are as unlikely as floating point can say.
    "kl/quantile": _NOT_NEGATIVE,
    "kl/by_position": _NOT_NEGATIVE,
    "kl": _KL,
    "capabilities/in_domain_gain": _SIGNED_SHARE,
    "capabilities/out_of_domain_loss": _SIGNED_SHARE,
    "capabilities/gain_loss_ratio": _ANY,
    "capabilities/success_rate": _SHARE,
    "capabilities/base_success_rate": _SHARE,
    "capabilities/pass_at_k": _SHARE,
    "capabilities/base_pass_at_k": _SHARE,
    "capabilities/amplified": _SHARE,
    "capabilities/new": _SHARE,
    "capabilities/gold_loglik": _ANY,
    "capabilities": _NOT_NEGATIVE,
    "cost": _NOT_NEGATIVE,
    "frozen": _NOT_NEGATIVE,
}
_SLACK = 1e-6  # what rounding may add to a bound, relative to 1


def scalar_unit(metric: str) -> str | None:
    """The unit of a metric that has one value per checkpoint; None for any other metric."""
    return "accuracy" if _EVAL.fullmatch(metric) else SCALARS.get(metric)


def check_row(row: Mapping[str, Any], at: str, dtype: str | None = None) -> None:
    """Raise ScalpelError where a tidy row's step, layer, value, stderr or n cannot be.

    `at` says where it stands: file and line, row or key. `dtype` is that of the values where the
    row names none.
    """
    metric = str(row["metric"])
    for name in ("step", "layer", "head"):
        number = row.get(name)
        if number is not None and number < 0:
            raise ScalpelError(f"{at}: {name} = {number} is negative; they count from 0")
    n = row.get("n")
    value = row.get("value")
    if n is not None and n < (0 if value is None else 1):
        raise ScalpelError(
            f"{at}: n = {n} of {metric} is not a number of problems that a value can rest on; "
            "leave it empty where it is not known"
        )
    if value is None:
        return
    _check_value(metric, float(value), str(row.get("dtype") or dtype), at, row.get("unit"))
    stderr = row.get("stderr")
    if stderr is not None:
        _check_stderr(metric, float(value), float(stderr), n, at, row.get("unit"))


def _check_value(metric: str, value: float, dtype: str, at: str, unit: Any) -> None:
    low, high = bounds_of(metric, unit)
    slack = _SLACK
    if low == 0.0 and metric.startswith("kl"):
        slack = ROUNDING.get(dtype, _SLACK)
    if low - slack <= value <= high + _SLACK:
        return
    remedy = "correct it, or leave it out"
    if (low, high) == _SHARE and 1.0 < value <= 100.0:
        remedy = f"is it in percent? Give it as a share of 1: {value / 100:.6g}"
    elif metric.startswith("kl") and value < 0.0:
        remedy = (
            "KL is never negative; where it is rounding of bfloat16 or float16 (no more than "
            f"{max(ROUNDING.values())}), say so with --dtype, else correct it"
        )
    elif metric.startswith("kl") and high == MOST_NATS:
        remedy = (
            f"a mean of more than {MOST_NATS:g} nats a token is not a KL of language models; is it "
            "another quantity, or a sum over tokens? Give the mean in nats"
        )
    raise ScalpelError(f"{at}: {metric} = {value:.10g} is not in {_interval(low, high)}; {remedy}")


def bounds_of(metric: str, unit: Any = None) -> tuple[float, float]:
    """Least and greatest value of a metric; infinite where there is no bound, or none is known."""
    if metric.startswith(("eval/", "lm_eval/")):
        return _SHARE if unit in (None, "accuracy") else _ANY
    if metric.startswith("capabilities/") and metric.endswith("_p"):
        return _SHARE  # of a test
    return next((found for start, found in _BOUNDS.items() if metric.startswith(start)), _ANY)


def _interval(low: float, high: float) -> str:
    if high == math.inf:
        return f"[{low:g}, inf)"
    return f"[{low:g}, {high:.4g}]"


def _check_stderr(metric: str, value: float, stderr: float, n: Any, at: str, unit: Any) -> None:
    if not 0.0 <= stderr < math.inf:
        raise ScalpelError(
            f"{at}: stderr = {stderr:g} of {metric} is not a standard error, which is 0 or more "
            "and finite; leave it empty where it is not known"
        )
    if bounds_of(metric, unit) != _SHARE:
        return
    most = most_stderr(value, n)
    if stderr > most:
        rests_on = "of two problems or more" if n is None else f"of n = {n}"
        raise ScalpelError(
            f"{at}: stderr = {stderr:g} of {metric} = {value:g} cannot be: a mean of scores "
            f"between 0 and 1 {rests_on} has one of {most:.3g} at most. Is it in percent "
            f"({stderr / 100:.4g}), or the standard deviation of the scores (divide it by the root "
            "of n)?"
        )


def most_stderr(mean: float, n: int | None) -> float:
    """The largest standard error that the mean of n scores between 0 and 1 can have.

    The scores' variance is at most p (1 - p), so that is sqrt(p (1 - p) / (n - 1)); n is 2 where it
    is not known. Both numbers may be rounded to two digits (0.005), and the error be a bootstrap's
    (a tenth).
    """
    near = min(max(0.5, mean - 0.005), mean + 0.005)  # the p nearest 1/2 that rounds to the mean
    spread = near * (1.0 - near)
    return 1.1 * math.sqrt(max(spread, 0.0) / max((n or 2) - 1, 1)) + 0.005
