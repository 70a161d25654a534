"""The set of statistics worth printing for a KL, as llama-perplexity does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.bars import error_bars, intervals_of, share_words
from mlflow_scalpel.views.kl import NATS, token_rows
from mlflow_scalpel.views.kl_bins import at_one_step
from mlflow_scalpel.views.lines import draw_run, gaps_listed, line_of
from mlflow_scalpel.views.style import (
    BASE_COLOUR,
    Run,
    esc,
    filled,
    hover,
    in_rows,
    measured,
    nothing,
    panels,
    styles,
)
from mlflow_scalpel.views.tidy import Z, read, reasons
from mlflow_scalpel.views.wording import absent

TITLE = "Statistics of the KL"
QUANTILES = "kl/quantile"
#: panel -> (its y axis, its metrics and what they are called)
MEANS = {
    "divergences": (NATS, {"kl": "KL", "kl/reverse": "reverse KL", "kl/js": "JS"}),
    "same top token": ("fraction of tokens", {"kl/same_top": "same top token"}),
    "probability of the right token": (
        "probability",
        {"kl/right_token_change": "mean change", "kl/right_token_rms": "RMS of change"},
    ),
}


def kl_statistics(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    step: int | None = None,
    tokens: str | None = None,
) -> go.Figure:
    """Quantiles over tokens, mean divergences, same top token and the right token's probability.

    Four panels a probe set, at each run's last checkpoint (or at `step`): the quantiles of single
    tokens' KL, a line a run; then means. Bars are 1.96 standard errors over problems. `tokens` is
    "all tokens" or "answer tokens"; answer tokens by default, where the table has them. Reads
    `run_id, algorithm, step, metric, bin, value, stderr, n, unit, texts, status, reason` of
    `kl/...`.

    Raises ValueError if columns are missing.
    """
    clean = read(table)
    looks = styles(clean, runs)
    metrics = [QUANTILES, *(metric for _, words in MEANS.values() for metric in words)]
    rows = pd.concat(
        [token_rows(clean, looks, metric).assign(statistic=metric) for metric in metrics]
    )
    present = set(rows["tokens"])
    tokens = tokens or ("answer tokens" if "answer tokens" in present else "all tokens")
    rows = rows[rows["tokens"] == tokens]
    if not len(rows):
        return nothing(TITLE, absent("kl/...", f" over {tokens}"))
    rows, steps = at_one_step(rows, looks, step)
    if not len(rows):
        return nothing(TITLE, f"No run has a checkpoint at step {step}.")
    probes = list(dict.fromkeys(rows["probe"]))
    shown = in_rows(looks, rows)
    several = len(probes) > 1
    titles = ["KL of single tokens, by quantile", *MEANS]
    grid = panels(
        [f"{esc(name, 24)}: {title}" if several else title for name in probes for title in titles],
        title=f"{TITLE}, {tokens}",
        subtitle=f"{steps}; bars of error: {Z} standard errors over "
        "problems, of shares exact 95 % intervals",
        columns=2,
        row_height=230,
        gap=86,
        spacing=0.1,
        left=84,
        legend=[*(run.label for run in shown), *gaps_listed(rows)],
    )
    legend = set[str]()
    for i, name in enumerate(probes):
        own = rows[rows["probe"] == name]
        at = grid.at[4 * i : 4 * i + 4]
        prefix = f"{name}: " if several else ""
        quantiles(grid.figure, at[0], own, shown, prefix + titles[0], legend)
        for place, (title, (unit, words)) in zip(at[1:], MEANS.items(), strict=True):
            means(grid.figure, place, own, shown, words, prefix + title, legend)
            grid.figure.update_yaxes(title_text=unit, row=place[0], col=place[1])
    return grid.figure


def quantile_name(share: float) -> str:
    """A quantile as it is called: min, 1 %, 99.9 %, max."""
    return {0.0: "min", 0.5: "median", 1.0: "max"}.get(share, f"{100 * share:g} %")


def quantiles(
    figure: go.Figure,
    at: tuple[int, int],
    rows: pd.DataFrame,
    shown: list[Run],
    panel: str,
    legend: set[str],
) -> None:
    """The quantiles of the KL of single tokens, a line a run."""
    rows = rows[rows["statistic"] == QUANTILES]
    rows = rows.assign(share=pd.to_numeric(rows["bin"])).dropna(subset="share")
    rows = rows.sort_values("share")
    for run in shown:
        own = rows[rows["run_id"] == run.run_id]
        names = [quantile_name(share) for share in own["share"]]
        heads = [(f"{run.name}: {name} of the tokens' KL",) for name in names]
        line = line_of(own, names, heads)
        if line.x:
            draw_run(figure, at, line, run, panel=panel, legend=legend)
    order = [quantile_name(share) for share in sorted(set(rows["share"]))]
    axis: dict[str, Any] = {"row": at[0], "col": at[1]}
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=order, **axis)
    figure.update_yaxes(type="log", exponentformat="power", title_text=NATS, **axis)


def means(
    figure: go.Figure,
    at: tuple[int, int],
    rows: pd.DataFrame,
    shown: list[Run],
    words: dict[str, str],
    panel: str,
    legend: set[str],
) -> None:
    """The statistics of a panel side by side, a run's own mark or bar in each.

    Divergences are marks on a logarithmic axis, since they lie decades apart; the others can be 0
    or negative and are bars.
    """
    marks = "kl" in words
    for run in shown:
        own = rows[(rows["run_id"] == run.run_id) & (rows["bin"] == "")]
        own = own[own["statistic"].isin(words)]
        if not len(own):
            continue
        said = [
            hover(f"{run.name}, step {row.step:g}", words[str(row.statistic)], said_of(row))
            for row in own.itertuples()
        ]
        common: dict[str, Any] = {
            "x": [words[metric] for metric in own["statistic"]],
            "y": [None if np.isnan(value) else value for value in own["value"]],
            "name": run.label,
            "legendgroup": run.label,
            "showlegend": run.label not in legend,
            "customdata": said,
            "hovertemplate": "%{customdata}<extra></extra>",
            "meta": {"panel": panel, "series": run.name},
        }
        halves = Z * own["stderr"]
        ends = (
            intervals_of(own)
            if "kl/same_top" in words
            else list(zip(own["value"] - halves, own["value"] + halves, strict=True))
        )
        common["error_y"] = error_bars(list(own["value"]), ends)
        if marks:
            look = {"color": run.colour, "symbol": run.symbol, "size": 9}
            trace: go.Scatter | go.Bar = go.Scatter(mode="markers", marker=look, **common)
        else:
            look = filled(run.colour, run.pattern)
            trace = go.Bar(offsetgroup=run.run_id, marker=look, **common)
        figure.add_trace(trace, row=at[0], col=at[1])
        legend.add(run.label)
    axis: dict[str, Any] = {"row": at[0], "col": at[1]}
    figure.update_xaxes(type="category", showgrid=False, **axis)
    if marks:
        figure.update_yaxes(type="log", exponentformat="power", **axis)
    else:
        figure.update_yaxes(zeroline=True, zerolinecolor=BASE_COLOUR, **axis)


def said_of(row: Any) -> str:
    """A row's value with its interval, or why there is none."""
    if np.isfinite(row.value):
        if row.statistic == "kl/same_top":
            return share_words(row.value, row.stderr, row.n)
        return measured(row.value, row.stderr, row.n, row.unit)
    return f"no value: {reasons([row.reason])}"
