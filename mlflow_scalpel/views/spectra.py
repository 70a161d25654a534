"""The singular values of the updates: how large, of how many directions, and where."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.lines import gaps_listed
from mlflow_scalpel.views.norms import BY, draw_members, listed, members, y_axis
from mlflow_scalpel.views.style import Grid, Run, nothing, panels, styles
from mlflow_scalpel.views.tidy import last_step, over_experts, per_matrix, read
from mlflow_scalpel.views.wording import absent, words
from mlflow_scalpel.views.xaxis import lacking_words, nowhere, set_x, x_of

#: metric -> (name of its panels, whether its y axis is logarithmic unless told)
SPECTRA = {
    "spectra/update_spectral_norm": ("spectral norm", True),
    "spectra/stable_rank": ("stable rank", False),
    "spectra/effective_rank": ("effective rank", False),
    "spectra/singular_value_drift": ("drift", True),
}
TITLE = "Spectra of the updates"


def spectra_over_training(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    by: str = "matrix",
    metrics: Sequence[str] = tuple(SPECTRA),
    x: str = "step",
    log_x: bool = False,
    log_y: bool | None = None,
) -> go.Figure:
    """Means of the spectral metrics over training: a panel a metric and run, a line a matrix or
    layer.

    The panels of one metric share their y axis, logarithmic for norm and drift unless `log_y` says
    otherwise of all. Reads what `weights_over_training` reads.

    Raises ValueError for another `by` or `x`, or if columns are missing.
    """
    if by not in BY:
        raise ValueError(f"by is {by!r}: pass one of {', '.join(map(repr, BY))}")
    clean = read(table)
    looks, rows, found = chosen(clean, runs, metrics)
    if not found:
        return nothing(TITLE, absent(metrics[0]))
    if by == "matrix":
        rows = over_experts(rows)
    places = x_of(clean, rows, x, runs)
    if why := nowhere(places, looks):
        return nothing(TITLE, why)
    rows = rows.assign(x=places.where)
    mean = "mean over layers, by matrix" if by == "matrix" else "mean over matrices, by layer"
    subtitle = "; ".join(filter(None, [mean, lacking_words(places, looks)]))
    grid, shown = grid_of(rows, looks, found, by, f"{TITLE} over training", subtitle)
    legend = set[str]()
    lines = members(rows, by)
    for (metric, run), at in zip(shown, grid.at, strict=True):
        own = rows[(rows["run_id"] == run.run_id) & (rows["metric"] == metric)]
        panel = f"{named(metric)[0]}: {run.name}"
        draw_members(grid.figure, at, own, by, lines, panel, x, legend)
    set_x(grid.figure, x, log_x=log_x)
    match_y(grid, [metric for metric, _ in shown], log_y)
    return grid.figure


def spectra_by_layer(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    metrics: Sequence[str] = tuple(SPECTRA),
    step: int | None = None,
    log_y: bool | None = None,
) -> go.Figure:
    """The spectral metrics against the layer, at each run's last checkpoint (or at `step`).

    A panel a metric and run, a line a matrix. Reads what `weights_over_training` reads.

    Raises ValueError if columns are missing.
    """
    clean = read(table)
    looks, rows, found = chosen(clean, runs, metrics)
    if not found:
        return nothing(TITLE, absent(metrics[0]))
    own = [one for _, one in rows.groupby("run_id", sort=False)]
    rows = pd.concat(
        [one[one["step"] == (last_step(one) if step is None else step)] for one in own]
    )
    if not len(rows):
        return nothing(TITLE, f"No run has a checkpoint at step {step}.")
    found = [metric for metric in found if metric in set(rows["metric"])]
    rows = over_experts(rows)
    rows = rows.assign(x=rows["layer"])
    steps = ", ".join(
        f"{looks[run_id].label} at step {at:g}"
        for run_id, at in rows.groupby("run_id", sort=False)["step"].first().items()
    )
    grid, shown = grid_of(rows, looks, found, "matrix", f"{TITLE}, by layer", steps)
    legend = set[str]()
    lines = members(rows, "matrix")
    for (metric, run), at in zip(shown, grid.at, strict=True):
        mine = rows[(rows["run_id"] == run.run_id) & (rows["metric"] == metric)]
        panel = f"{named(metric)[0]}: {run.name}"
        draw_members(grid.figure, at, mine, "matrix", lines, panel, "layer", legend)
    grid.figure.update_xaxes(title_text="layer")
    match_y(grid, [metric for metric, _ in shown], log_y)
    return grid.figure


def named(metric: str) -> tuple[str, bool]:
    """What a metric's panels are called, and whether its y axis is logarithmic unless told."""
    return SPECTRA.get(metric, (words(metric)[0], False))


def chosen(
    clean: pd.DataFrame, runs: pd.DataFrame | None, metrics: Sequence[str]
) -> tuple[dict[str, Run], pd.DataFrame, list[str]]:
    """The runs, the rows of these metrics, and the metrics that have any."""
    looks = styles(clean, runs)
    rows = pd.concat([per_matrix(clean, metric) for metric in metrics])
    rows = rows[rows["run_id"].isin(looks) & (rows["step"] > 0)]
    present = set(rows["metric"])
    return looks, rows, [metric for metric in metrics if metric in present]


def grid_of(
    rows: pd.DataFrame,
    looks: dict[str, Run],
    found: Sequence[str],
    by: str,
    title: str,
    subtitle: str,
) -> tuple[Grid, list[tuple[str, Run]]]:
    """Panels, a row a metric, and which metric and run each is of."""
    present = set(rows["run_id"])
    shown = [(m, run) for m in found for run in looks.values() if run.run_id in present]
    runs = len(present)
    grid = panels(
        [f"{named(metric)[0]}: {run.label}" for metric, run in shown],
        title=title,
        subtitle=subtitle,
        columns=2 if runs in (1, 2, 4) else 3,
        row_height=210,
        gap=86,
        spacing=0.06,
        left=84,
        legend=[*listed(members(rows, by)), *gaps_listed(rows)],
    )
    return grid, shown


def match_y(grid: Grid, metrics: Sequence[str], log_y: bool | None) -> None:
    """One y axis for the panels of one metric, with its title on the first of each row."""
    for metric, (row, column) in zip(metrics, grid.at, strict=True):
        first = grid.at[metrics.index(metric)]
        axis = grid.figure.get_subplot(*first).yaxis.plotly_name.replace("axis", "")
        grid.figure.update_yaxes(
            y_axis(named(metric)[1] if log_y is None else log_y),
            matches=None if (row, column) == first else axis,
            title_text=words(metric)[1] if column == 1 or metrics.count(metric) == 1 else None,
            row=row,
            col=column,
        )
