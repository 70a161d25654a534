"""A line over training: values, intervals, and gaps that say why they are gaps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.metrics.capabilities.intervals import UNKNOWN, Interval
from mlflow_scalpel.views.bars import error_bars
from mlflow_scalpel.views.style import LINE_COLOUR, Run, esc, hover, measured, remark
from mlflow_scalpel.views.tidy import Z, reasons

NO_VALUE = "no value (why: on hover)"


def gaps_listed(rows: pd.DataFrame) -> list[str]:
    """For a legend: what marks the gaps, where any of these rows has no value."""
    return [NO_VALUE] if rows["value"].isna().any() else []


def say_why(figure: go.Figure, rows: pd.DataFrame, at: tuple[int, int] = (1, 1)) -> None:
    """Write into a panel why it is empty, where none of its rows has a value."""
    if rows["value"].isna().all():
        remark(figure, f"no value: {esc(reasons(rows['reason']), 120)}", *at)


@dataclass
class Line:
    """Points in the order of x; `y` None draws a gap, and `why` says the reason."""

    x: list[float] = field(default_factory=list)
    y: list[float | None] = field(default_factory=list)
    ends: list[Interval] = field(default_factory=list)  # of the intervals; NaN without one
    said: list[str] = field(default_factory=list)
    why: list[str] = field(default_factory=list)

    def add(self, x: float, y: float | None, ends: Interval, said: str, why: str = "") -> None:
        """One point: `said` and `why` are safe text for the hover box."""
        self.x.append(x)
        self.y.append(y)
        self.ends.append(ends)
        self.said.append(said)
        self.why.append(why)

    @property
    def values(self) -> list[float]:
        """The values that are there."""
        return [y for y in self.y if y is not None]


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
            said = hover(*head, measured(value, stderr, float(row.n), str(row.unit)))  # type: ignore[arg-type]
            line.add(x, value, (value - Z * stderr, value + Z * stderr), said)
        else:
            line.add(x, None, UNKNOWN, "", hover(*head, row.reason))
    return line


def mean_line(
    rows: pd.DataFrame,
    key: str,
    head: Sequence[object],
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
    for i, place in enumerate(places):
        first = (*head, f"{name or key} {place:.6g}")
        if not counts[i]:
            why = reasons(rows["reason"].to_numpy()[group == i])
            line.add(float(place), None, UNKNOWN, "", hover(*first, why))
            continue
        own = known & (group == i)
        mean = float(np.average(values[own], weights=shares[own] if weights[i] > 0 else None))
        said = [*first, f"{mean:.6g}"]
        if cells[i] > 1:
            said.append(f"mean over {counts[i]:g} of {cells[i]} {over}")
        line.add(float(place), mean, UNKNOWN, hover(*said))
    return line


def draw(
    figure: go.Figure,
    at: tuple[int, int],
    line: Line,
    *,
    name: str,
    colour: str,
    dash: str,
    symbol: str,
    panel: str,
    series: str,
    legend: set[str],
    size: int = 6,
) -> None:
    """Add a line to the panel `at`.

    `name` is safe text; `panel` and `series` are plain text that goes into the numbers behind the
    figure. `legend` collects the names already there, so that each is listed once.
    """
    figure.add_trace(
        go.Scatter(
            x=line.x,
            y=line.y,
            error_y=error_bars(line.y, line.ends),
            mode="lines+markers",
            connectgaps=False,
            name=name,
            legendgroup=name,
            showlegend=name not in legend,
            line={"color": colour, "dash": dash, "width": 2},
            marker={"color": colour, "symbol": symbol, "size": size},
            customdata=line.said,
            hovertemplate="%{customdata}<extra></extra>",
            meta={"panel": panel, "series": series},
        ),
        row=at[0],
        col=at[1],
    )
    legend.add(name)
    gaps(figure, at, line, panel=panel, legend=legend)


def draw_run(
    figure: go.Figure, at: tuple[int, int], line: Line, run: Run, *, panel: str, legend: set[str]
) -> None:
    """Add a run's line to the panel `at`, with the run's own look; as `draw`."""
    draw(
        figure,
        at,
        line,
        name=run.label,
        colour=run.colour,
        dash=run.dash,
        symbol=run.symbol,
        panel=panel,
        series=run.name,
        legend=legend,
    )


def gaps(
    figure: go.Figure, at: tuple[int, int], line: Line, *, panel: str, legend: set[str]
) -> None:
    """Mark where a line has no value with a cross at the height of its nearest value.

    A gap alone cannot be hovered over; without any value there is no height, hence no cross.
    """
    known = [i for i, y in enumerate(line.y) if y is not None]
    missing = [i for i, y in enumerate(line.y) if y is None]
    if not known or not missing:
        return
    heights = [line.y[min(known, key=lambda k, i=i: abs(k - i))] for i in missing]  # type: ignore[misc]
    figure.add_trace(
        go.Scatter(
            x=[line.x[i] for i in missing],
            y=heights,
            mode="markers",
            name=NO_VALUE,
            legendgroup=NO_VALUE,
            showlegend=NO_VALUE not in legend,
            marker={"symbol": "x-thin", "size": 8, "line": {"width": 2, "color": LINE_COLOUR}},
            customdata=[hover("no value") + "<br>" + line.why[i] for i in missing],
            hovertemplate="%{customdata}<extra></extra>",
            meta={"panel": panel, "series": NO_VALUE},
        ),
        row=at[0],
        col=at[1],
    )
    legend.add(NO_VALUE)
