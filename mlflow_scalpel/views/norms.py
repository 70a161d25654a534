"""How far the weights moved, over training: a panel a run, a line a matrix or a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from mlflow_scalpel.views.lines import draw, gaps_listed, line_of, mean_line, say_why
from mlflow_scalpel.views.style import MATRIX_COLOURS, esc, in_rows, nothing, panels, styles
from mlflow_scalpel.views.tidy import matrices_in, over_experts, per_matrix, read
from mlflow_scalpel.views.wording import absent, is_signed, words
from mlflow_scalpel.views.xaxis import lacking_words, nowhere, set_x, x_of

BY = ("matrix", "layer")
#: Up to so many layers each stands in the legend; of more, some in even distances.
LISTED = 8


def weights_over_training(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    metric: str = "weights/relative_frobenius",
    by: str = "matrix",
    x: str = "step",
    log_x: bool = False,
    log_y: bool = True,
) -> go.Figure:
    """Mean of a weight metric over training: a line a matrix (over layers) or a layer (over
    matrices), a panel a run.

    All panels share the y axis: logarithmic unless `log_y` is False or a value is negative; a value
    of 0 has no place on it. `x` is one of `xaxis.CHOICES`. Reads `run_id, algorithm, step, layer,
    matrix, value, status, reason` of the rows of `metric`, any with a value per layer and matrix. A
    mean over fewer cells than the run has says so on hover; a checkpoint without any draws a gap.

    Raises ValueError for another `by` or `x`, or if columns are missing.
    """
    if by not in BY:
        raise ValueError(f"by is {by!r}: pass one of {', '.join(map(repr, BY))}")
    clean = read(table)
    looks = styles(clean, runs)
    rows = per_matrix(clean, metric)
    if by == "matrix":
        rows = over_experts(rows)
    rows = rows[rows["run_id"].isin(looks) & (rows["step"] > 0)]
    title, axis_title = words(metric)
    if not len(rows):
        return nothing(title, absent(metric))
    places = x_of(clean, rows, x, runs)
    if why := nowhere(places, looks):
        return nothing(title, why)
    rows = rows.assign(x=places.where)
    log_y = log_y and not is_signed(metric) and not (rows["value"] < 0).any()
    shown = in_rows(looks, rows)
    lines = members(rows, by)
    said = ["mean over layers, by matrix" if by == "matrix" else "mean over matrices, by layer"]
    said.append("logarithmic axis" if log_y else "linear axis")
    grid = panels(
        [run.label for run in shown],
        title=title,
        subtitle="; ".join(
            filter(
                None, [f"{', '.join(said)}, the same for every run", lacking_words(places, looks)]
            )
        ),
        row_height=300,
        spacing=0.03,
        left=84,
        legend=[*listed(lines), *gaps_listed(rows)],
    )
    legend = set[str]()
    for run, at in zip(shown, grid.at, strict=True):
        own = rows[rows["run_id"] == run.run_id]
        draw_members(grid.figure, at, own, by, lines, run.name, x, legend)
    set_x(grid.figure, x, log_x=log_x)
    share_y(grid.figure, grid.at, axis_title, log_y)
    return grid.figure


def norms_over_training(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    metric: str = "weights/relative_frobenius",
    x: str = "step",
    log_x: bool = False,
    log_y: bool = True,
) -> go.Figure:
    """`weights_over_training` by matrix: mean over layers, a panel a run."""
    return weights_over_training(table, runs, metric=metric, x=x, log_x=log_x, log_y=log_y)


def weight_trajectory(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    layer: int,
    matrix: str,
    metric: str = "weights/relative_frobenius",
    x: str = "step",
    log_x: bool = False,
    log_y: bool = True,
) -> go.Figure:
    """One cell of the heat maps over training: a weight metric of one matrix, a line a run.

    Reads what `weights_over_training` reads, and has its axes.

    Raises ValueError for another `x`, or if columns are missing.
    """
    clean = read(table)
    looks = styles(clean, runs)
    rows = per_matrix(clean, metric)
    rows = rows[(rows["layer"] == layer) & (rows["matrix"] == matrix) & (rows["step"] > 0)]
    rows = rows[rows["run_id"].isin(looks)].sort_values("step")
    name, axis_title = words(metric)
    cell = f"layer {layer}, {esc(matrix, 24)}"
    if not len(rows):
        return nothing(f"{name}: {cell}", absent(metric, f" for layer {layer}, {matrix}"))
    places = x_of(clean, rows, x, runs)
    if why := nowhere(places, looks):
        return nothing(f"{name}: {cell}", why)
    rows = rows.assign(x=places.where)
    log_y = log_y and not is_signed(metric) and not (rows["value"] < 0).any()
    shown = in_rows(looks, rows)
    grid = panels(
        [""],
        title=f"{name}: {cell}",
        subtitle="; ".join(
            filter(
                None,
                ["logarithmic axis" if log_y else "linear axis", lacking_words(places, looks)],
            )
        ),
        row_height=300,
        left=84,
        legend=[*(run.label for run in shown), *gaps_listed(rows)],
    )
    legend = set[str]()
    for run in shown:
        own = rows[rows["run_id"] == run.run_id]
        heads = [(run.name, f"layer {layer}, {matrix}, step {step:g}") for step in own["step"]]
        draw(
            grid.figure,
            (1, 1),
            line_of(own, own["x"], heads),
            name=run.label,
            colour=run.colour,
            dash=run.dash,
            symbol=run.symbol,
            panel=f"layer {layer}, {matrix}",
            series=run.name,
            legend=legend,
        )
    say_why(grid.figure, rows)
    set_x(grid.figure, x, log_x=log_x)
    share_y(grid.figure, grid.at, axis_title, log_y)
    return grid.figure


def members(rows: pd.DataFrame, by: str) -> dict[Any, dict[str, Any]]:
    """The lines of a panel: the matrices or layers of these rows, each with its look."""
    if by == "matrix":
        return {
            matrix: {
                "name": esc(matrix, 16),
                "series": matrix,
                "colour": MATRIX_COLOURS[i % len(MATRIX_COLOURS)],
                # attention solid, MLP dashed: the two families read apart without colour
                "dash": "dash" if matrix in ("gate_proj", "up_proj", "down_proj") else "solid",
                "symbol": ("circle", "square", "diamond", "triangle-up")[i % 4],
            }
            for i, matrix in enumerate(matrices_in(rows))
        }
    layers = sorted(set(rows["layer"]))
    # the scale's last yellow does not show on white, its first violet not on black
    shares = [0.28 + 0.6 * i / max(1, len(layers) - 1) for i in range(len(layers))]
    shades = sample_colorscale("Viridis", shares, colortype="tuple")
    return {
        layer: {
            "name": f"layer {layer:g}",
            "series": f"layer {layer:g}",
            "colour": "#" + "".join(f"{round(255 * part):02X}" for part in shade),
            "dash": "solid",
            "symbol": ("circle", "square", "diamond", "triangle-up")[i % 4],
            "size": 6 if len(layers) <= LISTED else 4,
        }
        for i, (layer, shade) in enumerate(zip(layers, shades, strict=True))
    }


def listed(lines: dict[Any, dict[str, Any]]) -> list[str]:
    """The names that stand in the legend: all, or of many layers some in even distances."""
    names = [look["name"] for look in lines.values()]
    if len(names) <= LISTED:
        return names
    return [names[round(i * (len(names) - 1) / (LISTED - 1))] for i in range(LISTED)]


def draw_members(
    figure: go.Figure,
    at: tuple[int, int],
    own: pd.DataFrame,
    by: str,
    lines: dict[Any, dict[str, Any]],
    panel: str,
    x: str,
    legend: set[str],
    *,
    name: str = "",
) -> None:
    """Draw one run's means, a line for each of `lines`, against its column `x`.

    `panel` is plain text, and `name` what a place on the x axis is called on hover.
    """
    some = set(listed(lines))
    hidden = {look["name"] for look in lines.values()} - some
    held = dict(list(own[own["x"].notna()].groupby(by)))
    for key, look in lines.items():
        cells = held.get(key, own.iloc[:0])
        head = (f"{panel}: {look['series']}",)
        over = "layers" if by == "matrix" else "matrices"
        line = mean_line(cells, "x", head, over=over, name=name or x)
        if line.x:
            legend |= hidden  # drawn, and not listed
            draw(figure, at, line, panel=panel, legend=legend, **look)
    say_why(figure, own, at)


def y_axis(log_y: bool) -> dict[str, object]:
    """A y axis; where it is logarithmic, with no more digits between the powers than have room."""
    axis: dict[str, object] = {"type": "log" if log_y else "linear", "exponentformat": "power"}
    return axis | ({"nticks": 6} if log_y else {})


def share_y(figure: go.Figure, at: Sequence[tuple[int, int]], axis_title: str, log_y: bool) -> None:
    """One y axis for all panels, written on the first of each row."""
    figure.update_yaxes(y_axis(log_y), matches="y")
    figure.layout.yaxis.matches = None  # Plotly warns of an axis that matches itself
    for row, column in at:
        first = column == 1
        figure.update_yaxes(
            showticklabels=first, title_text=axis_title if first else None, row=row, col=column
        )
