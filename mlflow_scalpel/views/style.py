"""How the figures look: one colour an algorithm, panels, titles, and other people's text made safe.

The background is transparent and the text a grey that reads on white and on near-black, because
the same figure stands in a notebook, in a report and in a page that may be dark.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.subplots import make_subplots

from mlflow_scalpel.comparison.table import IMPORTED
from mlflow_scalpel.views.tidy import Z

# Okabe and Ito's palette, safe for colour-blind readers. Blue and orange stand for the two
# algorithms met most because they differ in lightness too: they survive a greyscale print.
ALGORITHM_COLOURS = {"base": "#8A8F98", "grpo": "#0072B2", "sft": "#E69F00"}
OTHER_COLOURS = ("#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
BASE_COLOUR = ALGORITHM_COLOURS["base"]

# Matrices take another palette (Tol's "bright"), so that no matrix wears an algorithm's colour.
MATRIX_COLOURS = ("#4477AA", "#EE6677", "#228833", "#AA9922", "#33AACC", "#AA3377", "#999999")

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down", "cross")
PATTERNS = ("", "/", ".", "x", "\\", "-")
HOLLOW = 0.25  # opacity of what an outline holds

TEXT_COLOUR = "#757B85"
GRID_COLOUR = "rgba(128,128,128,0.22)"
LINE_COLOUR = "rgba(128,128,128,0.65)"
FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"

#: Signs that change the direction of the text after them, and show nothing themselves.
DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_UNTURNED = dict.fromkeys(map(ord, DIRECTIONS))

#: Characters of a run's name in a figure, and of an imported one's before its mark.
LABEL, MARKED_LABEL = 28, 24

#: The narrowest page the figures are laid out for, in pixels.
NARROW = 760


def unturned(text: object) -> str:
    """Other people's text on one line, which turns none of what stands behind it."""
    return " ".join(str(text).translate(_UNTURNED).split())


def isolated(text: object) -> Markup:
    """Other people's text for a table: one read from right to left turns nothing beside it."""
    return Markup("<bdi>{}</bdi>").format(unturned(text))


def unbroken(text: str) -> Markup:
    """Text for a narrow cell, whose commands and options are not broken at their hyphens."""
    whole = Markup('<span style="white-space:nowrap">{}</span>')
    parts = re.split(r"(mlflow-scalpel|--[a-z]\S*)", text)
    return Markup("").join(whole.format(part) if i % 2 else part for i, part in enumerate(parts))


def esc(text: object, limit: int = 0) -> str:
    """Other people's text, made safe for Plotly, which reads a subset of HTML in every label.

    `limit` cuts it to so many characters. Quotes stay: Plotly has no name for them and needs none.
    """
    line = unturned(text)
    if limit and len(line) > limit:
        line = line[: limit - 1] + "\u2026"
    return html.escape(line, quote=False)


def hover(*lines: object) -> str:
    """Lines for a hover box, each escaped and wrapped."""
    wrapped: list[str] = []
    for line in lines:
        text = unturned(line)[:600]
        # textwrap takes a tenth of the time of a figure of many points.
        wrapped += textwrap.wrap(text, 80) if len(text) > 80 else filter(None, [text])
    return "<br>".join(html.escape(line, quote=False) for line in wrapped)


def measured(value: float, stderr: float, n: float, unit: str = "") -> str:
    """A value in full, with its interval and its n where they are known."""
    text = f"{value:.6g}"
    if pd.notna(stderr):
        text += f" \u00b1 {Z * stderr:.3g} ({Z} stderr)"
    if unit:
        text += f" {unit}"
    if pd.notna(n):
        text += f", n = {n:g}"
    return text


@dataclass(frozen=True)
class Run:
    """A run as every figure draws it."""

    run_id: str
    name: str  # other people's text: raw
    label: str  # the name, escaped and short enough for a legend or a panel title; unique
    algorithm: str
    colour: str
    dash: str
    symbol: str
    pattern: str


def column_of(runs: pd.DataFrame | None, run_id: str, column: str) -> str:
    """What `runs` says of a run in one column, as text; "" where it says nothing."""
    if runs is None or column not in runs.columns:
        return ""
    rows = runs.loc[[str(index) == run_id for index in runs.index], column]
    return "" if not len(rows) or pd.isna(rows.iloc[0]) else str(rows.iloc[0])


def filled(colour: str, pattern: str) -> dict[str, object]:
    """A bar's marker: its algorithm's colour, with a pattern that tells runs of one apart."""
    hatch = {"shape": pattern, "bgcolor": colour, "fgcolor": "#FFFFFF", "solidity": 0.25}
    return {"color": colour, "pattern": hatch}


def hollow(colour: str, pattern: str) -> dict[str, object]:
    """The marker of a base's bar: an outline, which a greyscale print tells from any run's bar."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    within = f"rgba({red},{green},{blue},{HOLLOW})"
    hatch = {"shape": pattern, "bgcolor": within, "fgcolor": colour, "solidity": 0.25}
    return {"color": within, "pattern": hatch, "line": {"color": colour, "width": 1.5}}


def unique(names: dict[str, str]) -> dict[str, str]:
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


def short_labels(names: dict[str, str]) -> dict[str, str]:
    """Names by run id, safe and short enough for a legend or a panel's title.

    The mark of imported runs takes no room where all have it, since it tells none apart, and is
    left whole where some have it. The name in full stands on hover and in tables.
    """
    if all(name.endswith(IMPORTED) for name in names.values()):
        return {i: esc(name.removesuffix(IMPORTED), LABEL) for i, name in names.items()}
    return {
        i: esc(name.removesuffix(IMPORTED), MARKED_LABEL) + IMPORTED
        if name.endswith(IMPORTED)
        else esc(name, LABEL)
        for i, name in names.items()
    }


def styles(clean: pd.DataFrame, runs: pd.DataFrame | None) -> dict[str, Run]:
    """The table's runs, in the order of `runs`, then of the table, each with its look.

    Colours follow from the whole table, not from the rows a figure draws, so that an algorithm
    keeps its colour from figure to figure.
    """
    seen = [run_id for run_id in clean["run_id"].unique() if run_id]
    listed = [] if runs is None else [str(index) for index in runs.index]
    order = [i for i in dict.fromkeys(listed) if i in seen] + [i for i in seen if i not in listed]
    algorithms = {}
    for run_id in order:
        said = [a for a in clean.loc[clean["run_id"] == run_id, "algorithm"].unique() if a]
        algorithms[run_id] = column_of(runs, run_id, "algorithm") or (said[0] if said else "run")
    names = {
        i: column_of(runs, i, "name") or f"{algorithms[i]} {i.removeprefix('m-')[:6]}"
        for i in order
    }
    names = unique(names)
    labels = unique(short_labels(names))
    others = sorted({a.lower() for a in algorithms.values()} - set(ALGORITHM_COLOURS))
    count: dict[str, int] = {}
    result = {}
    for run_id in order:
        key = algorithms[run_id].lower()
        i = count[key] = count.get(key, -1) + 1
        colour = ALGORITHM_COLOURS.get(key)
        if colour is None:
            colour = OTHER_COLOURS[others.index(key) % len(OTHER_COLOURS)]
        result[run_id] = Run(
            run_id=run_id,
            name=names[run_id],
            label=labels[run_id],
            algorithm=algorithms[run_id],
            colour=colour,
            dash=DASHES[i % len(DASHES)],
            symbol=SYMBOLS[i % len(SYMBOLS)],
            pattern=PATTERNS[i % len(PATTERNS)],
        )
    return result


def in_rows(looks: Mapping[str, Run], rows: pd.DataFrame) -> list[Run]:
    """The runs that have any of these rows, in the order of all figures."""
    there = set(rows["run_id"])
    return [run for run in looks.values() if run.run_id in there]


def wrapped(text: str, width: int = 104) -> list[str]:
    """Safe text in lines that fit the narrowest page."""
    return textwrap.wrap(text, width, break_on_hyphens=False) if text else []


@dataclass(frozen=True)
class Grid:
    """A figure of small panels, and where each panel is: `at[i]` is (row, column), from 1."""

    figure: go.Figure
    at: list[tuple[int, int]]


def panels(
    titles: Sequence[str],
    *,
    title: str,
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

    `titles` are safe text, one a panel; `legend` the names that will stand in the legend, for
    which room is kept under the panels at the narrowest width; `gap` is the room between two rows
    and `bottom` the room for the last row's ticks and axis title, in pixels.
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
    at = [(i // across + 1, i % across + 1) for i in range(count)]
    for row, column in [(i // across + 1, i % across + 1) for i in range(count, down * across)]:
        figure.update_xaxes(visible=False, row=row, col=column)
        figure.update_yaxes(visible=False, row=row, col=column)
    dress(
        figure,
        height,
        title=title,
        subtitle=subtitle,
        left=left,
        bottom=bottom,
        legend=legend,
        over=16 * max((one.count("<br>") for one in titles), default=0),
    )
    return Grid(figure, at)


def dress(
    figure: go.Figure,
    height: int,
    *,
    title: str,
    subtitle: str = "",
    left: int = 76,
    bottom: int = 56,
    legend: Sequence[str] = (),
    over: int = 0,
) -> None:
    """Set title, margins, fonts, axes and legend; `height` is that of the panels alone.

    `over` is the room for further lines of the panels' titles.
    """
    lines = wrapped(subtitle)
    top = 74 + 16 * len(lines) + over
    rows = legend_rows(legend, NARROW - left)
    under = bottom + 22 * rows + (10 if rows else 0)
    axis = {
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
    }
    look = {
        "template": "none",
        "title": {
            "text": title,
            "subtitle": {"text": "<br>".join(lines), "font": {"size": 12}},
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 12, "l": 12},
            "font": {"size": 17},
        },
        "font": {"family": FONT, "size": 13, "color": TEXT_COLOUR},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "height": top + height + under,
        "margin": {"l": left, "r": 24, "t": top, "b": under},
        "showlegend": bool(legend),
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
            "bgcolor": "rgba(0,0,0,0)",
            "itemwidth": 42,
            "tracegroupgap": 2,
        },
        "hoverlabel": {"align": "left", "namelength": -1},
        "bargap": 0.25,
        "modebar": {
            "bgcolor": "rgba(0,0,0,0)",
            "color": LINE_COLOUR,
            "activecolor": TEXT_COLOUR,
        },
    }
    # Set at once: Plotly's own update of each axis takes most of the time that a figure takes.
    layout = figure.layout.to_plotly_json()
    for name in {"xaxis", "yaxis", *(one for one in layout if one[1:5] == "axis")}:
        look[name] = axis | {"title": {"font": {"size": 13}, "standoff": 6 + 2 * (name[0] == "y")}}
    for note in layout.get("annotations", ()):
        note["font"] = note.get("font", {}) | {"size": 13}
    figure.layout = merged(layout, look)


def legend_rows(names: Sequence[str], width: int) -> int:
    """Rows that a legend of these names takes: a name that does not fit begins the next."""
    rows, taken = 0, width
    for name in names:
        own = len(html.unescape(name)) * 7 + 62
        if not rows or taken + own > width:
            rows, taken = rows + 1, 0
        taken += own
    return rows


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`old` with what `new` says, within what both hold too."""
    result = {**old, **new}
    for key in old.keys() & new.keys():
        if isinstance(old[key], Mapping) and isinstance(new[key], Mapping):
            result[key] = merged(old[key], new[key])
    return result


def remark(figure: go.Figure, text: str, row: int = 1, column: int = 1) -> None:
    """Write safe text into the middle of a panel that has nothing else to show.

    Placed on the page, not in the panel: Plotly draws no axes for a panel without traces.
    """
    subplot = figure.get_subplot(row, column) if figure._has_subplots() else None
    across = subplot.xaxis.domain if subplot else (0, 1)
    down = subplot.yaxis.domain if subplot else (0, 1)
    characters = max(16, int((across[1] - across[0]) * NARROW / 9))
    figure.add_annotation(
        text="<br>".join(wrapped(text, min(44, characters))),
        x=sum(across) / 2,
        xanchor="center",
        y=sum(down) / 2,
        xref="paper",
        yref="paper",
        yanchor="middle",
        showarrow=False,
    )


def nothing(title: str, text: str) -> go.Figure:
    """A figure that says why there is nothing to draw."""
    figure = go.Figure()
    lines = wrapped(text, 90)
    dress(figure, 8, title=title, left=12, bottom=16, over=16 * (len(lines) - 1))
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
