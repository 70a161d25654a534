"""Words of figures and pages: other people's text made safe, values with their intervals."""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from markupsafe import Markup

from mlflow_scalpel.metrics.capabilities.intervals import UNKNOWN, Interval, share_interval

#: Half the width of a 95 % normal interval, in standard errors.
Z = 1.96

#: Under a figure of scores.
BARS = "bars: exact 95 % intervals over problems"
NO_BARS = "no standard errors in the table"

#: Signs that change the direction of the text after them, and show nothing themselves.
DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_NO_DIRECTIONS = dict.fromkeys(map(ord, DIRECTIONS))


def one_line(text: object) -> str:
    """Other people's text on one line, which turns none of what stands behind it."""
    return " ".join(str(text).translate(_NO_DIRECTIONS).split())


def isolated(text: object) -> Markup:
    """Other people's text for a table: one read from right to left turns nothing beside it."""
    return Markup("<bdi>{}</bdi>").format(one_line(text))


def unbroken(text: str) -> Markup:
    """Text for a narrow cell, whose commands and options are not broken at their hyphens."""
    whole = Markup('<span style="white-space:nowrap">{}</span>')
    parts = re.split(r"(mlflow-scalpel|--[a-z]\S*)", text)
    return Markup("").join(whole.format(part) if i % 2 else part for i, part in enumerate(parts))


def esc(text: object, limit: int = 0) -> str:
    """Other people's text, made safe for Plotly, which reads a subset of HTML in every label.

    `limit` cuts it to so many characters. Quotes stay: Plotly has no name for them and needs none.
    """
    line = one_line(text)
    if limit and len(line) > limit:
        line = line[: limit - 1] + "\u2026"
    return html.escape(line, quote=False)


def hover(*lines: object) -> str:
    """Lines for a hover box, each escaped and wrapped."""
    found: list[str] = []
    for line in lines:
        text = one_line(line)[:600]
        # textwrap takes a tenth of the time of a figure of many points.
        found += textwrap.wrap(text, 80) if len(text) > 80 else filter(None, [text])
    return "<br>".join(html.escape(line, quote=False) for line in found)


def wrapped(text: str, width: int = 104) -> list[str]:
    """Safe text in lines that fit the narrowest page."""
    return textwrap.wrap(text, width, break_on_hyphens=False) if text else []


def joined(*parts: str) -> str:
    """The parts of a subtitle that there are."""
    return "; ".join(filter(None, parts))


def reasons(texts: Iterable[str]) -> str:
    """Distinct reasons, in the order in which they first appear, as one string."""
    return joined(*dict.fromkeys(texts)) or "no reason was recorded"


def probe(texts: str) -> str:
    """The name of a probe set: the first word of the column `texts`."""
    words = texts.split()
    return words[0] if words else "texts not named"


def number(value: object) -> float | None:
    """`value` as a finite float, or None: parameters of a run come as text."""
    try:
        parsed = float(str(value))
    except ValueError:
        return None
    return parsed if np.isfinite(parsed) else None


def short(value: float) -> str:
    """Two digits, for a cell: 0.012, 5.1e-5."""
    return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e")


def value_text(value: float, stderr: float, n: float, unit: str = "") -> str:
    """A value in full, with its interval and its n where they are known."""
    text = f"{value:.6g}"
    if pd.notna(stderr):
        text += f" \u00b1 {Z * stderr:.3g} ({Z} stderr)"
    if unit:
        text += f" {unit}"
    if pd.notna(n):
        text += f", n = {n:g}"
    return text


def share_text(value: float, stderr: float, n: float, ends: Interval = UNKNOWN) -> str:
    """A share in full, with its interval and its n where they are known."""
    low, high = share_interval(value, stderr, n) if math.isnan(ends[0]) else ends
    text = f"{value:.6g}"
    if within := between(low, high):
        text += f", 95 % interval {within}"
    if not math.isnan(n):
        text += f", n = {n:g}"
    return text


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


def p_text(p: float) -> str:
    """`p = 0.013`."""
    return f"p = {p:.2g}" if p >= 1e-12 else "p < 1e-12"


def corrected(tests: int) -> str:
    """That no p value is corrected, and for how many that are shown together."""
    return "not corrected" + (f" for the {tests} tests shown" if tests > 1 else "")


def column_of(runs: pd.DataFrame | None, run_id: str, column: str) -> str:
    """A run's parameter in `runs`, as text; "" where it is not recorded."""
    if runs is None or column not in runs.columns:
        return ""
    rows = runs.loc[[str(index) == run_id for index in runs.index], column]
    return "" if not len(rows) or pd.isna(rows.iloc[0]) else str(rows.iloc[0])


def unique(names: Mapping[str, str]) -> dict[str, str]:
    """Names by run id, made distinct: by the start of the id, by a count where that is shared."""
    twice = {name for name in names.values() if list(names.values()).count(name) > 1}
    result: dict[str, str] = {}
    for run_id, name in names.items():
        if name in twice:
            name = f"{name} {esc(run_id[:6])}"
        count = 2
        while name in result.values():
            name = f"{name.rsplit(' #', 1)[0]} #{count}"
            count += 1
        result[run_id] = name
    return result
