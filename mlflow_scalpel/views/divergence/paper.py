"""Our numbers beside the same numbers computed as the paper's authors did."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.common.axis import place, set_x, y_axis
from mlflow_scalpel.views.common.panels import empty_figure, panels
from mlflow_scalpel.views.common.table import Measurements
from mlflow_scalpel.views.common.text import esc, joined
from mlflow_scalpel.views.common.traces import draw, gaps_listed, line_of, mean_line
from mlflow_scalpel.views.common.view import Placement, X, compare, view
from mlflow_scalpel.views.common.wording import not_measured
from mlflow_scalpel.views.divergence.kl import NATS, token_rows

#: way -> (its KL without the token set, its norm, how its lines and its marks are drawn)
WAYS = {
    "ours": ("kl", "weights/relative_frobenius", "solid", ""),
    "the authors' way": (
        "kl_paper_compat",
        "weights_paper_compat/relative_frobenius",
        "dash",
        "-open",
    ),
}
TITLE = "Our way beside the authors' (arXiv 2507.10616)"
GROUPS = "weights_paper_compat kl_paper_compat"


@view(
    Placement(
        "paper",
        1,
        "the paper's way beside ours",
        ("kl_paper_compat/", "weights_paper_compat/"),
        compare(f"{GROUPS} --texts FILE"),
        settings=X,
    )
)
def paper_compat(
    data: Measurements, *, x: str = "step", log_x: bool = False, log_y: bool = True
) -> go.Figure:
    """KL over all tokens and the mean relative norm, ours (solid) beside the authors' (dashed).

    The authors compute in bfloat16, which puts a floor under KL and rounds norms. A panel for the
    KL on each probe set and one for the norms (mean over layers and matrices); a colour and a mark
    per run. Reads `run_id, algorithm, step, layer, matrix, value, stderr, texts, status, reason` of
    `kl/all_tokens`, `kl_paper_compat/all_tokens`, `weights/relative_frobenius` and
    `weights_paper_compat/relative_frobenius`.

    Raises ValueError for another `x`, or if columns are missing.
    """
    found = []
    for way, (kl, norm, *_) in WAYS.items():
        rows = token_rows(data, kl)
        rows = rows[(rows["tokens"] == "all tokens") & (rows["bin"] == "")]
        names = [f"KL, all tokens: {name}" for name in rows["probe"]]
        found.append(rows.assign(way=way, panel=names))
        rows = data.matrices(norm)
        found.append(rows.assign(way=way, panel="relative norm, mean over layers and matrices"))
    theirs = pd.concat(found[2:])
    if not len(theirs):
        why = not_measured("kl_paper_compat/all_tokens")
        return empty_figure(TITLE, why.replace("kl_paper_compat --", f"{GROUPS} --"))
    rows = pd.concat(found)
    names = list(dict.fromkeys(theirs["panel"]))
    placed = place(data, rows[rows["panel"].isin(names)], x)
    if placed.empty:
        return empty_figure(TITLE, placed.empty)
    rows = placed.rows
    shown = data.runs_in(rows)
    grid = panels(
        [esc(name, 60) for name in names],
        title=TITLE,
        names=names,
        subtitle=joined(
            "solid: ours; dashed, open marks: as the authors compute it, in bfloat16",
            "logarithmic axes" if log_y else "linear axes",
            placed.note,
        ),
        columns=2,
        row_height=280,
        gap=80,
        spacing=0.09,
        left=84,
        legend=[*(f"{run.label}, {way}" for run in shown for way in WAYS), *gaps_listed(rows)],
    )
    for name, panel in zip(names, grid, strict=True):
        for run in shown:
            for way, (_, _, dash, mark) in WAYS.items():
                own = rows[(rows["panel"] == name) & (rows["run_id"] == run.run_id)]
                own = own[own["way"] == way].sort_values("step")
                head = f"{run.name}, {way}"
                if own["layer"].notna().any():
                    line = mean_line(own[own["x"].notna()], "x", head, over="matrices", name=x)
                else:
                    heads = [(head, f"step {step:g}") for step in own["step"]]
                    line = line_of(own, own["x"], heads)
                style: dict[str, Any] = {
                    "colour": run.colour,
                    "dash": dash,
                    "symbol": run.symbol + mark,
                }
                draw(panel, line, name=f"{run.label}, {way}", series=head, **style)
        panel.y(title_text=NATS if name.startswith("KL") else "relative norm", **y_axis(log_y))
    set_x(grid.figure, x, log_x=log_x)
    return grid.figure
