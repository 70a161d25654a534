"""Where in the network the weights moved: layer by matrix."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.lines import say_why
from mlflow_scalpel.views.maps import (
    NUMBERED,
    Scale,
    cells_of,
    heat,
    parts_of,
    plain_axes,
    scale_of,
    short,
)
from mlflow_scalpel.views.slider import Series, slider_maps
from mlflow_scalpel.views.style import dress, nothing, styles
from mlflow_scalpel.views.tidy import last_step, matrices_in, over_experts, per_matrix, read
from mlflow_scalpel.views.wording import absent, is_signed, words
from mlflow_scalpel.views.xaxis import x_of

CELL = "layer %{y}, %{x}"


def weight_heatmaps(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    metric: str = "weights/relative_frobenius",
    step: int | None = None,
    shared_scale: bool = True,
    by: str = "fraction",
) -> go.Figure:
    """Layer by matrix, a heat map a run, with one slider over the checkpoints of all runs.

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
    clean = read(table)
    looks = styles(clean, runs)
    rows = over_experts(per_matrix(clean, metric))
    rows = rows[rows["run_id"].isin(looks) & (rows["step"] > 0)]
    title, axis_title = words(metric)
    title += ", layer by matrix"
    if not len(rows):
        return nothing(title, absent(metric))
    if step is not None:
        rows = rows[rows["step"] == step]
        if not len(rows):
            return nothing(title, f"No run has a checkpoint at step {step}.")
    rows = rows.assign(at=x_of(clean, rows, "fraction", runs).where)
    series = [
        Series(run.name, run.label, rows[rows["run_id"] == run.run_id])
        for run in looks.values()
        if run.run_id in set(rows["run_id"])
    ]
    return slider_maps(
        series,
        "matrix",
        sorted(set(rows["layer"])),
        matrices_in(rows),
        title=title,
        axis_title=axis_title,
        where=CELL,
        signed=is_signed(metric),
        shared_scale=shared_scale,
        by=by,
    )


def weight_heatmap(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    step: int | None = None,
    maximum: float | None = None,
    metric: str = "weights/relative_frobenius",
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
    clean = read(table)
    looks = styles(clean, runs)
    rows = over_experts(per_matrix(clean, metric))
    rows = rows[rows["step"] > 0] if step is None else rows[rows["step"] == step]
    found = [run_id for run_id in looks if run_id in set(rows["run_id"])]
    if len(found) > 1:
        raise ValueError(
            f"the table holds {metric} for {len(found)} runs ({', '.join(found)}): "
            "pass the rows of one run, or use weight_heatmaps for several"
        )
    name, axis_title = words(metric)
    if not found:
        return nothing(name, absent(metric, "" if step is None else f" at step {step}"))
    run = looks[found[0]]
    at_step = last_step(rows)
    own = rows[(rows["step"] == at_step) & (rows["run_id"] == run.run_id)]
    matrices, layers = matrices_in(own), sorted(set(own["layer"]))
    scale = scale_of(own["value"], signed=is_signed(metric))
    if maximum is not None:
        scale = Scale(min(0.0, scale.low), float(maximum), scale.colours)
    clipped = int((own["value"] > scale.high).sum())
    subtitle = f"{axis_title} by layer and matrix; linear scale from {short(scale.low)} to "
    subtitle += short(scale.high)
    title = f"{run.label}, step {at_step:g}"
    if clipped:
        title += f": {clipped} of {own['value'].notna().sum()} cells above the scale, clipped"
    digits = len(layers) * len(matrices) <= NUMBERED
    parts = parts_of(cells_of(own, layers, matrices, "matrix"), run.name, CELL, digits=digits)
    figure = go.Figure(heat(parts, [f"{layer:g}" for layer in layers], matrices, scale, run.name))
    figure.data[0].colorbar = {
        "title": {"text": axis_title, "side": "right"},
        "thickness": 14,
        "outlinewidth": 0,
        "exponentformat": "power",
    }
    height = min(640, max(190, 26 * len(layers)))
    dress(figure, height, title=title, subtitle=subtitle, left=60, bottom=70)
    figure.update_layout(margin_r=100)  # for the colour bar
    figure.update_yaxes(title_text="layer")
    plain_axes(figure)
    say_why(figure, own)
    return figure
