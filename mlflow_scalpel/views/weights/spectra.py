"""The singular values of the updates: how large, of how many directions, and where."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.common.axis import check_choice, place, set_x, y_axis
from mlflow_scalpel.views.common.panels import empty_figure, panels
from mlflow_scalpel.views.common.table import Measurements, at_step, over_experts
from mlflow_scalpel.views.common.text import joined
from mlflow_scalpel.views.common.traces import gaps_listed
from mlflow_scalpel.views.common.view import Placement, X, compare, view
from mlflow_scalpel.views.common.wording import no_checkpoint, not_measured, titles_of
from mlflow_scalpel.views.weights.norms import OVER, draw_members, listed, members

#: metric -> (name of its panels, whether its y axis is logarithmic by default)
SPECTRA = {
    "spectra/update_spectral_norm": ("spectral norm", True),
    "spectra/stable_rank": ("stable rank", False),
    "spectra/effective_rank": ("effective rank", False),
    "spectra/singular_value_drift": ("drift", True),
}
TITLE = "Spectra of the updates"
DETAILS = compare("histograms spectra")


@view(Placement("update", 4, "spectra of the updates", "spectra/", DETAILS, settings=X))
def spectra_over_training(
    data: Measurements,
    *,
    by: str = "matrix",
    metrics: Sequence[str] = tuple(SPECTRA),
    x: str = "step",
    log_x: bool = False,
    log_y: bool | None = None,
) -> go.Figure:
    """Means of the spectral metrics over training: a panel per metric and run, a line per matrix or
    layer.

    The panels of one metric share their y axis, logarithmic for norm and drift unless `log_y` says
    otherwise of all. Reads what `weights_over_training` reads.

    Raises ValueError for another `by` or `x`, or if columns are missing.
    """
    check_choice("by", by, OVER)
    rows = pd.concat([data.matrices(metric) for metric in metrics])
    if not len(rows):
        return empty_figure(TITLE, not_measured(metrics[0]))
    placed = place(data, over_experts(rows) if by == "matrix" else rows, x)
    if placed.empty:
        return empty_figure(TITLE, placed.empty)
    subtitle = joined(f"mean over {OVER[by]}, by {by}", placed.note)
    figure = draw_spectra(
        data, placed.rows, metrics, f"{TITLE} over training", subtitle, by, x, log_y
    )
    set_x(figure, x, log_x=log_x)
    return figure


@view(Placement("update", 5, "spectra of the updates by layer", "spectra/", DETAILS))
def spectra_by_layer(
    data: Measurements,
    *,
    metrics: Sequence[str] = tuple(SPECTRA),
    step: int | None = None,
    log_y: bool | None = None,
) -> go.Figure:
    """The spectral metrics against the layer, at each run's last checkpoint (or at `step`).

    A panel per metric and run, a line per matrix. Reads what `weights_over_training` reads.

    Raises ValueError if columns are missing.
    """
    rows = pd.concat([data.matrices(metric) for metric in metrics])
    if not len(rows):
        return empty_figure(TITLE, not_measured(metrics[0]))
    rows = at_step(rows, step)
    if not len(rows):
        return empty_figure(TITLE, no_checkpoint(step))
    rows = over_experts(rows)
    rows = rows.assign(x=rows["layer"])
    figure = draw_spectra(
        data, rows, metrics, f"{TITLE}, by layer", data.steps_text(rows), "matrix", "layer", log_y
    )
    figure.update_xaxes(title_text="layer")
    return figure


def draw_spectra(
    data: Measurements,
    rows: pd.DataFrame,
    metrics: Sequence[str],
    title: str,
    subtitle: str,
    by: str,
    x: str,
    log_y: bool | None,
) -> go.Figure:
    """Panels of means against the column `x`, a row per metric; one y axis per metric."""
    present, runs = set(rows["metric"]), data.runs_in(rows)
    shown = [(metric, run) for metric in metrics if metric in present for run in runs]
    names = {metric: SPECTRA.get(metric, (titles_of(metric)[0], False)) for metric in metrics}
    lines = members(rows, by)
    grid = panels(
        [f"{names[metric][0]}: {run.label}" for metric, run in shown],
        title=title,
        names=[f"{names[metric][0]}: {run.name}" for metric, run in shown],
        subtitle=subtitle,
        columns=2 if len(runs) in (1, 2, 4) else 3,
        row_height=210,
        gap=86,
        spacing=0.06,
        left=84,
        legend=[*listed(lines), *gaps_listed(rows)],
    )
    axes: dict[str, str] = {}  # metric -> the y axis of its first panel
    for (metric, run), panel in zip(shown, grid, strict=True):
        own = rows[(rows["run_id"] == run.run_id) & (rows["metric"] == metric)]
        draw_members(panel, own, by, lines, x)
        panel.y(
            **y_axis(names[metric][1] if log_y is None else log_y),
            matches=axes.get(metric),
            title_text=titles_of(metric)[1] if panel.first or len(runs) == 1 else None,
        )
        axes.setdefault(metric, panel.y_name)
    return grid.figure
