"""Error bars and words of intervals, whose two ends may lie at different distances."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from mlflow_scalpel.metrics.capabilities.intervals import UNKNOWN, Interval, share_interval

#: Said of a figure of scores.
BARS = "bars: exact 95 % intervals over problems"
NO_BARS = "no standard errors in the table"


def intervals_of(rows: pd.DataFrame) -> list[Interval]:
    """The 95 % interval of each share (`value`, `stderr`, `n`) of these rows; NaN if unknown."""
    parts = (rows[column].tolist() for column in ("value", "stderr", "n"))
    return [share_interval(*part) for part in zip(*parts, strict=True)]


def error_bars(
    values: Sequence[float | None], ends: Sequence[Interval], **look: object
) -> dict[str, Any] | None:
    """Plotly's error bars from each value to both ends; None where no interval is known."""
    known = [
        None if value is None or math.isnan(low) or math.isnan(high) else (value, low, high)
        for value, (low, high) in zip(values, ends, strict=True)
    ]
    if not any(known):
        return None
    return {
        "type": "data",
        "symmetric": False,
        "array": [None if one is None else max(0.0, one[2] - one[0]) for one in known],
        "arrayminus": [None if one is None else max(0.0, one[0] - one[1]) for one in known],
        "thickness": 1.2,
        "width": 3,
        **look,
    }


def negated(ends: Iterable[Interval]) -> list[Interval]:
    """The intervals of the values with the other sign."""
    return [(0.0 - high, 0.0 - low) for low, high in ends]


def signed(value: float) -> str:
    """A difference with its sign, a minus as wide as the plus; only 0 itself has none."""
    text = f"{value:.3f}" if value == 0 else f"{value:+.3f}"
    if value != 0 and float(text) == 0:
        text = f"{value:+.1g}"
    return text.replace("-", "\u2212")


def between(low: float, high: float, digits: int = 3) -> str:
    """`0.963 to 1`; "" where an end is unknown."""
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"{low:.{digits}g} to {high:.{digits}g}".replace("-", "\u2212")


def share_words(value: float, stderr: float, n: float, ends: Interval = UNKNOWN) -> str:
    """A share in full, with its interval and its n where they are known."""
    low, high = share_interval(value, stderr, n) if math.isnan(ends[0]) else ends
    text = f"{value:.6g}"
    if said := between(low, high):
        text += f", 95 % interval {said}"
    if not math.isnan(n):
        text += f", n = {n:g}"
    return text


def p_text(p: float) -> str:
    """`p = 0.013`."""
    return f"p = {p:.2g}" if p >= 1e-12 else "p < 1e-12"


def corrected(tests: int) -> str:
    """That no p value is corrected, and for how many that are shown together."""
    return "not corrected" + (f" for the {tests} tests shown" if tests > 1 else "")


def p_words(p: float, tests: int) -> str:
    """A p value, and of how many that are shown together it is one."""
    return f"{p_text(p)}, {corrected(tests)}"
