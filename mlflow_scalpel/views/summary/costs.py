"""What each run cost."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.units import cost_words
from mlflow_scalpel.views.style import esc, filled, hover, in_rows, nothing, panels, remark, styles
from mlflow_scalpel.views.tidy import last_step, ordered, read, reasons

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


def cost(table: pd.DataFrame, runs: pd.DataFrame | None = None) -> go.Figure:
    """The total cost of each run: a panel a cost, since their units differ; a bar a run.

    The total is the value at the last step that has one (costs are cumulative); hover names the
    step. Reads `run_id, algorithm, step, metric, value, unit, status, reason` of `cost/...`. A
    cost without a value draws no bar, but the words "no value".

    Raises ValueError if columns are missing.
    """
    clean = read(table)
    looks = styles(clean, runs)
    rows = clean[clean["metric"].str.startswith("cost/") & clean["run_id"].isin(looks)]
    rows = rows[rows["step"].notna()]
    if not len(rows):
        return nothing(TITLE, "This table has no rows of cost/...")
    metrics = ordered(rows["metric"], tuple(WORDS))
    shown = in_rows(looks, rows)
    longest = max(len(run.label) for run in shown)
    left = min(230, 30 + 8 * longest)
    titles = [WORDS.get(m, (esc(m.removeprefix("cost/"), 28), ""))[0] for m in metrics]
    grid = panels(
        titles,
        title=TITLE,
        subtitle="total at the last step; every panel has its own unit",
        columns=3,
        row_height=24 + 30 * len(shown),
        gap=92,
        spacing=0.05,
        left=left,
    )
    figure = grid.figure
    for metric, title, at in zip(metrics, titles, grid.at, strict=True):
        units = set()
        largest = 0.0
        for run in reversed(shown):  # horizontal bars stack upwards
            own = rows[(rows["metric"] == metric) & (rows["run_id"] == run.run_id)]
            step = last_step(own)
            last = own[own["step"] == step]
            if len(last) and pd.notna(last["value"].iloc[0]):
                value = float(last["value"].iloc[0])
                unit = str(last["unit"].iloc[0])
                unit = LONG_UNITS.get(unit, unit) or WORDS.get(metric, ("", "no unit"))[1]
                words = cost_words(metric, value)
                text = words.removesuffix(f" {unit}")  # which the panel's axis names
                said = hover(run.name, words, f"{value:,.10g} {unit}", f"up to step {step:g}")
                units.add(unit)
            else:
                value, text = 0.0, "no value"
                said = hover(run.name, "no value: " + reasons(own["reason"]))
            largest = max(largest, value)
            figure.add_trace(
                go.Bar(
                    x=[value],
                    y=[run.label],
                    orientation="h",
                    text=[text],
                    textposition="outside",
                    cliponaxis=False,
                    marker=filled(run.colour, run.pattern),
                    showlegend=False,
                    customdata=[said],
                    hovertemplate="%{customdata}<extra></extra>",
                    meta={"panel": title, "series": run.name},
                ),
                row=at[0],
                col=at[1],
            )
        figure.update_xaxes(
            title_text=esc(" / ".join(sorted(units)), 40) or WORDS.get(metric, ("", ""))[1],
            # room to the right of the longest bar for its number
            range=[0, largest * 1.32 or 1],
            tickformat="~s",
            nticks=4,
            row=at[0],
            col=at[1],
        )
        if not units:
            reason = reasons(rows.loc[rows["metric"] == metric, "reason"])
            remark(figure, f"no value: {esc(reason, 80)}", *at)
        figure.update_yaxes(
            type="category",
            showgrid=False,
            ticks="",
            showticklabels=at[1] == 1,
            row=at[0],
            col=at[1],
        )
    figure.update_layout(bargap=0.35, barmode="overlay")
    return figure
