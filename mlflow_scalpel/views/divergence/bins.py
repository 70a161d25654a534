"""Where in the texts the KL is: by position, and by how sure the base is."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.kl import NATS, token_rows
from mlflow_scalpel.views.lines import draw_run, gaps_listed, line_of, say_why
from mlflow_scalpel.views.norms import share_y
from mlflow_scalpel.views.style import Run, esc, in_rows, nothing, panels, styles
from mlflow_scalpel.views.tidy import Z, last_step, read
from mlflow_scalpel.views.wording import absent


def kl_by_position(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    step: int | None = None,
    log_y: bool = True,
) -> go.Figure:
    """KL(base || checkpoint) by position in the text, a line a run at its last checkpoint.

    Bins of positions double (0, 1, 2-3, 4-7, ...) and go by their first. A panel for each token
    and probe set; bars are 1.96 standard errors over problems. Reads `run_id, algorithm, step, bin,
    value, stderr, n, unit, texts, status, reason` of `kl/by_position`. `step` chooses another one.

    Raises ValueError if columns are missing.
    """
    return binned(
        table,
        runs,
        "kl/by_position",
        step,
        title="KL by position in the text",
        x_title="first position of the bin, counted from 0",
        word="positions from",
        log_y=log_y,
        names=True,
    )


def kl_by_entropy(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    step: int | None = None,
    log_y: bool = True,
) -> go.Figure:
    """KL(base || checkpoint) by decile of the base's entropy, a line a run at its last checkpoint.

    Decile 10 holds the tokens at which the base is least sure. Otherwise as `kl_by_position`, of
    `kl/by_base_entropy`.

    Raises ValueError if columns are missing.
    """
    return binned(
        table,
        runs,
        "kl/by_base_entropy",
        step,
        title="KL by how sure the base is",
        x_title="decile of the base's entropy (10: least sure)",
        word="decile",
        log_y=log_y,
    )


def at_one_step(
    rows: pd.DataFrame, looks: dict[str, Run], step: int | None
) -> tuple[pd.DataFrame, str]:
    """The rows of each run's last step (or of `step`), and words that say which those are."""
    kept = []
    words = []
    for run in looks.values():
        own = rows[rows["run_id"] == run.run_id]
        at = last_step(own) if step is None else float(step)
        own = own[own["step"] == at]
        if len(own):
            kept.append(own)
            words.append(f"{run.label} at step {at:g}")
    return (pd.concat(kept) if kept else rows.iloc[:0]), ", ".join(words)


def binned(
    table: pd.DataFrame,
    runs: pd.DataFrame | None,
    metric: str,
    step: int | None,
    *,
    title: str,
    x_title: str,
    word: str,
    log_y: bool,
    names: bool = False,
) -> go.Figure:
    """A panel for each token and probe set, a line a run over the bins of `metric`.

    With `names` the bins stand at even distances.
    """
    clean = read(table)
    looks = styles(clean, runs)
    rows = token_rows(clean, looks, metric)
    if not len(rows):
        return nothing(title, absent(f"{metric}/all_tokens", f" or {metric}/answer_tokens"))
    panels_of = list(dict.fromkeys(rows["panel"]))
    rows, steps = at_one_step(rows, looks, step)
    if not len(rows):
        return nothing(title, f"No run has a checkpoint at step {step}.")
    rows = rows.assign(edge=pd.to_numeric(rows["bin"]))
    shown = in_rows(looks, rows)
    bars = f"bars: {Z} standard errors over problems"
    grid = panels(
        [esc(name, 60) for name in panels_of],
        title=title,
        subtitle=f"{steps}; {bars}; {'logarithmic' if log_y else 'linear'} axis",
        columns=2,
        row_height=260,
        gap=80,
        spacing=0.03,
        left=84,
        legend=[*(run.label for run in shown), *gaps_listed(rows)],
    )
    legend = set[str]()
    for name, at in zip(panels_of, grid.at, strict=True):
        panel = rows[rows["panel"] == name]
        for run in shown:
            own = panel[(panel["run_id"] == run.run_id) & panel["edge"].notna()]
            own = own.sort_values("edge")
            heads = [
                (f"{run.name}, step {at_step:g}", f"{word} {edge:g}")
                for at_step, edge in zip(own["step"], own["edge"], strict=True)
            ]
            where = [f"{edge:g}" for edge in own["edge"]] if names else own["edge"]
            line = line_of(own, where, heads)
            if line.x:
                draw_run(grid.figure, at, line, run, panel=name, legend=legend)
        say_why(grid.figure, panel, at)
    grid.figure.update_xaxes(title_text=x_title)
    if names:
        edges = [f"{edge:g}" for edge in sorted(set(rows["edge"].dropna()))]
        grid.figure.update_xaxes(type="category", categoryorder="array", categoryarray=edges)
    share_y(grid.figure, grid.at, NATS, log_y)
    return grid.figure
