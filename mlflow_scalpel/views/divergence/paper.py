"""Our numbers beside the same numbers computed as the paper's authors did."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.kl import token_rows
from mlflow_scalpel.views.lines import draw, gaps_listed, line_of, mean_line
from mlflow_scalpel.views.norms import y_axis
from mlflow_scalpel.views.style import esc, in_rows, nothing, panels, styles
from mlflow_scalpel.views.tidy import per_matrix, read
from mlflow_scalpel.views.wording import absent
from mlflow_scalpel.views.xaxis import lacking_words, nowhere, set_x, x_of

_THEIR_NORM = "weights_paper_compat/relative_frobenius"
#: way -> (its KL without the token set, its norm, how its lines and its marks are drawn)
WAYS = {
    "ours": ("kl", "weights/relative_frobenius", "solid", ""),
    "the authors' way": ("kl_paper_compat", _THEIR_NORM, "dash", "-open"),
}
TITLE = "Our way beside the authors' (arXiv 2507.10616)"


def paper_compat(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    x: str = "step",
    log_x: bool = False,
    log_y: bool = True,
) -> go.Figure:
    """KL over all tokens and the mean relative norm, ours (solid) beside the authors' (dashed).

    The authors compute in bfloat16, which puts a floor under KL and rounds norms. A panel for the
    KL on each probe set and one for the norms (mean over layers and matrices); a colour and a mark
    a run. Reads `run_id, algorithm, step, layer, matrix, value, stderr, texts, status, reason` of
    `kl/all_tokens`, `kl_paper_compat/all_tokens`, `weights/relative_frobenius` and
    `weights_paper_compat/relative_frobenius`.

    Raises ValueError for another `x`, or if columns are missing.
    """
    clean = read(table)
    looks = styles(clean, runs)
    found = []
    for way, (kl, norm, *_) in WAYS.items():
        rows = token_rows(clean, looks, kl)
        rows = rows[(rows["tokens"] == "all tokens") & (rows["bin"] == "")]
        found.append(
            rows.assign(way=way, panel=[f"KL, all tokens: {name}" for name in rows["probe"]])
        )
        rows = per_matrix(clean, norm)
        rows = rows[rows["run_id"].isin(looks) & (rows["step"] > 0)]
        found.append(rows.assign(way=way, panel="relative norm, mean over layers and matrices"))
    theirs = pd.concat(found[2:])
    if not len(theirs):
        names = "weights_paper_compat kl_paper_compat"
        return nothing(
            TITLE, absent("kl_paper_compat/all_tokens").replace("kl_paper_compat --", f"{names} --")
        )
    rows = pd.concat(found)
    names_of = list(dict.fromkeys(theirs["panel"]))
    rows = rows[rows["panel"].isin(names_of)]
    places = x_of(clean, rows, x, runs)
    if why := nowhere(places, looks):
        return nothing(TITLE, why)
    rows = rows.assign(x=places.where)
    shown = in_rows(looks, rows)
    labels = {(run.run_id, way): f"{run.label}, {way}" for run in shown for way in WAYS}
    said = ["solid: ours; dashed, open marks: as the authors compute it, in bfloat16"]
    said.append("logarithmic axes" if log_y else "linear axes")
    grid = panels(
        [esc(name, 60) for name in names_of],
        title=TITLE,
        subtitle="; ".join(filter(None, [*said, lacking_words(places, looks)])),
        columns=2,
        row_height=280,
        gap=80,
        spacing=0.09,
        left=84,
        legend=[*labels.values(), *gaps_listed(rows)],
    )
    legend = set[str]()
    for name, at in zip(names_of, grid.at, strict=True):
        for run in shown:
            for way, (_, _, dash, mark) in WAYS.items():
                own = rows[(rows["panel"] == name) & (rows["run_id"] == run.run_id)]
                own = own[own["way"] == way].sort_values("step")
                head = f"{run.name}, {way}"
                if own["layer"].notna().any():
                    own = own[own["x"].notna()]
                    line = mean_line(own, "x", (head,), over="matrices", name=x)
                else:
                    heads = [(head, f"step {step:g}") for step in own["step"]]
                    line = line_of(own, own["x"], heads)
                if line.x:
                    draw(
                        grid.figure,
                        at,
                        line,
                        name=labels[run.run_id, way],
                        colour=run.colour,
                        dash=dash,
                        symbol=run.symbol + mark,
                        panel=name,
                        series=head,
                        legend=legend,
                    )
        unit = "nats per token" if name.startswith("KL") else "relative norm"
        grid.figure.update_yaxes(title_text=unit, row=at[0], col=at[1])
    set_x(grid.figure, x, log_x=log_x)
    grid.figure.update_yaxes(y_axis(log_y))
    return grid.figure
