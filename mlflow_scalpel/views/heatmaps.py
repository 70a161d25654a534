"""Where in the network the weights moved: layer by matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.norms import words
from mlflow_scalpel.views.style import Run, dress, esc, hover, nothing, panels, remark, styles
from mlflow_scalpel.views.tidy import last_step, matrices_in, per_matrix, read, reasons

COLOURS = "Viridis"
#: Up to so many cells a heat map has room for a number in each.
NUMBERED = 100


def short(value: float) -> str:
    """Two digits, for a cell: 0.012, 5.1e-5."""
    return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e")


def trace_of(
    rows: pd.DataFrame,
    run: Run,
    matrices: Sequence[str],
    layers: Sequence[float],
    top: float,
    *,
    numbered: bool = True,
) -> go.Heatmap:
    """A heat map of one run at one step on the scale [0, top]; numbered where there is room."""
    values: list[list[float | None]] = []
    said: list[list[str]] = []
    cells = {
        (layer, m): row
        for layer, m, row in zip(rows["layer"], rows["matrix"], rows.index, strict=True)
    }
    for layer in layers:
        line: list[float | None] = []
        texts = []
        for matrix in matrices:
            head = (run.name, f"layer {layer:g}, {matrix}")
            found = cells.get((layer, matrix))
            value = np.nan if found is None else rows.at[found, "value"]
            if np.isfinite(value):
                over = " (above the scale)" if value > top else ""
                texts.append(hover(*head, f"{value:.6g}{over}"))
                line.append(float(value))
            else:
                why = "not in the table" if found is None else rows.at[found, "reason"]
                texts.append(hover(*head, f"no value: {why}"))
                line.append(None)
        values.append(line)
        said.append(texts)
    numbered = numbered and len(layers) * len(matrices) <= NUMBERED
    return go.Heatmap(
        x=[esc(m, 16) for m in matrices],
        y=[f"{layer:g}" for layer in layers],
        z=values,
        zmin=0,
        zmax=top,
        colorscale=COLOURS,
        customdata=said,
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=True,
        text=[["" if v is None else short(v) for v in line] for line in values]
        if numbered
        else None,
        texttemplate="%{text}" if numbered else None,
        textfont={"size": 11},
        xgap=1,
        ygap=1,
        meta={"panel": run.name, "series": run.name},
    )


def colour_bar(domain: Sequence[float], y: float, title: str) -> dict[str, object]:
    """A horizontal colour bar under a panel; `y` is the panel's lower edge, `domain` its width."""
    return {
        "orientation": "h",
        "x": (domain[0] + domain[1]) / 2,
        "xanchor": "center",
        "y": y,
        "yanchor": "top",
        "ypad": 66,
        "len": domain[1] - domain[0],
        "lenmode": "fraction",
        "thickness": 12,
        "thicknessmode": "pixels",
        "nticks": 5,
        "exponentformat": "power",
        "outlinewidth": 0,
        "title": {"text": title, "side": "bottom", "font": {"size": 12}},
        "tickfont": {"size": 11},
    }


def tops(rows: pd.DataFrame) -> float:
    """The upper end of a scale that holds these rows; 1 where there is nothing to scale."""
    top = float(rows["value"].max()) if rows["value"].notna().any() else 0.0
    return top if top > 0 else 1.0


def weight_heatmaps(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    metric: str = "weights/relative_frobenius",
    step: int | None = None,
    shared_scale: bool = True,
) -> go.Figure:
    """Layer by matrix, a heat map a run, at each run's last checkpoint (or at `step`).

    With `shared_scale` every panel uses the scale [0, largest value of all]; without it each has
    [0, its own largest], to show where a run moved rather than how far. The colour bar says which.
    Reads `run_id, algorithm, step, layer, matrix, value, status, reason` of the rows of `metric`;
    a cell without a value stays empty, with the reason on hover.

    Raises ValueError if columns are missing.
    """
    clean = read(table)
    looks = styles(clean, runs)
    rows = per_matrix(clean, metric)
    rows = rows[rows["run_id"].isin(looks) & (rows["step"] > 0)]
    title, axis_title = words(metric)
    title += ", layer by matrix"
    if not len(rows):
        return nothing(title, f"This table has no rows of {esc(metric, 60)}.")
    drawn: list[tuple[Run, float | None, pd.DataFrame]] = []
    for run in looks.values():
        own = rows[rows["run_id"] == run.run_id]
        if len(own):
            at_step = last_step(own) if step is None else float(step)
            drawn.append((run, at_step, own[own["step"] == at_step]))
    everything = pd.concat([own for _, _, own in drawn])
    if not len(everything):
        return nothing(title, f"No run has a checkpoint at step {step}.")
    matrices, layers = matrices_in(everything), sorted(set(everything["layer"]))
    grid = panels(
        [f"{run.label}, step {at_step:g}" for run, at_step, _ in drawn],
        title=title,
        subtitle="one colour scale for all runs: compare how far"
        if shared_scale
        else "a colour scale for each run: compare where, not how far",
        columns=3,
        row_height=min(560, max(190, 22 * len(layers))),
        gap=190,
        spacing=0.07,
        left=60,
        bottom=150,
    )
    figure = grid.figure
    # three panels abreast leave a cell narrower than its number
    across = max(column for _, column in grid.at)
    for (run, at_step, own), at in zip(drawn, grid.at, strict=True):
        top = tops(everything if shared_scale else own)
        trace = trace_of(own, run, matrices, layers, top, numbered=across <= 2)
        figure.add_trace(trace, row=at[0], col=at[1])
        trace = figure.data[-1]
        x_axis = figure.layout["xaxis" + (trace.xaxis or "x")[1:]]
        y_axis = figure.layout["yaxis" + (trace.yaxis or "y")[1:]]
        scale = "shared scale" if shared_scale else "own scale"
        words_of_bar = f"{axis_title}<br>{scale} 0\u2013{short(top)}"
        trace.colorbar = colour_bar(x_axis.domain, y_axis.domain[0], words_of_bar)
        if not len(own):
            remark(figure, f"no checkpoint at step {at_step:g}", *at)
        elif own["value"].isna().all():
            remark(figure, f"no value: {esc(reasons(own['reason']), 120)}", *at)
        figure.update_yaxes(title_text="layer" if at[1] == 1 else None, row=at[0], col=at[1])
    plain_axes(figure)
    return figure


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
    rows = per_matrix(clean, metric)
    rows = rows[rows["step"] > 0] if step is None else rows[rows["step"] == step]
    found = [run_id for run_id in looks if run_id in set(rows["run_id"])]
    if len(found) > 1:
        raise ValueError(
            f"the table holds {metric} for {len(found)} runs ({', '.join(found)}): "
            "pass the rows of one run, or use weight_heatmaps for several"
        )
    name, axis_title = words(metric)
    if not found:
        where = "" if step is None else f" at step {step}"
        return nothing(name, f"This table has no rows of {esc(metric, 60)}{where}.")
    run = looks[found[0]]
    at_step = last_step(rows)
    own = rows[(rows["step"] == at_step) & (rows["run_id"] == run.run_id)]
    matrices, layers = matrices_in(own), sorted(set(own["layer"]))
    top = tops(own) if maximum is None else float(maximum)
    clipped = int((own["value"] > top).sum())
    subtitle = f"{axis_title} by layer and matrix; linear scale from 0 to {short(top)}"
    title = f"{run.label}, step {at_step:g}"
    if clipped:
        title += f": {clipped} of {own['value'].notna().sum()} cells above the scale, clipped"
    figure = go.Figure(trace_of(own, run, matrices, layers, top))
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
    if own["value"].isna().all():
        remark(figure, f"no value: {esc(reasons(own['reason']), 120)}")
    return figure


def plain_axes(figure: go.Figure) -> None:
    """Categories on both axes, without a grid: a heat map's cells are its grid."""
    figure.update_xaxes(type="category", showgrid=False, showline=False, ticks="", tickangle=-35)
    figure.update_yaxes(type="category", showgrid=False, showline=False, ticks="")
