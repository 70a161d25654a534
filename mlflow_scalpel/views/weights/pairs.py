"""Whether two runs from one base moved the same weights, and the same way."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.common.axis import place
from mlflow_scalpel.views.common.panels import empty_figure, panels
from mlflow_scalpel.views.common.slider import Series, slider_maps
from mlflow_scalpel.views.common.style import BASE_COLOUR, DASHES, OTHER_COLOURS, SYMBOLS
from mlflow_scalpel.views.common.table import Measurements, at_step, matrices_in, of_layers
from mlflow_scalpel.views.common.text import esc, hover
from mlflow_scalpel.views.common.traces import draw, flat_line, gaps_listed, mean_line
from mlflow_scalpel.views.common.view import Placement, compare, view
from mlflow_scalpel.views.common.wording import not_measured, titles_of

COSINE = "pairs/update_cosine"
OVERLAP = "pairs/changed_overlap"
PAIRS = compare("pairs", " runs:/OTHER")
CHANCE = "chance"


def with_pairs(data: Measurements, rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with the columns `pair` (plain text) and `label` (safe and short).

    The second of a pair is known by its checkpoint's model ID; its run is that of the rows of the
    table that this model has itself, or it goes by the ID.
    """
    owners = dict(zip(data.table["model_id"], data.table["run_id"], strict=True))
    pairs, labels = [], []
    for run_id, other in zip(rows["run_id"], rows["other"], strict=True):
        first, second = data.styles[run_id], data.styles.get(owners.get(other, ""))
        pairs.append(f"{first.name} with {second.name if second else other}")
        labels.append(f"{first.label} with {second.label if second else esc(other, 20)}")
    return rows.assign(pair=pairs, label=labels)


@view(Placement("update", 6, "cosines of two runs' updates", COSINE, PAIRS))
def pair_cosines(
    data: Measurements, *, shared_scale: bool = True, by: str = "fraction"
) -> go.Figure:
    """Cosine between the updates of two runs, layer by matrix, a heat map per pair.

    1 is the same direction, 0 is what unrelated updates of many elements give. The slider goes by
    the first run's checkpoints. Reads `run_id, step, other, layer, matrix, value, status, reason`
    of `pairs/update_cosine`.

    Raises ValueError for another `by`, or if columns are missing.
    """
    rows = of_layers(data.checkpoints(COSINE))
    title, axis_title = titles_of(COSINE)
    title += ", layer by matrix"
    if not len(rows):
        return empty_figure(title, not_measured(COSINE))
    rows = place(data, with_pairs(data, rows), "fraction").rows
    return slider_maps(
        [
            Series(pair, str(own["label"].iloc[0]), own)
            for pair, own in rows.groupby("pair", sort=False)
        ],
        "matrix",
        matrices_in(rows),
        title=title,
        axis_title=axis_title,
        signed=True,
        shared_scale=shared_scale,
        by=by,
    )


@view(Placement("update", 7, "overlap of two runs' changes", OVERLAP, PAIRS))
def pair_overlap(data: Measurements, *, step: int | None = None) -> go.Figure:
    """How often both runs changed an element, against chance, by the element's size in the base.

    A line per pair, at the first run's last checkpoint (or at `step`): mean over layers and
    matrices, weighted by their elements. 1 is chance: two runs that change elements independently.
    Reads `run_id, step, other, bin, value, n, status, reason` of `pairs/changed_overlap`.

    Raises ValueError if columns are missing.
    """
    rows = data.checkpoints(OVERLAP)
    rows = of_layers(rows[rows["bin"] != ""])
    title, axis_title = titles_of(OVERLAP)
    if not len(rows):
        return empty_figure(title, not_measured(OVERLAP))
    rows = at_step(with_pairs(data, rows), step, by="pair")
    if not len(rows):
        return empty_figure(title, f"No pair has a checkpoint at step {step}.")
    rows = rows.assign(exponent=pd.to_numeric(rows["bin"]))
    steps = rows.groupby("pair", sort=False)["step"].first()
    names = [f"{esc(pair, 60)}, step {at:g}" for pair, at in steps.items()]
    grid = panels(
        [""],
        title=title,
        subtitle="mean over layers and matrices, weighted by their elements; logarithmic axis",
        row_height=320,
        left=84,
        legend=[CHANCE, *names, *gaps_listed(rows)],
    )
    (panel,) = grid
    even = flat_line([rows["exponent"].min(), rows["exponent"].max()], 1.0, hover("chance: 1"))
    draw(panel, even, name=CHANCE, series=CHANCE, colour=BASE_COLOUR, dash="dot")
    for i, (pair, name) in enumerate(zip(steps.index, names, strict=True)):
        own = rows[rows["pair"] == pair]
        words = "log\u2082 of the size in the base:"
        draw(
            panel,
            mean_line(own, "exponent", str(pair), over="matrices", weight="n", name=words),
            name=name,
            series=str(pair),
            colour=OTHER_COLOURS[i % len(OTHER_COLOURS)],
            dash=DASHES[i % len(DASHES)],
            symbol=SYMBOLS[i % len(SYMBOLS)],
        )
    panel.note_reasons(rows)
    panel.x(title_text="log\u2082 |W\u2080| of the element")
    panel.y(type="log", title_text=axis_title, nticks=6)
    return grid.figure
