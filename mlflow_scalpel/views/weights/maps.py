"""Where in the network the weights moved: layer by matrix."""

from __future__ import annotations

import plotly.graph_objects as go

from mlflow_scalpel.views.common.axis import place
from mlflow_scalpel.views.common.panels import empty_figure
from mlflow_scalpel.views.common.slider import Series, slider_maps
from mlflow_scalpel.views.common.table import Measurements, matrices_in, over_experts
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
