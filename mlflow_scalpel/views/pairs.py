"""Whether two runs from one base moved the same weights, and the same way."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.metrics.capabilities.intervals import UNKNOWN
from mlflow_scalpel.views.lines import Line, draw, gaps_listed, mean_line, say_why
from mlflow_scalpel.views.slider import Series, slider_maps
from mlflow_scalpel.views.style import (
    BASE_COLOUR,
    DASHES,
    OTHER_COLOURS,
    SYMBOLS,
    Run,
    esc,
    hover,
    nothing,
    panels,
    styles,
)
from mlflow_scalpel.views.tidy import last_step, matrices_in, of_layers, read
from mlflow_scalpel.views.wording import absent, words
from mlflow_scalpel.views.xaxis import x_of

COSINE = "pairs/update_cosine"
OVERLAP = "pairs/changed_overlap"


def pairs_of(clean: pd.DataFrame, rows: pd.DataFrame, looks: dict[str, Run]) -> pd.DataFrame:
    """`rows` with the columns `pair` (plain text) and `label` (safe and short).

    The second of a pair is known by its checkpoint's model ID; its run is that of the rows of the
    table that this model has itself, or it goes by the ID.
    """
    owners = dict(zip(clean["model_id"], clean["run_id"], strict=True))
    pairs, labels = [], []
    for run_id, other in zip(rows["run_id"], rows["other"], strict=True):
        second = looks.get(owners.get(other, ""))
        pairs.append(f"{looks[run_id].name} with {second.name if second else other}")
        labels.append(f"{looks[run_id].label} with {second.label if second else esc(other, 20)}")
    return rows.assign(pair=pairs, label=labels)


def pair_cosines(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    shared_scale: bool = True,
    by: str = "fraction",
) -> go.Figure:
    """Cosine between the updates of two runs, layer by matrix, a heat map a pair.

    1 is the same direction, 0 is what unrelated updates of many elements give. The slider goes by
    the first run's checkpoints. Reads `run_id, step, other, layer, matrix, value, status, reason`
    of `pairs/update_cosine`.

    Raises ValueError for another `by`, or if columns are missing.
    """
    clean = read(table)
    looks = styles(clean, runs)
    rows = clean[(clean["metric"] == COSINE) & clean["run_id"].isin(looks)]
    rows = of_layers(rows[rows["step"] > 0])
    title, axis_title = words(COSINE)
    title += ", layer by matrix"
    if not len(rows):
        return nothing(title, absent(COSINE))
    rows = pairs_of(clean, rows, looks)
    rows = rows.assign(at=x_of(clean, rows, "fraction", runs).where)
    series = [
        Series(pair, str(own["label"].iloc[0]), own)
        for pair, own in rows.groupby("pair", sort=False)
    ]
    return slider_maps(
        series,
        "matrix",
        sorted(set(rows["layer"])),
        matrices_in(rows),
        title=title,
        axis_title=axis_title,
        where="layer %{y}, %{x}",
        signed=True,
        shared_scale=shared_scale,
        by=by,
    )


def pair_overlap(
    table: pd.DataFrame, runs: pd.DataFrame | None = None, *, step: int | None = None
) -> go.Figure:
    """How often both runs changed an element, against chance, by the element's size in the base.

    A line a pair, at the first run's last checkpoint (or at `step`): mean over layers and matrices,
    weighted by their elements. 1 is chance: two runs that change elements independently. Reads
    `run_id, step, other, bin, value, n, status, reason` of `pairs/changed_overlap`.

    Raises ValueError if columns are missing.
    """
    clean = read(table)
    looks = styles(clean, runs)
    rows = clean[(clean["metric"] == OVERLAP) & clean["run_id"].isin(looks) & (clean["bin"] != "")]
    rows = of_layers(rows)
    title, axis_title = words(OVERLAP)
    if not len(rows):
        return nothing(title, absent(OVERLAP))
    rows = pairs_of(clean, rows, looks)
    chosen = []
    for _, own in rows.groupby("pair", sort=False):
        at_step = last_step(own) if step is None else float(step)
        chosen.append(own[own["step"] == at_step])
    rows = pd.concat(chosen)
    if not len(rows):
        return nothing(title, f"No pair has a checkpoint at step {step}.")
    rows = rows.assign(exponent=pd.to_numeric(rows["bin"]))
    steps = rows.groupby("pair", sort=False)["step"].first()
    chance = "chance"
    names = [f"{esc(pair, 60)}, step {at:g}" for pair, at in steps.items()]
    grid = panels(
        [""],
        title=title,
        subtitle="mean over layers and matrices, weighted by their elements; logarithmic axis",
        row_height=320,
        left=84,
        legend=[chance, *names, *gaps_listed(rows)],
    )
    figure, legend = grid.figure, set[str]()
    edges = rows["exponent"].min(), rows["exponent"].max()
    even = Line(list(edges), [1.0, 1.0], [UNKNOWN] * 2, [hover("chance: 1")] * 2, [""] * 2)
    draw(
        figure,
        (1, 1),
        even,
        name=chance,
        colour=BASE_COLOUR,
        dash="dot",
        symbol="circle",
        panel="",
        series=chance,
        legend=legend,
    )
    for i, (pair, name) in enumerate(zip(steps.index, names, strict=True)):
        own = rows[rows["pair"] == pair]
        line = mean_line(
            own,
            "exponent",
            (pair,),
            over="matrices",
            weight="n",
            name="log\u2082 of the size in the base:",
        )
        draw(
            figure,
            (1, 1),
            line,
            name=name,
            colour=OTHER_COLOURS[i % len(OTHER_COLOURS)],
            dash=DASHES[i % len(DASHES)],
            symbol=SYMBOLS[i % len(SYMBOLS)],
            panel="",
            series=str(pair),
            legend=legend,
        )
    say_why(figure, rows)
    figure.update_xaxes(title_text="log\u2082 |W\u2080| of the element")
    figure.update_yaxes(type="log", title_text=axis_title, nticks=6)
    return figure
