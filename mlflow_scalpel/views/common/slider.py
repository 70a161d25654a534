"""One slider over the checkpoints of all panels, one step per moment of training.

Its data stand in the figure itself, so the slider works in a notebook, in a report without network
and in a page alike. Runs of different length meet at the same fraction of their training.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.common.axis import check_choice
from mlflow_scalpel.views.common.heatmaps import (
    NUMBERED,
    Cells,
    cells_of,
    colour_bar,
    heat_map,
    parts_of,
    scale_of,
    set_cell_axes,
)
from mlflow_scalpel.views.common.panels import NARROW, Grid, panels
from mlflow_scalpel.views.common.style import GRID_COLOUR, LINE_COLOUR
from mlflow_scalpel.views.common.text import esc, reasons, wrapped

BY = ("fraction", "step")
ROOM = 84  # pixels that the slider takes
LAST = "last of each"


@dataclass(frozen=True)
class Series:
    """The rows of one panel over training."""

    name: str  # plain text
    label: str  # the same, safe and short
    rows: (
        pd.DataFrame
    )  # layer, value, reason, step, `x` (fraction of the run), and the column across


@dataclass(frozen=True)
class Moment:
    """A step of the slider: the checkpoint of each panel, None where it has none then."""

    label: str
    at: float
    steps: tuple[float | None, ...]


def moments(series: Sequence[Series], by: str = "fraction") -> list[Moment]:
    """The slider's steps: checkpoints of different panels that belong together, in their order.

    By fraction, checkpoints of several runs meet where they lie within half of the usual
    distance between two checkpoints of one run; by step, where the step is the same. No checkpoint
    is left out, and none stands in two moments, except that a last one holds the last of each
    panel where those are not one already.
    """
    points = []
    apart = []
    for i, one in enumerate(series):
        own = one.rows.drop_duplicates("step").sort_values("step")
        where = own["x" if by == "fraction" else "step"].to_numpy(dtype=float)
        points += [(at, i, step) for at, step in zip(where, own["step"], strict=True)]
        if len(where) > 1:
            apart.append(float(np.median(np.diff(where))))
    near = 0.0 if by == "step" else min(apart, default=0.0) / 2
    found: list[tuple[float, dict[int, float]]] = []
    for at, i, step in sorted(points):
        if not found or at - found[-1][0] > near or i in found[-1][1]:
            found.append((at, {}))
        found[-1][1][i] = step
    labels = [label_of(at, by) for at, _ in found]
    if len(set(labels)) < len(labels):
        labels = [label_of(at, by, digits=4) for at, _ in found]
    every = range(len(series))
    made = [
        Moment(label, at, tuple(steps.get(i) for i in every))
        for label, (at, steps) in zip(labels, found, strict=True)
    ]
    last = tuple(max((step for _, j, step in points if j == i), default=None) for i in every)
    if made and made[-1].steps != last:
        made.append(Moment(LAST, np.inf, last))
    return made


def label_of(at: float, by: str, digits: int = 2) -> str:
    """A moment of training on the slider."""
    if by != "fraction":
        return f"{at:g}"
    if at == 1:
        return "100 %"
    # What two digits would round to 100, which is another moment, has four.
    return f"{100 * at:.{digits if at < 0.99 else 4}g} %"


def missing_text(one: Series, moment: Moment, by: str) -> str:
    """Why a panel is empty at a moment, as plain text."""
    place = "x" if by == "fraction" else "step"
    nearest = one.rows.iloc[(one.rows[place] - moment.at).abs().argmin()]
    when = f"near {moment.label} of the run" if by == "fraction" else f"at step {moment.label}"
    return (
        f"no checkpoint {when}; the nearest is of step {nearest['step']:g}, "
        f"at {label_of(nearest['x'], 'fraction', 3)}"
    )


def slider_maps(
    series: Sequence[Series],
    column: str,
    across: Sequence[Any],
    *,
    title: str,
    axis_title: str,
    signed: bool,
    shared_scale: bool,
    by: str = "fraction",
    across_title: str | None = None,
) -> go.Figure:
    """A heat map per panel, layer by `column` (in the order `across`), over training.

    The figure shows the last checkpoints; its slider holds every moment. Colours span all moments,
    so that they keep their meaning while the slider moves. `title`, `axis_title` are safe text.

    Raises ValueError for another `by`.
    """
    check_choice("by", by, BY)
    all_moments = moments(series, by)
    sliding = len(all_moments) > 1
    everything = pd.concat([one.rows for one in series])
    down = sorted(set(everything["layer"]))
    where = "layer %{y}, %{x}" if across_title is None else f"layer %{{y}}, {across_title} %{{x}}"
    subtitle = (
        "one colour scale for all panels and checkpoints: compare "
        + ("the values" if signed else "how far")
        if shared_scale
        else "a colour scale for each panel, of all its checkpoints: compare where, not how far"
    )
    # Three panels abreast are too narrow for a name and a step on one line.
    between = "<br>" if len(series) > 2 and len(series) != 4 else ", "
    grid = panels(
        [f"{one.label}{between}" for one in series],
        title=title,
        subtitle=subtitle,
        row_height=min(560, max(190, 22 * len(down))),
        gap=190 + 16 * (between == "<br>"),
        spacing=0.07,
        left=60,
        bottom=150 + ROOM * sliding,
    )
    figure = grid.figure
    # three panels abreast leave a cell narrower than its number
    abreast = max(panel.column for panel in grid)
    digits = abreast <= 2 and len(down) * len(across) <= NUMBERED
    names = [f"{layer:g}" for layer in down], [name_of(item) for item in across]
    blank = np.full((len(down), len(across)), np.nan)
    whose = "shared scale" if shared_scale else "own scale"
    for one, panel in zip(series, grid, strict=True):
        values = everything["value"] if shared_scale else one.rows["value"]
        scale = scale_of(values, signed=signed)
        parts = parts_of(Cells(blank, {}), one.name, where, digits=digits)
        trace = heat_map(parts, *names, scale, one.name)
        x, y = panel.domain
        trace.colorbar = colour_bar(x, y[0], f"{axis_title}<br>{whose} {scale.span}")
        figure.add_trace(trace, row=panel.row, col=panel.column)
        panel.y(title_text="layer" if panel.first else None)
    set_cell_axes(figure)
    if across_title:
        figure.update_xaxes(title_text=across_title, tickangle=0)
    add_notes(grid)
    at_step = [dict(list(one.rows.groupby("step"))) for one in series]
    quantity = axis_title.replace("%{", "%\u200b{")  # in a template it would be filled in
    made = []
    for moment in all_moments:
        drawn, notes = [], []
        for one, own, step in zip(series, at_step, moment.steps, strict=True):
            if step is None:
                why = missing_text(one, moment, by)
                cells = Cells(blank, dict.fromkeys(np.ndindex(blank.shape), why))
                head, name = one.label, one.name
            else:
                cells = cells_of(own[step], down, across, column)
                name = f"{one.name}, step {step:g}"
                unknown = own[step]["value"].isna().all()
                why = f"no value: {reasons(own[step]['reason'])}" if unknown else ""
                head = f"{one.label}{between}step {step:g}"
            drawn.append(parts_of(cells, name, f"{where}<br>{quantity}", digits=digits))
            notes.append((head, why))
        made.append((moment, drawn, annotations_of(grid, notes)))
    # The figure itself shows the last moment.
    _, drawn, last = made[-1]
    for trace, own in zip(figure.data, drawn, strict=True):
        trace.update(own)
    figure.layout.annotations = last
    if sliding:
        add_slider(figure, made, by)
    return figure


def name_of(item: Any) -> str:
    """A column's name: numbers without a point."""
    return f"{item:g}" if isinstance(item, (int, float)) else str(item)


def add_notes(grid: Grid) -> None:
    """An empty note in the middle of each panel, which a moment may fill."""
    for panel in grid:
        x, y = panel.domain
        grid.figure.add_annotation(
            text=" ",
            x=sum(x) / 2,
            y=sum(y) / 2,
            xref="paper",
            yref="paper",
            xanchor="center",
            yanchor="middle",
            showarrow=False,
            font={"size": 13},
        )


def annotations_of(grid: Grid, notes: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """All annotations of a moment: each panel's title, then the note in its middle."""
    made = [note.to_plotly_json() for note in grid.figure.layout.annotations]
    for i, ((head, note), panel) in enumerate(zip(notes, grid, strict=True)):
        x, _ = panel.domain
        width = min(44, max(16, int((x[1] - x[0]) * NARROW / 9)))
        made[i]["text"] = head
        made[len(notes) + i]["text"] = "<br>".join(map(esc, wrapped(note[:160], width))) or " "
    return made


def packed(z: np.ndarray) -> dict[str, str]:
    """An array as Plotly's typed array, which it does not make of a slider's arguments by itself.

    float32: seven digits are more than a colour or a hover box shows, and digits as text would make
    a report of ten metrics and twenty checkpoints megabytes larger.
    """
    data = base64.b64encode(z.astype("<f4").tobytes()).decode("ascii")
    return {"dtype": "f4", "bdata": data, "shape": ", ".join(map(str, z.shape))}


def add_slider(
    figure: go.Figure,
    made: Sequence[tuple[Moment, list[dict[str, Any]], list[dict[str, Any]]]],
    by: str,
) -> None:
    """The slider that goes through the moments; it stands at the last.

    Its steps update the figure rather than play Plotly's frames: a figure with frames plays them
    all when a notebook or a page opens it.
    """
    steps = []
    for moment, parts, notes in made:
        change: dict[str, list[Any]] = {"z": [packed(own["z"]) for own in parts]}
        for key in ("hovertemplate", "customdata", "text"):
            if any(key in own for _, every, _ in made for own in every):
                change[key] = [own.get(key) for own in parts]
        label = {"label": moment.label, "method": "update"}
        steps.append({**label, "args": [change, {"annotations": notes}]})
    prefix = "fraction of the run: " if by == "fraction" else "step: "
    figure.update_layout(
        sliders=[
            {
                "active": len(steps) - 1,
                "steps": steps,
                "x": 0,
                "len": 1,
                "xanchor": "left",
                "y": 0,
                "yanchor": "top",
                "pad": {"t": 144, "b": 6, "l": 0, "r": 0},
                "currentvalue": {"prefix": prefix, "xanchor": "left", "font": {"size": 13}},
                "font": {"size": 11},
                "bgcolor": GRID_COLOUR,
                "activebgcolor": LINE_COLOUR,
                "bordercolor": LINE_COLOUR,
                "tickcolor": LINE_COLOUR,
                "transition": {"duration": 0},
            }
        ]
    )


def without_slider(figure: go.Figure) -> list[dict[str, Any]]:
    """Take the slider and its room out of a figure, which then shows the last checkpoints.

    Returns its steps: label, and the changes of traces and layout; none without a slider.
    """
    if not figure.layout.sliders:
        return []
    steps = [{"label": step.label, "args": step.args} for step in figure.layout.sliders[0].steps]
    for trace, z in zip(figure.data, steps[-1]["args"][0]["z"], strict=True):
        trace.z = z  # digit for digit as the slider's last step has it
    figure.layout.sliders = []
    figure.layout.height -= ROOM
    figure.layout.margin.b -= ROOM
    return steps
