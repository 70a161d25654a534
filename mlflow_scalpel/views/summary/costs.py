"""The cost of each run."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.units import cost_words
from mlflow_scalpel.views.common.panels import empty_figure, panels
from mlflow_scalpel.views.common.table import Measurements, last_step, ordered
from mlflow_scalpel.views.common.text import esc, hover, reasons
from mlflow_scalpel.views.common.view import Placement, view

#: metric -> (panel title, unit where the table gives none)
WORDS = {
    "cost/wall_seconds": ("wall time", "seconds"),
    "cost/measuring_seconds": ("of it, logging and measuring", "seconds"),
    "cost/flops": ("computation", "FLOP"),
    "cost/tokens_trained": ("tokens trained on", "tokens"),
    "cost/tokens_generated": ("tokens generated", "tokens"),
    "cost/sequences": ("sequences", "sequences"),
    "cost/unique_problems": ("unique problems", "problems"),
}
TITLE = "What each run cost"
LONG_UNITS = {"s": "seconds"}


STAGES = "mlflow run . -e sft (or -e grpo), which counts it"


@view(Placement("cost", 1, "costs", "cost/", STAGES))
def cost(data: Measurements) -> go.Figure:
    """The total cost of each run: a panel per cost, since their units differ; a bar per run.

    The total is the value at the last step that has one (costs are cumulative); hover names the
    step. Reads `run_id, algorithm, step, metric, value, unit, status, reason` of `cost/...`. A
    cost without a value draws no bar, but the words "no value".

    Raises ValueError if columns are missing.
    """
    rows = data.rows(start="cost/")
    rows = rows[rows["step"].notna() & (rows["run_id"] != "")]
    if not len(rows):
        return empty_figure(TITLE, "This table has no rows of cost/...")
    metrics = ordered(rows["metric"], tuple(WORDS))
    shown = data.runs_in(rows)
    grid = panels(
        [WORDS.get(m, (esc(m.removeprefix("cost/"), 28), ""))[0] for m in metrics],
        title=TITLE,
        subtitle="total at the last step; every panel has its own unit",
        columns=3,
        row_height=24 + 30 * len(shown),
        gap=92,
        spacing=0.05,
        left=min(230, 30 + 8 * max(len(run.label) for run in shown)),
    )
    for metric, panel in zip(metrics, grid, strict=True):
        here = rows[rows["metric"] == metric]
        units, values = set(), []
        for run in reversed(shown):  # horizontal bars stack upwards
            own = here[here["run_id"] == run.run_id]
            step = last_step(own)
            last = own[own["step"] == step]
            if len(last) and pd.notna(last["value"].iloc[0]):
                value = float(last["value"].iloc[0])
                unit = str(last["unit"].iloc[0])
                unit = LONG_UNITS.get(unit, unit) or WORDS.get(metric, ("", "no unit"))[1]
                words = cost_words(metric, value)
                label = words.removesuffix(f" {unit}")  # which the panel's axis names
                text = hover(run.name, words, f"{value:,.10g} {unit}", f"up to step {step:g}")
                units.add(unit)
            else:
                value, label = 0.0, "no value"
                text = hover(run.name, "no value: " + reasons(own["reason"]))
            values.append(value)
            bar = go.Bar(
                x=[value],
                y=[run.label],
                orientation="h",
                text=[label],
                textposition="outside",
                cliponaxis=False,
                marker=run.bar,
            )
            panel.add(bar, [text], series=run.name)
        panel.x(
            title_text=esc(" / ".join(sorted(units)), 40) or WORDS.get(metric, ("", ""))[1],
            # room to the right of the longest bar for its number
            range=[0, max(values) * 1.32 or 1],
            tickformat="~s",
            nticks=4,
        )
        panel.y(type="category", showgrid=False, ticks="", showticklabels=panel.first)
        if not units:
            panel.note(f"no value: {esc(reasons(here['reason']), 80)}")
    grid.figure.update_layout(bargap=0.35, barmode="overlay")
    return grid.figure
