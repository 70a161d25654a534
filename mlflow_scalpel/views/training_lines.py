"""Panels of lines over training: a panel a kind of row, a line a run."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.metrics.capabilities.intervals import UNKNOWN
from mlflow_scalpel.views.lines import Line, draw, draw_run, gaps_listed, line_of, say_why
from mlflow_scalpel.views.norms import share_y
from mlflow_scalpel.views.style import BASE_COLOUR, Run, esc, hover, in_rows, nothing, panels
from mlflow_scalpel.views.tidy import Z
from mlflow_scalpel.views.xaxis import end_of, lacking_words, nowhere, set_x, x_of

FLOOR = "noise floor of the dtype"


def lines_over_training(
    clean: pd.DataFrame,
    rows: pd.DataFrame,
    looks: dict[str, Run],
    runs: pd.DataFrame | None,
    *,
    title: str,
    y_title: str,
    subtitle: Sequence[str] = (),
    x: str = "step",
    log_x: bool = False,
    log_y: bool = True,
    floors: pd.DataFrame | None = None,
) -> go.Figure:
    """A panel for each value of the column `panel` (plain text, in order of appearance).

    Bars are 1.96 standard errors. `floors` are rows whose values lie under those of the same panel
    as noise: a grey line. All panels share the y axis.

    Raises ValueError for another `x`.
    """
    places = x_of(clean, rows, x, runs)
    if why := nowhere(places, looks):
        return nothing(title, why)
    rows = rows.assign(x=places.where)
    shown = in_rows(looks, rows)
    names = list(dict.fromkeys(rows["panel"]))
    said = [f"bars: {Z} standard errors over problems"] if rows["stderr"].notna().any() else []
    said = said or ["no standard errors in the table"]
    said.append("logarithmic axis" if log_y else "linear axis")
    zeros = int((rows["value"] == 0).sum())
    if log_y and zeros:
        said.append(f"{zeros} value{'s' * (zeros > 1)} of exactly 0 not drawn on it")
    drawn = None
    if floors is not None and len(floors):
        drawn = floors[floors["value"] > 0].assign(x=lambda f: x_of(clean, f, x, runs).where)
        if not len(drawn):
            said.append("noise floor of the dtype: 0")
    under = [FLOOR] if drawn is not None and len(drawn) else []
    grid = panels(
        [esc(name, 60) for name in names],
        title=title,
        subtitle="; ".join(filter(None, [*subtitle, *said, lacking_words(places, looks)])),
        columns=2,
        row_height=270,
        gap=76,
        spacing=0.03,
        left=84,
        legend=[*(run.label for run in shown), *under, *gaps_listed(rows)],
    )
    legend = set[str]()
    for name, at in zip(names, grid.at, strict=True):
        panel = rows[rows["panel"] == name]
        for run in shown:
            own = panel[panel["run_id"] == run.run_id].sort_values("step")
            end = end_of(clean, run.run_id, runs)
            heads = [
                (run.name, f"step {step:g} of {end:g}", texts)
                for step, texts in zip(own["step"], own["texts"], strict=True)
            ]
            line = line_of(own, own["x"], heads)
            if line.x:
                draw_run(grid.figure, at, line, run, panel=name, legend=legend)
        if drawn is not None:
            add_floor(grid.figure, at, drawn[drawn["panel"] == name], name, legend)
        say_why(grid.figure, panel, at)
    set_x(grid.figure, x, log_x=log_x)
    share_y(grid.figure, grid.at, y_title, log_y)
    return grid.figure


def add_floor(
    figure: go.Figure, at: tuple[int, int], floors: pd.DataFrame, panel: str, legend: set[str]
) -> None:
    """A grey line at each height that the noise floor has in a panel, over the points' width."""
    for value, own in floors.groupby("value"):
        ends = own["x"].min(), own["x"].max()
        said = hover(FLOOR, f"{value:.4g} nats/token: KL of the base in float32 and in this dtype")
        line = Line(list(ends), [float(value)] * 2, [UNKNOWN] * 2, [said, said], ["", ""])  # type: ignore[arg-type]
        draw(
            figure,
            at,
            line,
            name=FLOOR,
            colour=BASE_COLOUR,
            dash="dot",
            symbol="circle",
            panel=panel,
            series=FLOOR,
            legend=legend,
            size=3,
        )
