"""Scores over training: a panel a skill, a line a run."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.metrics.capabilities.intervals import UNKNOWN, share_interval
from mlflow_scalpel.views.bars import BARS, NO_BARS, share_words
from mlflow_scalpel.views.lines import Line, draw_run, gaps_listed, say_why
from mlflow_scalpel.views.scores import DOMAINS, KINDS, PUBLISHED, before, scores, stepless
from mlflow_scalpel.views.style import esc, hover, in_rows, nothing, panels, styles
from mlflow_scalpel.views.tidy import ordered, read
from mlflow_scalpel.views.xaxis import lacking_words, set_x, x_of

TITLE = "Scores over training"


def scores_over_training(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    kind: str | None = None,
    x: str = "step",
    log_x: bool = False,
) -> go.Figure:
    """Accuracy against training, a panel a skill and kind, a line a run.

    In-domain panels come first; every line starts at the base (step 0). `kind` keeps one kind
    ("greedy" or "sampled"). `x` is "step", "fraction", "tokens", "flops" or "hours", as in
    `xaxis.x_of`; on a logarithmic axis (`log_x`) the base, at 0, has no place. Bars are exact
    95 % intervals over problems. Reads `base, base_digest, run_id, algorithm, step, metric,
    value, stderr, n, status, reason` of `eval/<in|out>/<skill>/<kind>`; an evaluation without a
    value draws a gap.

    Raises ValueError for another `x`, or if columns are missing.
    """
    clean = read(table)
    looks = styles(clean, runs)
    rows = scores(clean)
    published = stepless(looks, runs)
    if x != "fraction":  # a published model of unknown training is the end of its run, no more
        rows = rows[~rows["run_id"].isin(published)]
    places_on_x = x_of(clean, rows, x, runs)
    rows = rows.assign(where=places_on_x.where)
    lacking = lacking_words(places_on_x, looks)
    if kind is not None:
        rows = rows[rows["kind"] == kind]
    if not len(rows[rows["step"] > 0]) and published:
        return nothing(TITLE, "No step is recorded for these runs: pass x='fraction'.")
    if not len(rows):
        which = "" if kind is None else f" of the kind {esc(kind, 24)}"
        return nothing(TITLE, f"This table has no rows of eval/in/... or eval/out/...{which}")
    shown = in_rows(looks, rows)
    places = [
        (d, skill, k)
        for d in ordered(rows["domain"], tuple(DOMAINS))
        for skill in ordered(rows.loc[rows["domain"] == d, "skill"], ())
        for k in ordered(rows.loc[(rows["domain"] == d) & (rows["skill"] == skill), "kind"], KINDS)
    ]
    grid = panels(
        [f"{DOMAINS[d]}<br>{esc(skill, 18)}, {esc(k, 12)}" for d, skill, k in places],
        title=TITLE,
        subtitle="; ".join(
            [
                BARS if rows["stderr"].notna().any() else NO_BARS,
                "the first point is the base"
                if not log_x
                else "logarithmic: without the base, at 0",
                *([lacking] if lacking else []),
            ]
        ),
        columns=3,
        row_height=180,
        gap=86,
        spacing=0.03,
        legend=[*(run.label for run in shown), *gaps_listed(rows)],
    )
    figure, legend = grid.figure, set[str]()
    bases = {run.run_id: before(rows, run.run_id) for run in shown}
    for (domain, skill, k), at in zip(places, grid.at, strict=True):
        panel = rows[(rows["domain"] == domain) & (rows["skill"] == skill) & (rows["kind"] == k)]
        for run in shown:
            own = panel[(panel["run_id"] == run.run_id) & (panel["step"] > 0)]
            base = bases[run.run_id]
            start = base[
                (base["domain"] == domain) & (base["skill"] == skill) & (base["kind"] == k)
            ]
            line = Line()
            for row in pd.concat([start, own]).sort_values("step").itertuples():
                when = PUBLISHED if run.run_id in published else f"step {row.step:g}"
                when = "the base" if row.step == 0 else when
                head = (run.name, f"{skill}, {k}, {when}")
                if pd.isna(row.where) or (log_x and row.where <= 0):
                    continue
                if pd.notna(row.value):
                    said = hover(*head, share_words(row.value, row.stderr, row.n))
                    ends = share_interval(row.value, row.stderr, row.n)
                    line.add(row.where, row.value, ends, said)
                else:
                    line.add(row.where, None, UNKNOWN, "", hover(*head, row.reason))
            if line.x:
                draw_run(
                    figure, at, line, run, panel=f"{DOMAINS[domain]}: {skill}, {k}", legend=legend
                )
        say_why(figure, panel, at)
        first = at[1] == 1
        figure.update_yaxes(
            range=[-0.03, 1.05],
            showticklabels=first,
            title_text="accuracy" if first else None,
            row=at[0],
            col=at[1],
        )
    set_x(figure, x, log_x=log_x)
    return figure
