"""How the attention of each head changed: layer by head."""

from __future__ import annotations

import plotly.graph_objects as go

from mlflow_scalpel.views.common.axis import place
from mlflow_scalpel.views.common.panels import empty_figure
from mlflow_scalpel.views.common.slider import Series, slider_maps
from mlflow_scalpel.views.common.table import Measurements
from mlflow_scalpel.views.common.text import esc, probe
from mlflow_scalpel.views.common.view import Placement, compare, view
from mlflow_scalpel.views.common.wording import is_signed, not_measured, titles_of

JS = "attention/js"


@view(Placement("attention", 1, "attention maps", JS, compare("attention --texts FILE")))
def attention_heatmaps(
    data: Measurements,
    *,
    metric: str = JS,
    shared_scale: bool = True,
    by: str = "fraction",
) -> go.Figure:
    """Layer by head, a heat map per run and probe set, with one slider over the checkpoints.

    `metric` is "attention/js", or one that can fall as well as rise (entropy_change,
    first_token_change, distance_change), whose colours part at 0. Slider and scales are those of
    `weight_heatmaps`. Reads `run_id, algorithm, step, layer, head, value, texts, status, reason`.

    Raises ValueError for another `by`, or if columns are missing.
    """
    rows = data.checkpoints(metric)
    rows = rows[rows["layer"].notna() & rows["head"].notna() & (rows["bin"] == "")]
    title, axis_title = titles_of(metric)
    title += ", layer by head"
    if not len(rows):
        return empty_figure(title, not_measured(metric))
    rows = place(data, rows, "fraction").rows
    rows = rows.assign(probe=[probe(texts) for texts in rows["texts"]])
    probes = sorted(set(rows["probe"]))
    series = []
    for name in probes:
        here = rows[rows["probe"] == name]
        several = f", {name}" if len(probes) > 1 else ""
        for run in data.runs_in(here):
            own = here[here["run_id"] == run.run_id]
            series.append(Series(run.name + several, run.label + esc(several, 24), own))
    return slider_maps(
        series,
        "head",
        sorted(set(rows["head"])),
        title=title,
        axis_title=axis_title,
        signed=is_signed(metric),
        shared_scale=shared_scale,
        by=by,
        across_title="head",
    )
