"""Where in the network the weights moved: layer by matrix."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from mlflow_scalpel.views.common.axis import place
from mlflow_scalpel.views.common.heatmaps import (
    NUMBERED,
    Scale,
    cells_of,
    heat_map,
    parts_of,
    scale_of,
    set_cell_axes,
)
from mlflow_scalpel.views.common.panels import empty_figure, panels
from mlflow_scalpel.views.common.slider import Series, slider_maps
from mlflow_scalpel.views.common.table import Measurements, at_step, matrices_in, over_experts
from mlflow_scalpel.views.common.text import short
from mlflow_scalpel.views.common.view import COMPARE, Placement, view
from mlflow_scalpel.views.common.wording import is_signed, no_checkpoint, not_measured, titles_of
from mlflow_scalpel.views.weights.norms import NORM


@view(
    Placement("where", 1, "maps of the updates", NORM, COMPARE, settings={"shared_scale": True}),
    Placement(
        "where",
        2,
        "maps, own scales",
        NORM,
        COMPARE,
        stem="weight_heatmaps_own_scale",
        settings={"shared_scale": False},
    ),
)
def weight_heatmaps(
    data: Measurements,
    *,
    metric: str = NORM,
    step: int | None = None,
    shared_scale: bool = True,
    by: str = "fraction",
) -> go.Figure:
    """Layer by matrix, a heat map per run, with one slider over the checkpoints of all runs.

    Opens at each run's last checkpoint. The slider moves by the fraction of the run, at which runs
    of different length meet, or `by="step"`; a run without a checkpoint then has an empty panel
    with the reason. `step` shows the checkpoints of that step alone, without a slider.

    With `shared_scale` all panels share one scale; without it each has its own, to show where a
    run moved rather than how far. Either spans all checkpoints and is written on the colour bar.
    `metric` is any with a value per layer and matrix (`weights/...`, `spectra/...`). Reads
    `run_id, algorithm, step, layer, matrix, value, status, reason` of its rows; a cell without a
    value stays empty, with the reason on hover.

    Raises ValueError for another `by`, or if columns are missing.
    """
    rows = over_experts(data.matrices(metric))
    title, axis_title = titles_of(metric)
    title += ", layer by matrix"
    if not len(rows):
        return empty_figure(title, not_measured(metric))
    rows = rows if step is None else rows[rows["step"] == step]
    if not len(rows):
        return empty_figure(title, no_checkpoint(step))
    rows = place(data, rows, "fraction").rows
    return slider_maps(
        [
            Series(run.name, run.label, rows[rows["run_id"] == run.run_id])
            for run in data.runs_in(rows)
        ],
        "matrix",
        matrices_in(rows),
        title=title,
        axis_title=axis_title,
        signed=is_signed(metric),
        shared_scale=shared_scale,
        by=by,
    )


@view()
def weight_heatmap(
    data: Measurements,
    *,
    step: int | None = None,
    maximum: float | None = None,
    metric: str = NORM,
) -> go.Figure:
    """One run at one checkpoint on the fixed linear scale [0, maximum], for a film of training.

    The same `maximum` at every checkpoint makes the pictures comparable; values above it are
    clipped, and the title says how many. Without `maximum` the scale ends at the largest value.
    `step` defaults to the last. Up to 100 cells, each carries its number. Reads what
    `weight_heatmaps` reads.

    Raises ValueError if the table holds this metric for more than one run, if `maximum` is not a
    positive number, or if columns are missing.
    """
    if maximum is not None and not (np.isfinite(maximum) and maximum > 0):
        raise ValueError(
            f"maximum is {maximum}: pass a positive number, the upper end of the scale"
        )
    rows = over_experts(data.matrices(metric))
    rows = rows if step is None else rows[rows["step"] == step]
    found = data.runs_in(rows)
    if len(found) > 1:
        raise ValueError(
            f"the table holds {metric} for {len(found)} runs "
            f"({', '.join(run.run_id for run in found)}): "
            "pass the rows of one run, or use weight_heatmaps for several"
        )
    name, axis_title = titles_of(metric)
    if not found:
        return empty_figure(name, not_measured(metric, "" if step is None else f" at step {step}"))
    (run,) = found
    rows = at_step(rows)
    matrices, layers = matrices_in(rows), sorted(set(rows["layer"]))
    scale = scale_of(rows["value"], signed=is_signed(metric))
    if maximum is not None:
        scale = Scale(min(0.0, scale.low), float(maximum), scale.colours)
    clipped = int((rows["value"] > scale.high).sum())
    title = f"{run.label}, step {rows['step'].iloc[0]:g}"
    if clipped:
        title += f": {clipped} of {rows['value'].notna().sum()} cells above the scale, clipped"
    grid = panels(
        [""],
        title=title,
        subtitle=f"{axis_title} by layer and matrix; linear scale from {short(scale.low)} to "
        f"{short(scale.high)}",
        row_height=min(640, max(190, 26 * len(layers))),
        left=60,
        bottom=70,
    )
    figure = grid.figure
    digits = len(layers) * len(matrices) <= NUMBERED
    cells = cells_of(rows, layers, matrices, "matrix")
    parts = parts_of(cells, run.name, "layer %{y}, %{x}", digits=digits)
    trace = heat_map(parts, [f"{layer:g}" for layer in layers], matrices, scale, run.name)
    trace.colorbar = {
        "title": {"text": axis_title, "side": "right"},
        "thickness": 14,
        "outlinewidth": 0,
        "exponentformat": "power",
    }
    figure.add_trace(trace, row=1, col=1)
    figure.update_layout(margin_r=100)  # for the colour bar
    figure.update_yaxes(title_text="layer")
    set_cell_axes(figure)
    grid[0].note_reasons(rows)
    return figure
