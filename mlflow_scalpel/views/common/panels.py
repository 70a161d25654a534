"""Figures of panels: the one template, the layout of titles and legend, and how a trace is added.

The background is transparent and the text a grey that reads on white and on near-black, because
the same figure stands in a notebook, in a report and in a page that may be dark.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from plotly.subplots import make_subplots

from mlflow_scalpel.views.common.style import GRID_COLOUR, LINE_COLOUR, TEXT_COLOUR
from mlflow_scalpel.views.common.text import esc, reasons, wrapped

#: The narrowest page the figures are laid out for, in pixels.
NARROW = 760

FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
CLEAR = "rgba(0,0,0,0)"


def _axis(standoff: int) -> dict[str, Any]:
    return {
        # Plotly by itself has no grid along the bars of a panel, nor in an empty one.
        "showgrid": True,
        "gridcolor": GRID_COLOUR,
        "linecolor": LINE_COLOUR,
        "showline": True,
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": LINE_COLOUR,
        "ticklen": 4,
        "tickfont": {"size": 12},
        # Otherwise Plotly measures every label, with a layout of the page for each.
        "ticklabeloverflow": "allow",
        "title": {"font": {"size": 13}, "standoff": standoff},
    }


TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 13, "color": TEXT_COLOUR},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "title": {
            "subtitle": {"font": {"size": 12}},
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 12, "l": 12},
            "font": {"size": 17},
        },
        "xaxis": _axis(6),
        "yaxis": _axis(8),
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
            "bgcolor": CLEAR,
            "itemwidth": 42,
            "tracegroupgap": 2,
        },
        "hoverlabel": {"align": "left", "namelength": -1},
        "bargap": 0.25,
        "modebar": {"bgcolor": CLEAR, "color": LINE_COLOUR, "activecolor": TEXT_COLOUR},
    }
)
pio.templates["scalpel"] = TEMPLATE


@dataclass(frozen=True)
class Panel:
    """One panel of a figure, and the names that the figure's legend has already."""

    figure: go.Figure
    row: int  # from 1
    column: int
    name: str  # plain text, for the numbers behind the figure
    listed: set[str] = field(repr=False)

    def add(
        self,
        trace: go.Scatter | go.Bar,
        text: Sequence[str],
        *,
        series: str,
        name: str | None = None,
        **meta: object,
    ) -> None:
        """Add a trace whose hover box has `text` (safe, one per point).

        `series` is plain text that goes into the numbers behind the figure. With a `name` (safe
        text) the trace stands in the legend, the first of a name for all of that name.
        """
        trace.update(
            customdata=text,
            hovertemplate="%{customdata}<extra></extra>",
            meta={"panel": self.name, "series": series, **meta},
            showlegend=name is not None and name not in self.listed,
        )
        if name is not None:
            trace.update(name=name, legendgroup=name)
            self.listed.add(name)
        self.figure.add_trace(trace, row=self.row, col=self.column)

    def x(self, **settings: Any) -> None:
        """Set up its x axis."""
        self.figure.get_subplot(self.row, self.column).xaxis.update(settings)

    def y(self, **settings: Any) -> None:
        """Set up its y axis."""
        self.figure.get_subplot(self.row, self.column).yaxis.update(settings)

    @property
    def y_name(self) -> str:
        """What another axis calls its y axis in `matches`: `y`, `y2`, ..."""
        name = self.figure.get_subplot(self.row, self.column).yaxis.plotly_name
        return str(name).replace("axis", "")

    @property
    def first(self) -> bool:
        """Whether it is the first of its row, which names the y axis."""
        return self.column == 1

    @property
    def domain(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Where it is on the page, across and down, as fractions of all panels together."""
        subplot = self.figure.get_subplot(self.row, self.column)
        return subplot.xaxis.domain or (0, 1), subplot.yaxis.domain or (0, 1)

    def note(self, text: str) -> None:
        """Write safe text into the middle of a panel that has nothing else to show.

        Placed on the page, not in the panel: Plotly draws no axes for a panel without traces.
        """
        across, down = self.domain
        characters = max(16, int((across[1] - across[0]) * NARROW / 9))
        self.figure.add_annotation(
            text="<br>".join(wrapped(text, min(44, characters))),
            x=sum(across) / 2,
            xanchor="center",
            y=sum(down) / 2,
            xref="paper",
            yref="paper",
            yanchor="middle",
            showarrow=False,
        )

    def note_reasons(self, rows: pd.DataFrame) -> None:
        """Write why it is empty, where none of its rows has a value."""
        if rows["value"].isna().all():
            self.note(f"no value: {esc(reasons(rows['reason']), 120)}")


@dataclass(frozen=True)
class Grid:
    """A figure of panels, row by row."""

    figure: go.Figure
    panels: list[Panel]

    def __iter__(self) -> Iterator[Panel]:
        return iter(self.panels)

    def __getitem__(self, index: int) -> Panel:
        return self.panels[index]


def panels(
    titles: Sequence[str],
    *,
    title: str,
    names: Sequence[str] | None = None,
    subtitle: str = "",
    columns: int = 3,
    row_height: int = 250,
    gap: int = 66,
    spacing: float = 0.05,
    left: int = 76,
    bottom: int = 56,
    widths: Sequence[float] | None = None,
    legend: Sequence[str] = (),
) -> Grid:
    """Panels in rows, with the page's title above and its legend below.

    `titles` are safe text, one per panel, and `names` plain text for the numbers behind the figure,
    by default the titles. `legend` are the names that will stand in the legend, for which room is
    kept under the panels at the narrowest width; `gap` is the room between two rows and `bottom`
    the room for the last row's ticks and axis title, in pixels.
    """
    count = max(1, len(titles))
    across = min(columns, count) if count != 4 or columns != 3 else 2
    down = -(-count // across)
    height = down * row_height + (down - 1) * gap
    figure = make_subplots(
        rows=down,
        cols=across,
        subplot_titles=list(titles),
        column_widths=list(widths) if widths else None,
        horizontal_spacing=spacing if across > 1 else 0,
        vertical_spacing=gap / height if down > 1 else 0,
        start_cell="top-left",
    )
    places = [(i // across + 1, i % across + 1) for i in range(down * across)]
    for row, column in places[count:]:
        figure.update_xaxes(visible=False, row=row, col=column)
        figure.update_yaxes(visible=False, row=row, col=column)
    for heading in figure.layout.annotations:
        heading.font.size = 13
    over = 16 * max((one.count("<br>") for one in titles), default=0)
    lay_out(figure, height, title, subtitle, left, bottom, legend, over)
    listed = set[str]()
    own = [*(names or titles), *[""] * (count - len(titles))]
    return Grid(
        figure,
        [Panel(figure, *place, name, listed) for place, name in zip(places, own, strict=False)],
    )


def lay_out(
    figure: go.Figure,
    height: int,
    title: str,
    subtitle: str = "",
    left: int = 76,
    bottom: int = 56,
    legend: Sequence[str] = (),
    over: int = 0,
) -> None:
    """Set template, title, height, margins and legend; `height` is that of the panels alone.

    `over` is the room for further lines of the panels' titles.
    """
    lines = wrapped(subtitle)
    top = 74 + 16 * len(lines) + over
    rows = legend_rows(legend, NARROW - left)
    under = bottom + 22 * rows + (10 if rows else 0)
    figure.update_layout(
        template=TEMPLATE,
        title={"text": title, "subtitle": {"text": "<br>".join(lines)}},
        height=top + height + under,
        margin={"l": left, "r": 24, "t": top, "b": under},
        showlegend=bool(legend),
    )


def legend_rows(names: Sequence[str], width: int) -> int:
    """Rows that a legend of these names takes: a name that does not fit begins the next."""
    rows, taken = 0, width
    for name in names:
        own = len(html.unescape(name)) * 7 + 62
        if not rows or taken + own > width:
            rows, taken = rows + 1, 0
        taken += own
    return rows


def empty_figure(title: str, text: str) -> go.Figure:
    """A figure that says why there is nothing to draw."""
    figure = go.Figure()
    lines = wrapped(text, 90)
    lay_out(figure, 8, title, left=12, bottom=16, over=16 * (len(lines) - 1))
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.add_annotation(
        text="<br>".join(lines),
        align="left",
        x=0,
        y=1,
        xref="paper",
        yref="paper",
        xanchor="left",
        yanchor="bottom",
        showarrow=False,
    )
    return figure
