"""Lines with intervals, gaps that say why they are gaps, and the lines of runs over training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.metrics.capabilities.intervals import UNKNOWN, Interval, share_interval
from mlflow_scalpel.views.common.axis import place, scale_text, set_x, share_y
from mlflow_scalpel.views.common.panels import Panel, empty_figure, panels
from mlflow_scalpel.views.common.style import BASE_COLOUR, LINE_COLOUR, Run
from mlflow_scalpel.views.common.table import Measurements
from mlflow_scalpel.views.common.text import NO_BARS, Z, esc, hover, joined, reasons, value_text

NO_VALUE = "no value (why: on hover)"
NORMAL_BARS = f"bars: {Z} standard errors over problems"
FLOOR = "noise floor of the dtype"


def error_bars(
    values: Sequence[float | None], ends: Sequence[Interval], **settings: object
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
        **settings,
    }


def share_intervals(rows: pd.DataFrame) -> list[Interval]:
    """The 95 % interval of each share (`value`, `stderr`, `n`) of these rows; NaN if unknown."""
    parts = (rows[column].tolist() for column in ("value", "stderr", "n"))
    return [share_interval(*part) for part in zip(*parts, strict=True)]


def negated(ends: Iterable[Interval]) -> list[Interval]:
    """The intervals of the values with the other sign."""
    return [(0.0 - high, 0.0 - low) for low, high in ends]


def cross(**settings: Any) -> go.Scatter:
    """The marks of places without a value."""
    line = {"width": 2, "color": LINE_COLOUR}
    return go.Scatter(
        mode="markers", marker={"symbol": "x-thin", "size": 8, "line": line}, **settings
    )


@dataclass
class Line:
    """Points in the order of x; `y` None draws a gap, and `why` gives the reason."""

    x: list[Any] = field(default_factory=list)
    y: list[float | None] = field(default_factory=list)
    ends: list[Interval] = field(default_factory=list)  # of the intervals; NaN without one
    text: list[str] = field(default_factory=list)
    why: list[str] = field(default_factory=list)

    def add(self, x: Any, y: float, text: str, ends: Interval = UNKNOWN) -> None:
        """One point: `text` is safe text for the hover box."""
        self._add(x, y, ends, text, "")

    def add_gap(self, x: Any, why: str) -> None:
        """A place without a value, and why, as safe text."""
        self._add(x, None, UNKNOWN, "", why)

    def _add(self, x: Any, y: float | None, ends: Interval, text: str, why: str) -> None:
        self.x.append(x)
        self.y.append(y)
        self.ends.append(ends)
        self.text.append(text)
        self.why.append(why)


def flat_line(x: Sequence[float], y: float, text: str) -> Line:
    """A line at one height."""
    many = len(x)
    return Line(list(x), [y] * many, [UNKNOWN] * many, [text] * many, [""] * many)


def line_of(rows: pd.DataFrame, where: Iterable[Any], heads: Iterable[Sequence[object]]) -> Line:
    """A line through `rows`, at the places `where`; a row without a place is left out.

    `heads` are the first lines of each hover box, as plain text. Bars are 1.96 standard errors.
    """
    line = Line()
    for row, x, head in zip(rows.itertuples(), where, heads, strict=True):
        if isinstance(x, (float, np.floating)) and np.isnan(x):
            continue
        value, stderr = float(row.value), float(row.stderr)  # type: ignore[arg-type]
        if np.isfinite(value):
            text = hover(*head, value_text(value, stderr, float(row.n), str(row.unit)))  # type: ignore[arg-type]
            line.add(x, value, text, (value - Z * stderr, value + Z * stderr))
        else:
            line.add_gap(x, hover(*head, row.reason))
    return line


def mean_line(
    rows: pd.DataFrame,
    key: str,
    head: str,
    *,
    over: str,
    weight: str | None = None,
    name: str | None = None,
) -> Line:
    """A line through the means of `rows` at each place `key`, over what `over` says.

    With `weight`, a column, the means are weighted by it. A mean over fewer cells than there are
    says so on hover; a place without any value is a gap with the reasons. Places are written as
    `name` and their number.
    """
    line = Line()
    places, group = np.unique(rows[key].to_numpy(dtype=float), return_inverse=True)
    values = rows["value"].to_numpy(dtype=float)
    known = np.isfinite(values)
    shares = np.ones(len(rows)) if weight is None else rows[weight].fillna(0.0).to_numpy()

    def total(parts: np.ndarray) -> np.ndarray:
        return np.bincount(group[known], parts[known], minlength=len(places))

    cells, counts = np.bincount(group, minlength=len(places)), total(np.ones(len(rows)))
    weights = total(shares)
    for i, at in enumerate(places):
        first = (head, f"{name or key} {at:.6g}")
        if not counts[i]:
            why = reasons(rows["reason"].to_numpy()[group == i])
            line.add_gap(float(at), hover(*first, why))
            continue
        own = known & (group == i)
        mean = float(np.average(values[own], weights=shares[own] if weights[i] > 0 else None))
        text = [*first, f"{mean:.6g}"]
        if cells[i] > 1:
            text.append(f"mean over {counts[i]:g} of {cells[i]} {over}")
        line.add(float(at), mean, hover(*text))
    return line


def draw(
    panel: Panel,
    line: Line,
    *,
    name: str,
    series: str,
    colour: str,
    dash: str = "solid",
    symbol: str = "circle",
    size: int = 6,
) -> None:
    """Add a line to a panel, with a cross at each gap; a line without points is not drawn.

    `name` is safe text, `series` plain text that goes into the numbers behind the figure.
    """
    if not line.x:
        return
    trace = go.Scatter(
        x=line.x,
        y=line.y,
        error_y=error_bars(line.y, line.ends),
        mode="lines+markers",
        connectgaps=False,
        line={"color": colour, "dash": dash, "width": 2},
        marker={"color": colour, "symbol": symbol, "size": size},
    )
    panel.add(trace, line.text, series=series, name=name)
    draw_gaps(panel, line)


def draw_gaps(panel: Panel, line: Line) -> None:
    """Mark where a line has no value with a cross at the height of its nearest value.

    A gap alone cannot be hovered over; without any value there is no height, hence no cross.
    """
    known = [i for i, y in enumerate(line.y) if y is not None]
    missing = [i for i, y in enumerate(line.y) if y is None]
    if not known or not missing:
        return
    heights = [line.y[min(known, key=lambda k, i=i: abs(k - i))] for i in missing]  # type: ignore[misc]
    trace = cross(x=[line.x[i] for i in missing], y=heights)
    text = [hover("no value") + "<br>" + line.why[i] for i in missing]
    panel.add(trace, text, series=NO_VALUE, name=NO_VALUE)


def legend_of(runs: Iterable[Run], rows: pd.DataFrame, *others: str) -> list[str]:
    """The names in a legend of runs: theirs, others, and the mark of gaps where there are any."""
    return [*(run.label for run in runs), *others, *gaps_listed(rows)]


def gaps_listed(rows: pd.DataFrame) -> list[str]:
    """For a legend: the mark of gaps, where any of these rows has no value."""
    return [NO_VALUE] if rows["value"].isna().any() else []


def lines_over_training(
    data: Measurements,
    rows: pd.DataFrame,
    *,
    title: str,
    y_title: str,
    subtitle: str = "",
    x: str = "step",
    log_x: bool = False,
    log_y: bool = True,
    floors: pd.DataFrame | None = None,
) -> go.Figure:
    """A panel for each value of the column `panel` (plain text, in order of appearance).

    Bars are 1.96 standard errors. `floors` are rows whose values lie under those of the same panel
    as noise: a grey line. All panels share the y axis.

    Raises ValueError for another `x`.
    """
    placed = place(data, rows, x)
    if placed.empty:
        return empty_figure(title, placed.empty)
    rows = placed.rows
    shown = data.runs_in(rows)
    names = list(dict.fromkeys(rows["panel"]))
    notes = [NORMAL_BARS if rows["stderr"].notna().any() else NO_BARS, scale_text(log_y)]
    zeros = int((rows["value"] == 0).sum())
    if log_y and zeros:
        notes.append(f"{zeros} value{'s' * (zeros > 1)} of exactly 0 not drawn on it")
    drawn = rows.iloc[:0]
    if floors is not None and len(floors):
        drawn = place(data, floors[floors["value"] > 0], x).rows
        if not len(drawn):
            notes.append("noise floor of the dtype: 0")
    grid = panels(
        [esc(name, 60) for name in names],
        title=title,
        names=names,
        subtitle=joined(subtitle, *notes, placed.note),
        columns=2,
        row_height=270,
        gap=76,
        spacing=0.03,
        left=84,
        legend=legend_of(shown, rows, *[FLOOR] * (len(drawn) > 0)),
    )
    for name, panel in zip(names, grid, strict=True):
        own = rows[rows["panel"] == name]
        for run in shown:
            mine = own[own["run_id"] == run.run_id].sort_values("step")
            heads = [
                (run.name, f"step {step:g} of {data.end(run.run_id):g}", texts)
                for step, texts in zip(mine["step"], mine["texts"], strict=True)
            ]
            draw(panel, line_of(mine, mine["x"], heads), **run.line)
        draw_floor(panel, drawn[drawn["panel"] == name])
        panel.note_reasons(own)
    set_x(grid.figure, x, log_x=log_x)
    share_y(grid, y_title, log_y)
    return grid.figure


def draw_floor(panel: Panel, floors: pd.DataFrame) -> None:
    """A grey line at each height that the noise floor has in a panel, over the points' width."""
    for value, own in floors.groupby("value"):
        text = hover(FLOOR, f"{value:.4g} nats/token: KL of the base in float32 and in this dtype")
        line = flat_line([own["x"].min(), own["x"].max()], float(value), text)  # type: ignore[arg-type]
        draw(panel, line, name=FLOOR, series=FLOOR, colour=BASE_COLOUR, dash="dot", size=3)
