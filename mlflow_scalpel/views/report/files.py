"""The numbers behind a figure, as a table."""

from __future__ import annotations

import html
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.lines import NO_VALUE

COLUMNS = ["panel", "series", "x", "y", "value", "half_x", "half_y", "below_x", "below_y"]


def plain(value: Any) -> Any:
    """A label as it was before it was made safe for Plotly; numbers as they are."""
    return html.unescape(value) if isinstance(value, str) else value


def numbers(figure: go.Figure) -> pd.DataFrame:
    """What these views drew, a row a point, bar or cell.

    `panel` and `series` name where it stands, `x` and `y` are its coordinates as drawn; `value` is
    a heat map's cell, `half_x` and `half_y` the length of an error bar from the value to its upper
    end, and `below_x` and `below_y` that to its lower end where it is another. Gaps are rows
    without a value.
    """
    rows: list[list[Any]] = []
    for trace in figure.data:
        meta = trace.meta if isinstance(trace.meta, dict) else {}
        panel, series = meta.get("panel", ""), meta.get("series", trace.name or "")
        if all(x is None for x in trace.x):
            continue  # has no place in the figure, but an entry in its legend
        if series == NO_VALUE:
            continue  # marks a gap that is already a row of its own line
        if isinstance(trace, go.Heatmap):
            rows += [
                [panel, series, plain(x), plain(y), value, *[None] * 4]
                for y, line in zip(trace.y, trace.z, strict=True)
                for x, value in zip(trace.x, line, strict=True)
            ]
            continue
        count = len(trace.x)
        halves = [
            list(length) if length is not None else [None] * count
            for bars in ("array", "arrayminus")
            for length in (trace.error_x[bars], trace.error_y[bars])
        ]
        rows += [
            [panel, series, plain(x), plain(y), None, *lengths]
            for x, y, *lengths in zip(trace.x, trace.y, *halves, strict=True)
        ]
    return pd.DataFrame(rows, columns=COLUMNS).dropna(axis="columns", how="all")
