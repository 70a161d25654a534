"""The KL of single tokens taken apart: quantiles, by position, by the base's entropy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.common.axis import scale_text, share_y
from mlflow_scalpel.views.common.panels import Panel, empty_figure, panels
from mlflow_scalpel.views.common.style import BASE_COLOUR, Run
from mlflow_scalpel.views.common.table import Measurements, at_step
from mlflow_scalpel.views.common.text import Z, esc, hover, reasons, share_text, value_text
from mlflow_scalpel.views.common.traces import (
    NORMAL_BARS,
    draw,
    error_bars,
    legend_of,
    line_of,
    share_intervals,
)
from mlflow_scalpel.views.common.view import Placement, view
from mlflow_scalpel.views.common.wording import no_checkpoint, not_measured
from mlflow_scalpel.views.divergence.kl import NATS, TEXTS, no_tokens, token_rows

TITLE = "Statistics of the KL"
QUANTILES = "kl/quantile"
QUANTILES_PANEL = "KL of single tokens, by quantile"
SAME_TOP = "kl/same_top"
#: panel -> (its y axis, its metrics and what they are called)
MEANS = {
    "divergences": (NATS, {"kl": "KL", "kl/reverse": "reverse KL", "kl/js": "JS"}),
    "same top token": ("fraction of tokens", {SAME_TOP: "same top token"}),
    "probability of the right token": (
        "probability",
        {"kl/right_token_change": "mean change", "kl/right_token_rms": "RMS of change"},
    ),
}


@view(Placement("divergence", 2, "statistics of KL", QUANTILES, TEXTS))
def kl_statistics(
    data: Measurements, *, step: int | None = None, tokens: str | None = None
) -> go.Figure:
    """Quantiles over tokens, mean divergences, same top token and the right token's probability.

    Four panels per probe set, at each run's last checkpoint (or at `step`): the quantiles of single
    tokens' KL, a line per run; then means. Bars are 1.96 standard errors over problems. `tokens` is
    "all tokens" or "answer tokens"; answer tokens by default, where the table has them. Reads
    `run_id, algorithm, step, metric, bin, value, stderr, n, unit, texts, status, reason` of
    `kl/...`.

    Raises ValueError if columns are missing.
    """
    metrics = [QUANTILES, *(metric for _, names in MEANS.values() for metric in names)]
    rows = pd.concat([token_rows(data, metric).assign(statistic=metric) for metric in metrics])
    present = set(rows["tokens"])
    tokens = tokens or ("answer tokens" if "answer tokens" in present else "all tokens")
    rows = rows[rows["tokens"] == tokens]
    if not len(rows):
        return empty_figure(TITLE, not_measured("kl/...", f" over {tokens}"))
    rows = at_step(rows, step)
    if not len(rows):
        return empty_figure(TITLE, no_checkpoint(step))
    probes = list(dict.fromkeys(rows["probe"]))
    shown = data.runs_in(rows)
    places = [(probe, title) for probe in probes for title in (QUANTILES_PANEL, *MEANS)]
    several = len(probes) > 1
    grid = panels(
        [f"{esc(probe, 24)}: {title}" if several else title for probe, title in places],
        title=f"{TITLE}, {tokens}",
        names=[f"{probe}: {title}" if several else title for probe, title in places],
        subtitle=f"{data.steps_text(rows)}; bars of error: {Z} standard errors over "
        "problems, of shares exact 95 % intervals",
        columns=2,
        row_height=230,
        gap=86,
        spacing=0.1,
        left=84,
        legend=legend_of(shown, rows),
    )
    for (probe, title), panel in zip(places, grid, strict=True):
        own = rows[rows["probe"] == probe]
        if title == QUANTILES_PANEL:
            draw_quantiles(panel, own, shown)
        else:
            unit, names = MEANS[title]
            draw_means(panel, own, shown, names)
            panel.y(title_text=unit)
    return grid.figure


def quantile_name(share: float) -> str:
    """A quantile as it is called: min, 1 %, 99.9 %, max."""
    return {0.0: "min", 0.5: "median", 1.0: "max"}.get(share, f"{100 * share:g} %")


def draw_quantiles(panel: Panel, rows: pd.DataFrame, shown: list[Run]) -> None:
    """The quantiles of the KL of single tokens, a line per run."""
    rows = rows[rows["statistic"] == QUANTILES]
    rows = rows.assign(share=pd.to_numeric(rows["bin"])).dropna(subset="share")
    rows = rows.sort_values("share")
    for run in shown:
        own = rows[rows["run_id"] == run.run_id]
        names = [quantile_name(share) for share in own["share"]]
        heads = [(f"{run.name}: {name} of the tokens' KL",) for name in names]
        draw(panel, line_of(own, names, heads), **run.line)
    order = [quantile_name(share) for share in sorted(set(rows["share"]))]
    panel.x(type="category", categoryorder="array", categoryarray=order)
    panel.y(type="log", exponentformat="power", title_text=NATS)


def draw_means(panel: Panel, rows: pd.DataFrame, shown: list[Run], names: dict[str, str]) -> None:
    """The statistics of a panel side by side, a run's own mark or bar in each.

    Divergences are marks on a logarithmic axis, since they lie decades apart; the others can be 0
    or negative and are bars.
    """
    marks = "kl" in names
    for run in shown:
        own = rows[(rows["run_id"] == run.run_id) & (rows["bin"] == "")]
        own = own[own["statistic"].isin(names)]
        if not len(own):
            continue
        half = Z * own["stderr"]
        ends = list(zip(own["value"] - half, own["value"] + half, strict=True))
        points: dict[str, Any] = {
            "x": [names[metric] for metric in own["statistic"]],
            "y": [None if np.isnan(value) else value for value in own["value"]],
            "error_y": error_bars(
                list(own["value"]), share_intervals(own) if SAME_TOP in names else ends
            ),
        }
        if marks:
            marker = {"color": run.colour, "symbol": run.symbol, "size": 9}
            trace: go.Scatter | go.Bar = go.Scatter(mode="markers", marker=marker, **points)
        else:
            trace = go.Bar(offsetgroup=run.run_id, marker=run.bar, **points)
        text = [
            hover(f"{run.name}, step {row.step:g}", names[str(row.statistic)], statistic_text(row))
            for row in own.itertuples()
        ]
        panel.add(trace, text, series=run.name, name=run.label)
    panel.x(type="category", showgrid=False)
    if marks:
        panel.y(type="log", exponentformat="power")
    else:
        panel.y(zeroline=True, zerolinecolor=BASE_COLOUR)


def statistic_text(row: Any) -> str:
    """A row's value with its interval, or why there is none."""
    if not np.isfinite(row.value):
        return f"no value: {reasons([row.reason])}"
    if row.statistic == SAME_TOP:
        return share_text(row.value, row.stderr, row.n)
    return value_text(row.value, row.stderr, row.n, row.unit)


@view(Placement("divergence", 3, "KL by position", "kl/by_position", TEXTS))
def kl_by_position(data: Measurements, *, step: int | None = None, log_y: bool = True) -> go.Figure:
    """KL(base || checkpoint) by position in the text, a line per run at its last checkpoint.

    Bins of positions double (0, 1, 2-3, 4-7, ...) and go by their first. A panel for each token
    and probe set; bars are 1.96 standard errors over problems. Reads `run_id, algorithm, step, bin,
    value, stderr, n, unit, texts, status, reason` of `kl/by_position`. `step` chooses another one.

    Raises ValueError if columns are missing.
    """
    return binned(
        data,
        "kl/by_position",
        step,
        title="KL by position in the text",
        x_title="first position of the bin, counted from 0",
        word="positions from",
        log_y=log_y,
        even=True,
    )


@view(Placement("divergence", 4, "KL by entropy", "kl/by_base_entropy", TEXTS))
def kl_by_entropy(data: Measurements, *, step: int | None = None, log_y: bool = True) -> go.Figure:
    """KL(base || checkpoint) by decile of the base's entropy, at each run's last checkpoint.

    A line per run. Decile 10 holds the tokens at which the base is least sure. Otherwise as
    `kl_by_position`, of `kl/by_base_entropy`.

    Raises ValueError if columns are missing.
    """
    return binned(
        data,
        "kl/by_base_entropy",
        step,
        title="KL by how sure the base is",
        x_title="decile of the base's entropy (10: least sure)",
        word="decile",
        log_y=log_y,
    )


def binned(
    data: Measurements,
    metric: str,
    step: int | None,
    *,
    title: str,
    x_title: str,
    word: str,
    log_y: bool,
    even: bool = False,
) -> go.Figure:
    """A panel for each token and probe set, a line per run over the bins of `metric`.

    With `even` the bins stand at even distances.
    """
    rows = token_rows(data, metric)
    if not len(rows):
        return empty_figure(title, no_tokens(metric))
    names = list(dict.fromkeys(rows["panel"]))
    rows = at_step(rows, step)
    if not len(rows):
        return empty_figure(title, no_checkpoint(step))
    rows = rows.assign(edge=pd.to_numeric(rows["bin"]))
    shown = data.runs_in(rows)
    grid = panels(
        [esc(name, 60) for name in names],
        title=title,
        names=names,
        subtitle=f"{data.steps_text(rows)}; {NORMAL_BARS}; {scale_text(log_y)}",
        columns=2,
        row_height=260,
        gap=80,
        spacing=0.03,
        left=84,
        legend=legend_of(shown, rows),
    )
    for name, panel in zip(names, grid, strict=True):
        here = rows[rows["panel"] == name]
        for run in shown:
            own = here[(here["run_id"] == run.run_id) & here["edge"].notna()]
            own = own.sort_values("edge")
            heads = [
                (f"{run.name}, step {at:g}", f"{word} {edge:g}")
                for at, edge in zip(own["step"], own["edge"], strict=True)
            ]
            where = [f"{edge:g}" for edge in own["edge"]] if even else own["edge"]
            draw(panel, line_of(own, where, heads), **run.line)
        panel.note_reasons(here)
    grid.figure.update_xaxes(title_text=x_title)
    if even:
        edges = [f"{edge:g}" for edge in sorted(set(rows["edge"].dropna()))]
        grid.figure.update_xaxes(type="category", categoryorder="array", categoryarray=edges)
    share_y(grid, NATS, log_y)
    return grid.figure
