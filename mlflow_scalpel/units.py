"""Costs and sizes as people read them: 1.61 TFLOP, 2.4 h, 1.3 M tokens, 1.2 GB."""

from __future__ import annotations

import math

PREFIXES = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_WRITTEN_OUT = 10_000  # counts below it


def scaled(value: float) -> tuple[str, str]:
    """Three digits of a number, and the SI prefix that they want: ("1.61", "T")."""
    for size, prefix in PREFIXES:
        if abs(value) >= 0.9995 * size:  # what rounds to 1000 has the next prefix
            return f"{value / size:.3g}", prefix
    return f"{value:.3g}", ""


def flop(value: float) -> str:
    """A number of floating-point operations: 1.61 TFLOP."""
    digits, prefix = scaled(value)
    return f"{digits} {prefix}FLOP"


def count(value: float, of: str) -> str:
    """A number of things: 842 tokens, 1.23 M tokens."""
    if abs(value) < _WRITTEN_OUT:
        return f"{value:,.6g} {of}"
    digits, prefix = scaled(value)
    return f"{digits} {prefix} {of}"


def duration(seconds: float) -> str:
    """A time: 12.3 s, 5.2 min, 2.4 h."""
    if abs(seconds) < 99.95:
        return f"{seconds:.3g} s"
    if abs(seconds) < 5997.0:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h" if abs(seconds) < 3.6e6 else f"{seconds / 3600:,.0f} h"


def cost_words(metric: str, value: float) -> str:
    """A value of a metric `cost/...` with its unit; the bare number of any other metric."""
    if not math.isfinite(value):
        return str(value)
    name = metric.removeprefix("cost/")
    if name == "flops":
        return flop(value)
    if name.endswith("_seconds"):
        return duration(value)
    things = {"sequences": "sequences", "unique_problems": "problems"}
    if name.startswith("tokens"):
        return count(value, "tokens")
    return count(value, things[name]) if name in things else f"{value:.6g}"


def readable_bytes(count: int) -> str:
    """Bytes for people, in units of a thousand: 1.2 GB."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
