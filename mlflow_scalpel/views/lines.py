"""A line over training: values, intervals, and gaps that say why they are gaps."""

from __future__ import annotations

from dataclasses import dataclass, field

import plotly.graph_objects as go

from mlflow_scalpel.views.style import LINE_COLOUR, hover

NO_VALUE = "no value (why: on hover)"


@dataclass
class Line:
    """Points in the order of x; `y` None draws a gap, and `why` says the reason."""

    x: list[float] = field(default_factory=list)
    y: list[float | None] = field(default_factory=list)
    half: list[float | None] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    why: list[str] = field(default_factory=list)

    def add(self, x: float, y: float | None, half: float | None, said: str, why: str = "") -> None:
        """One point: `said` and `why` are safe text for the hover box."""
        self.x.append(x)
        self.y.append(y)
        self.half.append(half)
        self.said.append(said)
        self.why.append(why)

    @property
    def values(self) -> list[float]:
        """The values that are there."""
        return [y for y in self.y if y is not None]


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
    bars = None
    if any(half is not None for half in line.half):
        bars = {"type": "data", "array": list(line.half), "thickness": 1.2, "width": 3}
    figure.add_trace(
        go.Scatter(
            x=line.x,
            y=line.y,
            error_y=bars,
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
