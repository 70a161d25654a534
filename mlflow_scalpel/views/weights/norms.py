"""How far the weights moved, over training: lines of matrices, layers or one cell, and parts."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from mlflow_scalpel.tensors.places import PARTS
from mlflow_scalpel.views.common.axis import check_choice, place, scale_text, set_x, share_y
from mlflow_scalpel.views.common.panels import Panel, empty_figure, panels
from mlflow_scalpel.views.common.style import MATRIX_COLOURS, SYMBOLS
from mlflow_scalpel.views.common.table import (
    Measurements,
    at_step,
    matrices_in,
    ordered,
    over_experts,
)
from mlflow_scalpel.views.common.text import esc, hover, joined, reasons
from mlflow_scalpel.views.common.traces import draw, gaps_listed, legend_of, line_of, mean_line
from mlflow_scalpel.views.common.view import COMPARE, Placement, X, view
from mlflow_scalpel.views.common.wording import (
    is_signed,
    no_checkpoint,
    not_measured,
    titles_of,
)

NORM = "weights/relative_frobenius"
PER_RATE = "weights/relative_frobenius_per_lr"
NOT_TRAINED = "not trained"  # status of what an adapter does not touch

#: by -> what its lines are means over
OVER = {"matrix": "layers", "layer": "matrices"}
#: Up to so many layers each stands in the legend; of more, some in even distances.
LISTED = 8
PARTS_TITLE = "How far each part of the model moved"


@view(
    Placement(
        "update",
        1,
        "norms by layer",
        NORM,
        COMPARE,
        stem="weights_by_layer",
        settings={"by": "layer"} | X,
    )
)
def weights_over_training(
    data: Measurements,
    *,
    metric: str = NORM,
    by: str = "matrix",
    x: str = "step",
    log_x: bool = False,
    log_y: bool = True,
) -> go.Figure:
    """Mean of a weight metric over training: a line per matrix (over layers) or per layer (over
    matrices), a panel per run.

    All panels share the y axis: logarithmic unless `log_y` is False or a value is negative; a value
    of 0 has no place on it. `x` is one of `axis.CHOICES`. Reads `run_id, algorithm, step, layer,
    matrix, value, status, reason` of the rows of `metric`, any with a value per layer and matrix. A
    mean over fewer cells than the run has says so on hover; a checkpoint without any draws a gap.

    Raises ValueError for another `by` or `x`, or if columns are missing.
    """
    check_choice("by", by, OVER)
    rows = data.matrices(metric)
    title, axis_title = titles_of(metric)
    if not len(rows):
        return empty_figure(title, not_measured(metric))
    placed = place(data, over_experts(rows) if by == "matrix" else rows, x)
    if placed.empty:
        return empty_figure(title, placed.empty)
    rows, log_y = placed.rows, can_be_log(log_y, metric, rows)
    lines = members(rows, by)
    shown = data.runs_in(rows)
    kind = f"mean over {OVER[by]}, by {by}, {scale_text(log_y)}, the same for every run"
    grid = panels(
        [run.label for run in shown],
        title=title,
        names=[run.name for run in shown],
        subtitle=joined(kind, placed.note),
        row_height=300,
        spacing=0.03,
        left=84,
        legend=[*listed(lines), *gaps_listed(rows)],
    )
    for run, panel in zip(shown, grid, strict=True):
        draw_members(panel, rows[rows["run_id"] == run.run_id], by, lines, x)
    set_x(grid.figure, x, log_x=log_x)
    share_y(grid, axis_title, log_y)
    return grid.figure


@view(
    Placement("weights", 1, "norms of the updates", NORM, COMPARE, settings={"metric": NORM} | X),
    Placement(
        "weights",
        2,
        "norms for each unit of learning rate",
        PER_RATE,
        COMPARE + ", of checkpoints whose learning rates were logged",
        stem="norms_per_learning_rate",
        settings={"metric": PER_RATE} | X,
    ),
)
def norms_over_training(
    data: Measurements,
    *,
    metric: str = NORM,
    x: str = "step",
    log_x: bool = False,
    log_y: bool = True,
) -> go.Figure:
    """`weights_over_training` by matrix: mean over layers, a panel per run."""
    return weights_over_training(data, metric=metric, x=x, log_x=log_x, log_y=log_y)


@view(
    Placement("cell", 1, "one matrix over training", "weights/", COMPARE, stem="cell", settings=X)
)
def weight_trajectory(
    data: Measurements,
    *,
    layer: int | None = None,
    matrix: str | None = None,
    metric: str = NORM,
    x: str = "step",
    log_x: bool = False,
    log_y: bool = True,
) -> go.Figure:
    """One cell of the heat maps over training: a weight metric of one matrix, a line per run.

    Reads what `weights_over_training` reads, and has its axes. Until a layer and a matrix are
    chosen it says that none are.

    Raises ValueError for another `x`, or if columns are missing.
    """
    if layer is None or matrix is None:
        return empty_figure("One matrix over training", "No layer and matrix are chosen.")
    rows = data.matrices(metric)
    rows = rows[(rows["layer"] == layer) & (rows["matrix"] == matrix)].sort_values("step")
    name, axis_title = titles_of(metric)
    title = f"{name}: layer {layer}, {esc(matrix, 24)}"
    if not len(rows):
        return empty_figure(title, not_measured(metric, f" for layer {layer}, {matrix}"))
    placed = place(data, rows, x)
    if placed.empty:
        return empty_figure(title, placed.empty)
    rows, log_y = placed.rows, can_be_log(log_y, metric, rows)
    shown = data.runs_in(rows)
    cell = f"layer {layer}, {matrix}"
    grid = panels(
        [""],
        title=title,
        names=[cell],
        subtitle=joined(scale_text(log_y), placed.note),
        row_height=300,
        left=84,
        legend=legend_of(shown, rows),
    )
    for run in shown:
        own = rows[rows["run_id"] == run.run_id]
        heads = [(run.name, f"{cell}, step {step:g}") for step in own["step"]]
        draw(grid[0], line_of(own, own["x"], heads), **run.line)
    grid[0].note_reasons(rows)
    set_x(grid.figure, x, log_x=log_x)
    share_y(grid, axis_title, log_y)
    return grid.figure


@view(Placement("weights", 3, "norms by part of the model", NORM, COMPARE))
def norms_by_part(
    data: Measurements, *, metric: str = NORM, step: int | None = None, log_x: bool = True
) -> go.Figure:
    """Mean of a weight metric over the tensors of each part, at each run's last checkpoint.

    A row per part (attention, MLP, experts, embeddings, norms ...) with its share of the model's
    parameters, a mark per run. What has no value (not measured, not trained by an adapter, 0 on a
    logarithmic axis) has no mark; where a part has none at all its label says why. Reads `run_id,
    algorithm, step, matrix, part, n, value, status, reason` of the rows of `metric`.

    Raises ValueError if columns are missing.
    """
    rows = data.checkpoints(metric)
    rows = rows[(rows["part"] != "") & (rows["bin"] == "") & rows["head"].isna()]
    if not len(rows):
        return empty_figure(PARTS_TITLE, not_measured(metric))
    rows = at_step(rows, step)
    if not len(rows):
        return empty_figure(PARTS_TITLE, no_checkpoint(step))
    shown = data.runs_in(rows)
    labels = {part: part_label(part, rows) for part in ordered(rows["part"], PARTS)}
    name, axis_title = titles_of(metric)
    grid = panels(
        [""],
        title=PARTS_TITLE,
        names=[PARTS_TITLE],
        subtitle=f"{name}: mean over the tensors of a part, at the last checkpoint; "
        "in brackets the part's share of the parameters",
        row_height=26 * len(labels) + 30,
        left=20 + 7 * max(map(len, labels.values())),
        legend=[run.label for run in shown],
    )
    for run in shown:
        own = rows[rows["run_id"] == run.run_id]
        found = [part_mean(run.name, part, own[own["part"] == part]) for part in labels]
        marks = go.Scatter(
            x=[None if math.isnan(mean) or (log_x and mean <= 0) else mean for mean, _ in found],
            y=list(labels.values()),
            mode="markers",
            marker={"color": run.colour, "symbol": run.symbol, "size": 9},
        )
        grid[0].add(marks, [text for _, text in found], series=run.name, name=run.label)
    grid[0].x(type="log" if log_x else "linear", exponentformat="power", title_text=axis_title)
    order = [*reversed(labels.values())]
    grid[0].y(type="category", categoryarray=order, ticks="")
    return grid.figure


def part_label(part: str, rows: pd.DataFrame) -> str:
    """A part's name, its share of the first run's parameters, and why it has no mark at all."""
    first = rows[rows["run_id"] == rows["run_id"].iloc[0]]
    label = part
    if first["n"].notna().all():
        share = first.loc[first["part"] == part, "n"].sum() / first["n"].sum()
        label += f" ({100 * share:.2g} %)"
    own = rows[rows["part"] == part]
    known = own.loc[own["value"].notna(), "value"]
    if (own["status"] == NOT_TRAINED).all():
        return f"{label}, not trained"
    if not len(known):
        return f"{label}, no value"
    return label if known.any() else f"{label}, unchanged"


def part_mean(name: str, part: str, rows: pd.DataFrame) -> tuple[float, str]:
    """The mean over a part's tensors in one run (NaN without any), and its hover box."""
    known = rows.loc[rows["value"].notna(), "value"]
    mean = float(known.mean()) if len(known) else math.nan
    text = [f"{mean:.6g}"] if len(known) else []
    untrained = int((rows["status"] == NOT_TRAINED).sum())
    missing = rows[rows["value"].isna() & (rows["status"] != NOT_TRAINED)]
    if len(rows):
        text.append(f"mean over {len(known)} of {len(rows)} tensors")
    if untrained:
        text.append(f"{untrained} not trained")
    if len(missing):
        text.append(f"{len(missing)} without a value: {reasons(missing['reason'])}")
    return mean, hover(name, part, *text)


def can_be_log(log_y: bool, metric: str, rows: pd.DataFrame) -> bool:
    """Whether an axis that is to be logarithmic can be: nothing on it is negative."""
    return log_y and not is_signed(metric) and not (rows["value"] < 0).any()


def members(rows: pd.DataFrame, by: str) -> dict[Any, dict[str, Any]]:
    """The lines of a panel: the matrices or layers of these rows, each as `draw` takes it."""
    if by == "matrix":
        return {
            matrix: {
                "name": esc(matrix, 16),
                "series": matrix,
                "colour": MATRIX_COLOURS[i % len(MATRIX_COLOURS)],
                # attention solid, MLP dashed: the two families read apart without colour
                "dash": "dash" if matrix in ("gate_proj", "up_proj", "down_proj") else "solid",
                "symbol": SYMBOLS[i % 4],
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
            "symbol": SYMBOLS[i % 4],
            "size": 6 if len(layers) <= LISTED else 4,
        }
        for i, (layer, shade) in enumerate(zip(layers, shades, strict=True))
    }


def listed(lines: dict[Any, dict[str, Any]]) -> list[str]:
    """The names that stand in the legend: all, or of many layers some in even distances."""
    names = [line["name"] for line in lines.values()]
    if len(names) <= LISTED:
        return names
    return [names[round(i * (len(names) - 1) / (LISTED - 1))] for i in range(LISTED)]


def draw_members(
    panel: Panel, own: pd.DataFrame, by: str, lines: dict[Any, dict[str, Any]], x: str
) -> None:
    """Draw one run's means against its column `x`, a line for each of `lines`."""
    hidden = {line["name"] for line in lines.values()} - set(listed(lines))
    cells = dict(list(own[own["x"].notna()].groupby(by)))
    for key, line in lines.items():
        if key in cells:
            panel.listed.update(hidden)  # drawn, and not in the legend
            head = f"{panel.name}: {line['series']}"
            draw(panel, mean_line(cells[key], "x", head, over=OVER[by], name=x), **line)
    panel.note_reasons(own)
