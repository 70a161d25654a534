"""How far each part of the model moved, and what share of its parameters that part is."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.tensors.places import PARTS
from mlflow_scalpel.views.norm_words import NORM, NOT_TRAINED
from mlflow_scalpel.views.style import Run, hover, in_rows, nothing, panels, styles
from mlflow_scalpel.views.tidy import last_step, ordered, read, reasons
from mlflow_scalpel.views.wording import absent, words

TITLE = "How far each part of the model moved"


def norms_by_part(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    metric: str = NORM,
    step: int | None = None,
    log_x: bool = True,
) -> go.Figure:
    """Mean of a weight metric over the tensors of each part, at each run's last checkpoint.

    A row a part (attention, MLP, experts, embeddings, norms ...) with its share of the model's
    parameters, a mark a run. What has no value (not measured, not trained by an adapter, 0 on a
    logarithmic axis) has no mark; where a part has none at all its label says why. Reads `run_id,
    algorithm, step, matrix, part, n, value, status, reason` of the rows of `metric`.

    Raises ValueError if columns are missing.
    """
    clean = read(table)
    looks = styles(clean, runs)
    rows = clean[(clean["metric"] == metric) & clean["run_id"].isin(looks) & (clean["step"] > 0)]
    rows = rows[(rows["part"] != "") & (rows["bin"] == "") & rows["head"].isna()]
    if not len(rows):
        return nothing(TITLE, absent(metric))
    own = [one for _, one in rows.groupby("run_id", sort=False)]
    rows = pd.concat(
        [one[one["step"] == (last_step(one) if step is None else step)] for one in own]
    )
    if not len(rows):
        return nothing(TITLE, f"No run has a checkpoint at step {step}.")
    shown = in_rows(looks, rows)
    parts = ordered(rows["part"], PARTS)
    labels = {part: _label(part, rows) for part in parts}
    name, axis_title = words(metric)
    grid = panels(
        [""],
        title=TITLE,
        subtitle=f"{name}: mean over the tensors of a part, at the last checkpoint; "
        "in brackets the part's share of the parameters",
        row_height=26 * len(parts) + 30,
        left=20 + 7 * max(map(len, labels.values())),
        legend=[run.label for run in shown],
    )
    for run in shown:
        grid.figure.add_trace(_marks(run, rows[rows["run_id"] == run.run_id], labels, log_x))
    grid.figure.update_xaxes(
        type="log" if log_x else "linear", exponentformat="power", title_text=axis_title
    )
    grid.figure.update_yaxes(
        type="category", categoryarray=[labels[part] for part in reversed(parts)], ticks=""
    )
    return grid.figure


def _label(part: str, rows: pd.DataFrame) -> str:
    """A part's name, its share of the first run's parameters, and why it has no mark at all."""
    first = rows[rows["run_id"] == rows["run_id"].iloc[0]]
    label = part
    if first["n"].notna().all():
        share = first.loc[first["part"] == part, "n"].sum() / first["n"].sum()
        label += f" ({100 * share:.2g} %)"
    own = rows[rows["part"] == part]
    known = own.loc[own["value"].notna(), "value"]
    if (own["status"] == NOT_TRAINED).all():
        return f"{label}, not trained"
    if not len(known):
        return f"{label}, no value"
    return label if known.any() else f"{label}, unchanged"


def _marks(run: Run, own: pd.DataFrame, labels: dict[str, str], log_x: bool) -> go.Scatter:
    values, said = [], []
    for part in labels:
        rows = own[own["part"] == part]
        known = rows.loc[rows["value"].notna(), "value"]
        mean = float(known.mean()) if len(known) else math.nan
        values.append(None if math.isnan(mean) or (log_x and mean <= 0) else mean)
        text = [f"{mean:.6g}"] if len(known) else []
        untrained = int((rows["status"] == NOT_TRAINED).sum())
        missing = rows[rows["value"].isna() & (rows["status"] != NOT_TRAINED)]
        if len(rows):
            text.append(f"mean over {len(known)} of {len(rows)} tensors")
        if untrained:
            text.append(f"{untrained} not trained")
        if len(missing):
            text.append(f"{len(missing)} without a value: {reasons(missing['reason'])}")
        said.append(hover(run.name, part, *text))
    return go.Scatter(
        x=values,
        y=list(labels.values()),
        mode="markers",
        name=run.label,
        marker={"color": run.colour, "symbol": run.symbol, "size": 9},
        customdata=said,
        hovertemplate="%{customdata}<extra></extra>",
        meta={"panel": TITLE, "series": run.name},
    )
