"""By how much single elements moved, and which."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.common.axis import scale_text, share_y
from mlflow_scalpel.views.common.panels import empty_figure, panels
from mlflow_scalpel.views.common.table import Measurements, at_step, kind_of, of_layers
from mlflow_scalpel.views.common.text import esc
from mlflow_scalpel.views.common.traces import draw, gaps_listed, mean_line
from mlflow_scalpel.views.common.view import Placement, compare, view
from mlflow_scalpel.views.common.wording import no_checkpoint, not_measured, titles_of
from mlflow_scalpel.views.weights.norms import listed, members

ULPS = "histograms/ulp_change"
MAGNITUDES = "histograms/change_by_magnitude"
DETAILS = compare("histograms spectra")


@view(Placement("update", 2, "histograms of the change", ULPS, DETAILS))
def change_histogram(
    data: Measurements,
    *,
    step: int | None = None,
    layer: int | None = None,
    matrix: str | None = None,
    log_y: bool = False,
) -> go.Figure:
    """By how many units in the last place elements moved: fraction of elements in each bin.

    A panel per run at its last checkpoint (or at `step`), a line per matrix, mean over layers and
    experts; `layer` and `matrix` choose one. A bin that a matrix does not have is a fraction of 0.
    Bins double and go by their lower edge: 0 is unchanged, 1, 2 (and 3), 4 (to 7), 8, ... Reads
    `run_id, step, layer, matrix, bin, value, n, status, reason` of `histograms/ulp_change`.

    Raises ValueError if columns are missing.
    """
    figure = histogram(data, ULPS, step, layer, matrix, log_y)
    figure.update_xaxes(title_text="units in the last place")
    return figure


@view(Placement("update", 3, "change by magnitude", MAGNITUDES, DETAILS))
def change_by_magnitude(
    data: Measurements,
    *,
    step: int | None = None,
    layer: int | None = None,
    matrix: str | None = None,
    log_y: bool = False,
) -> go.Figure:
    """Which elements changed: fraction that changed of the elements of each size in the base.

    A panel per run at its last checkpoint (or at `step`), a line per matrix, mean over layers and
    experts weighted by their elements of that size; `layer` and `matrix` choose one.

    Reads `run_id, step, layer, matrix, bin, value, n, status, reason` of
    `histograms/change_by_magnitude`.

    Raises ValueError if columns are missing.
    """
    figure = histogram(data, MAGNITUDES, step, layer, matrix, log_y)
    figure.update_xaxes(title_text="log\u2082 |W\u2080| of the element")
    return figure


def histogram(
    data: Measurements,
    metric: str,
    step: int | None,
    layer: int | None,
    matrix: str | None,
    log_y: bool,
) -> go.Figure:
    """The figure of either metric, but for its x axis."""
    rows = of_layers(data.checkpoints(metric))
    where = ""
    if layer is not None:
        rows, where = rows[rows["layer"] == layer], f" for layer {layer}"
    if matrix is not None:
        rows, where = rows[rows["matrix"] == matrix], f"{where} for {matrix}"
    title, axis_title = titles_of(metric)
    if not len(rows):
        return empty_figure(title, not_measured(metric, where))
    rows = at_step(rows, step)
    if not len(rows):
        return empty_figure(title, no_checkpoint(step))
    rows = rows.assign(edge=pd.to_numeric(rows["bin"]), cell=rows["matrix"])
    rows = rows.assign(matrix=kind_of(rows["matrix"])) if matrix is None else rows
    shown = data.runs_in(rows)
    steps = rows.groupby("run_id")["step"].first()
    lines = members(rows, "matrix")
    grid = panels(
        [f"{run.label}, step {steps[run.run_id]:g}" for run in shown],
        title=title + esc(where.replace(" for ", ": ", 1).replace(" for ", ", ")),
        names=[run.name for run in shown],
        subtitle=("mean over layers, by matrix; " if layer is None else "")
        + f"{scale_text(log_y)}, the same for every run"
        + ("; bins double and go by their lower edge, 0 is unchanged" if metric == ULPS else ""),
        row_height=300,
        gap=90,
        spacing=0.03,
        left=84,
        bottom=74,
        legend=[*listed(lines), *gaps_listed(rows)],
    )
    for run, panel in zip(shown, grid, strict=True):
        own = rows[rows["run_id"] == run.run_id]
        for key, style in lines.items():
            cells = own[(own["matrix"] == key) & own["edge"].notna()]
            head = f"{run.name}, step {steps[run.run_id]:g}: {key}"
            over = "matrices" if "*" in key else "layers"
            if metric == ULPS:
                cells = _with_empty_bins(cells)
                line = mean_line(cells, "edge", head, over=over, name="units from")
                line.x = [edge_name(edge) for edge in line.x]
            else:
                name = "log\u2082 of the size in the base:"
                line = mean_line(cells, "edge", head, over=over, weight="n", name=name)
            draw(panel, line, **style)
        panel.note_reasons(own)
    share_y(grid, axis_title, log_y)
    if metric == ULPS:
        names = [edge_name(edge) for edge in sorted(set(rows["edge"].dropna()))]
        grid.figure.update_xaxes(
            type="category", categoryorder="array", categoryarray=names, tickangle=-90
        )
    elif not log_y:
        # It is a fraction; where all of them are 1 an axis of its own would begin there.
        grid.figure.update_yaxes(autorangeoptions={"maxallowed": 1.02, "include": 0})
    return grid.figure


def _with_empty_bins(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a 0 for each bin that a matrix has no element in, and another matrix has."""
    known = rows[rows["value"].notna()]
    wide = known.pivot_table(index=["layer", "cell"], columns="edge", values="value")
    filled = wide.fillna(0.0).melt(ignore_index=False).reset_index()
    return pd.concat([filled.assign(reason=""), rows[rows["value"].isna()]], ignore_index=True)


def edge_name(edge: float) -> str:
    """A bin's lower edge as the axis names it: 0, 1, 2, ... 512, then powers of two."""
    if edge < 1024:
        return f"{edge:g}"
    power = str(round(math.log2(edge)))
    return "2" + power.translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
