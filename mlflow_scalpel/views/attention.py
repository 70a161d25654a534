"""How the attention of each head changed: layer by head."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.slider import Series, slider_maps
from mlflow_scalpel.views.style import esc, nothing, styles
from mlflow_scalpel.views.tidy import probe, read
from mlflow_scalpel.views.wording import absent, is_signed, words
from mlflow_scalpel.views.xaxis import x_of


def attention_heatmaps(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    metric: str = "attention/js",
    shared_scale: bool = True,
    by: str = "fraction",
) -> go.Figure:
    """Layer by head, a heat map a run and probe set, with one slider over the checkpoints.

    `metric` is "attention/js", or one that can fall as well as rise (entropy_change,
    first_token_change, distance_change), whose colours part at 0. Slider and scales are those of
    `weight_heatmaps`. Reads `run_id, algorithm, step, layer, head, value, texts, status, reason`.

    Raises ValueError for another `by`, or if columns are missing.
    """
    clean = read(table)
    looks = styles(clean, runs)
    rows = clean[(clean["metric"] == metric) & clean["run_id"].isin(looks) & (clean["step"] > 0)]
    rows = rows[rows["layer"].notna() & rows["head"].notna() & (rows["bin"] == "")]
    title, axis_title = words(metric)
    title += ", layer by head"
    if not len(rows):
        return nothing(title, absent(metric))
    rows = rows.assign(
        at=x_of(clean, rows, "fraction", runs).where,
        probe=[probe(texts) for texts in rows["texts"]],
    )
    probes = sorted(set(rows["probe"]))
    series = []
    for name in probes:
        for run in looks.values():
            own = rows[(rows["run_id"] == run.run_id) & (rows["probe"] == name)]
            several = f", {name}" if len(probes) > 1 else ""
            if len(own):
                series.append(Series(run.name + several, run.label + esc(several, 24), own))
    return slider_maps(
        series,
        "head",
        sorted(set(rows["layer"])),
        sorted(set(rows["head"])),
        title=title,
        axis_title=axis_title,
        where="layer %{y}, head %{x}",
        signed=is_signed(metric),
        shared_scale=shared_scale,
        by=by,
        across_title="head",
    )
