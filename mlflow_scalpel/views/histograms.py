"""By how much single elements moved, and which."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.lines import draw, gaps_listed, mean_line, say_why
from mlflow_scalpel.views.norms import listed, members, share_y
from mlflow_scalpel.views.style import esc, nothing, panels, styles
from mlflow_scalpel.views.tidy import kind_of, last_step, of_layers, read
from mlflow_scalpel.views.wording import absent, words

ULPS = "histograms/ulp_change"
MAGNITUDES = "histograms/change_by_magnitude"


def change_histogram(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    step: int | None = None,
    layer: int | None = None,
    matrix: str | None = None,
    log_y: bool = False,
) -> go.Figure:
    """By how many units in the last place elements moved: fraction of elements in each bin.

    A panel a run at its last checkpoint (or at `step`), a line a matrix, mean over layers and
    experts; `layer` and `matrix` choose one. A bin that a matrix does not have is a fraction of 0.
    Bins double and go by their lower edge: 0 is unchanged, 1, 2 (and 3), 4 (to 7), 8, ... Reads
    `run_id, step, layer, matrix, bin, value, n, status, reason` of `histograms/ulp_change`.

    Raises ValueError if columns are missing.
    """
    figure = histogram(table, runs, ULPS, step, layer, matrix, log_y)
    figure.update_xaxes(title_text="units in the last place")
    return figure


def change_by_magnitude(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    step: int | None = None,
    layer: int | None = None,
    matrix: str | None = None,
    log_y: bool = False,
) -> go.Figure:
    """Which elements changed: fraction that changed of the elements of each size in the base.

    A panel a run at its last checkpoint (or at `step`), a line a matrix, mean over layers and
    experts weighted by their elements of that size; `layer` and `matrix` choose one.

    Reads `run_id, step, layer, matrix, bin, value, n, status, reason` of
    `histograms/change_by_magnitude`.

    Raises ValueError if columns are missing.
    """
    figure = histogram(table, runs, MAGNITUDES, step, layer, matrix, log_y)
    figure.update_xaxes(title_text="log\u2082 |W\u2080| of the element")
    return figure


def histogram(
    table: pd.DataFrame,
    runs: pd.DataFrame | None,
    metric: str,
    step: int | None,
    layer: int | None,
    matrix: str | None,
    log_y: bool,
) -> go.Figure:
    """The figure of either metric, but for its x axis."""
    clean = read(table)
    looks = styles(clean, runs)
    rows = clean[(clean["metric"] == metric) & clean["run_id"].isin(looks) & (clean["step"] > 0)]
    rows = of_layers(rows)
    where = ""
    if layer is not None:
        rows, where = rows[rows["layer"] == layer], f" for layer {layer}"
    if matrix is not None:
        rows, where = rows[rows["matrix"] == matrix], f"{where} for {matrix}"
    title, axis_title = words(metric)
    if not len(rows):
        return nothing(title, absent(metric, where))
    shown = []
    for run in looks.values():
        own = rows[rows["run_id"] == run.run_id]
        at_step = last_step(own) if step is None else float(step)
        own = own[own["step"] == at_step]
        if len(own):
            own = own.assign(edge=pd.to_numeric(own["bin"]), cell=own["matrix"])
            own = own.assign(matrix=kind_of(own["matrix"])) if matrix is None else own
            shown.append((run, at_step, own))
    if not shown:
        return nothing(title, f"No run has a checkpoint at step {step}.")
    rows = pd.concat([own for _, _, own in shown])
    lines = members(rows, "matrix")
    whole = layer is None
    grid = panels(
        [f"{run.label}, step {at_step:g}" for run, at_step, _ in shown],
        title=title + esc(where.replace(" for ", ": ", 1).replace(" for ", ", ")),
        subtitle=("mean over layers, by matrix; " if whole else "")
        + ("logarithmic axis" if log_y else "linear axis")
        + ", the same for every run"
        + ("; bins double and go by their lower edge, 0 is unchanged" if metric == ULPS else ""),
        row_height=300,
        gap=90,
        spacing=0.03,
        left=84,
        bottom=74,
        legend=[*listed(lines), *gaps_listed(rows)],
    )
    legend = set[str]()
    edges = sorted(set(rows["edge"].dropna()))
    for (run, at_step, own), at in zip(shown, grid.at, strict=True):
        for key, look in lines.items():
            cells = own[(own["matrix"] == key) & own["edge"].notna()]
            head = (f"{run.name}, step {at_step:g}: {key}",)
            over = "matrices" if "*" in key else "layers"
            if metric == ULPS:
                cells = _with_empty_bins(cells)
                line = mean_line(cells, "edge", head, over=over, name="units from")
                line.x = [edge_name(edge) for edge in line.x]  # type: ignore[misc]
            else:
                name = "log\u2082 of the size in the base:"
                line = mean_line(cells, "edge", head, over=over, weight="n", name=name)
            if line.x:
                draw(grid.figure, at, line, panel=run.name, legend=legend, **look)
        say_why(grid.figure, own, at)
    share_y(grid.figure, grid.at, axis_title, log_y)
    if metric == ULPS:
        names = [edge_name(edge) for edge in edges]
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
