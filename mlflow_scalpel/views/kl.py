"""How far the output distribution moved from the base's, over training."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.lines import NO_VALUE, Line, draw
from mlflow_scalpel.views.style import (
    column_of,
    esc,
    hover,
    measured,
    nothing,
    panels,
    remark,
    styles,
)
from mlflow_scalpel.views.tidy import Z, number, ordered, probe, read, reasons

TOKEN_SETS = {"kl/all_tokens": "all tokens", "kl/answer_tokens": "answer tokens"}
TITLE = "KL(base \u2016 checkpoint)"


def kl_over_training(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    x: str = "step",
    log_y: bool = True,
) -> go.Figure:
    """KL(base || checkpoint) in nats per token against training, a line a run.

    A panel for each token set (`kl/all_tokens`, `kl/answer_tokens`) and probe set (first word of
    `texts`); all share the y axis. Bars are 1.96 standard errors over problems. `x` is "step", or
    "fraction": the step over the run's `steps`, or over its last step in the table where `runs`
    does not say. On the logarithmic axis a KL of 0 has no place; pass `log_y=False` for one.
    Reads `run_id, algorithm, step, metric, value, stderr, n, unit, texts, status, reason`.

    Raises ValueError for another `x`, or if columns are missing.
    """
    if x not in ("step", "fraction"):
        raise ValueError(f"x is {x!r}: pass 'step' or 'fraction'")
    clean = read(table)
    looks = styles(clean, runs)
    rows = clean[clean["metric"].isin(TOKEN_SETS) & clean["run_id"].isin(looks)]
    rows = rows[(rows["step"] > 0) & rows["layer"].isna() & (rows["bin"] == "")]
    if not len(rows):
        return nothing(TITLE, "This table has no rows of kl/all_tokens or kl/answer_tokens.")
    rows = rows.assign(probe=[probe(texts) for texts in rows["texts"]])
    pairs = [
        (metric, name)
        for name in ordered(rows["probe"], ())
        for metric in TOKEN_SETS
        if len(rows[(rows["metric"] == metric) & (rows["probe"] == name)])
    ]
    shown = [run for run in looks.values() if run.run_id in set(rows["run_id"])]
    bars = f"bars: {Z} standard errors over problems; "
    subtitle = bars if rows["stderr"].notna().any() else "no standard errors in the table; "
    subtitle += "logarithmic axis" if log_y else "linear axis"
    zeros = int((rows["value"] == 0).sum())
    if log_y and zeros:
        subtitle += f"; {zeros} value{'s' * (zeros > 1)} of exactly 0 not drawn on it"
    grid = panels(
        [f"{esc(name, 24)}: {TOKEN_SETS[metric]}" for metric, name in pairs],
        title=TITLE,
        subtitle=subtitle,
        columns=2,
        row_height=270,
        gap=76,
        spacing=0.03,
        left=84,
        legend=[*(run.label for run in shown), *([NO_VALUE] if rows["value"].isna().any() else [])],
    )
    figure, legend = grid.figure, set[str]()
    for (metric, name), at in zip(pairs, grid.at, strict=True):
        panel = rows[(rows["metric"] == metric) & (rows["probe"] == name)]
        for run in shown:
            own = panel[panel["run_id"] == run.run_id].sort_values("step")
            steps = number(column_of(runs, run.run_id, "steps")) or float(
                clean.loc[clean["run_id"] == run.run_id, "step"].max()
            )
            line = Line()
            for row in own.itertuples():
                where = row.step / steps if x == "fraction" else row.step
                head = (run.name, f"step {row.step:g} of {steps:g}", row.texts)
                if pd.notna(row.value):
                    said = hover(*head, measured(row.value, row.stderr, row.n, row.unit))
                    half = None if pd.isna(row.stderr) else Z * row.stderr
                    line.add(where, row.value, half, said)
                else:
                    line.add(where, None, None, "", hover(*head, row.reason))
            if line.x:
                draw(
                    figure,
                    at,
                    line,
                    name=run.label,
                    colour=run.colour,
                    dash=run.dash,
                    symbol=run.symbol,
                    panel=f"{name}: {TOKEN_SETS[metric]}",
                    series=run.name,
                    legend=legend,
                )
        if panel["value"].isna().all():
            remark(figure, f"no value: {esc(reasons(panel['reason']), 120)}", *at)
    figure.update_xaxes(title_text="step" if x == "step" else "fraction of the run")
    figure.update_yaxes(type="log" if log_y else "linear", matches="y", exponentformat="power")
    for at in grid.at:
        first = at[1] == 1
        figure.update_yaxes(
            showticklabels=first,
            title_text="nats per token" if first else None,
            row=at[0],
            col=at[1],
        )
    return figure
