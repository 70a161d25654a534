"""How far the weights moved, over training: a panel a run, a line a matrix."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.lines import NO_VALUE, Line, draw
from mlflow_scalpel.views.style import MATRIX_COLOURS, esc, hover, nothing, panels, remark, styles
from mlflow_scalpel.views.tidy import matrices_in, per_matrix, read, reasons
from mlflow_scalpel.views.wording import absent, words


def norms_over_training(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    metric: str = "weights/relative_frobenius",
    log_y: bool = True,
) -> go.Figure:
    """Mean over layers of a weight metric against the training step, a line a matrix.

    One panel a run; all share the y axis (logarithmic unless `log_y` is False; a value of 0 has no
    place on it). Reads `run_id, algorithm, step, layer, matrix, value, status, reason` of the rows
    of `metric`: `weights/relative_frobenius` (no unit), `weights/relative_frobenius_per_lr`,
    `weights/update_rms` or another with a value per layer and matrix. A mean over fewer layers
    than the run has says so on hover; a checkpoint without any draws a gap.

    Raises ValueError if columns are missing.
    """
    clean = read(table)
    looks = styles(clean, runs)
    rows = per_matrix(clean, metric)
    rows = rows[rows["run_id"].isin(looks) & (rows["step"] > 0)]
    title, axis_title = words(metric)
    if not len(rows):
        return nothing(title, absent(metric))
    matrices = matrices_in(rows)
    shown = [run for run in looks.values() if run.run_id in set(rows["run_id"])]
    any_gap = rows["value"].isna().any()
    grid = panels(
        [run.label for run in shown],
        title=title,
        subtitle="mean over layers, by matrix; "
        + ("logarithmic axis" if log_y else "linear axis")
        + ", the same for every run",
        row_height=300,
        spacing=0.03,
        left=84,
        legend=[*(esc(m, 16) for m in matrices), *([NO_VALUE] if any_gap else [])],
    )
    figure, legend = grid.figure, set[str]()
    for run, at in zip(shown, grid.at, strict=True):
        own = rows[rows["run_id"] == run.run_id]
        for i, matrix in enumerate(matrices):
            line = Line()
            for step, layers in own[own["matrix"] == matrix].groupby("step", sort=True):
                values = layers["value"].dropna()
                head = (f"{run.name}: {matrix}", f"step {step:g}")
                if len(values):
                    mean = float(values.mean())
                    said = hover(
                        *head, f"{mean:.6g}", f"mean over {len(values)} of {len(layers)} layers"
                    )
                    line.add(float(step), mean, None, said)  # type: ignore[arg-type]
                else:
                    why = hover(*head, reasons(layers["reason"]))
                    line.add(float(step), None, None, "", why)  # type: ignore[arg-type]
            if line.x:
                draw(
                    figure,
                    at,
                    line,
                    name=esc(matrix, 16),
                    colour=MATRIX_COLOURS[i % len(MATRIX_COLOURS)],
                    # attention solid, MLP dashed: the two families read apart without colour
                    dash="dash" if matrix in ("gate_proj", "up_proj", "down_proj") else "solid",
                    symbol=("circle", "square", "diamond", "triangle-up")[i % 4],
                    panel=run.name,
                    series=matrix,
                    legend=legend,
                )
        if own["value"].isna().all():
            remark(figure, f"no value: {esc(reasons(own['reason']), 120)}", *at)
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(type="log" if log_y else "linear", matches="y", exponentformat="power")
    for at in grid.at:
        first = at[1] == 1
        figure.update_yaxes(
            showticklabels=first, title_text=axis_title if first else None, row=at[0], col=at[1]
        )
    return figure
