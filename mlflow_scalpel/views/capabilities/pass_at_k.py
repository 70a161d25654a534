"""pass@k of base and checkpoints, and where the curves cross."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.capabilities.scores import (
    GROUP,
    HOW_TO_MEASURE,
    benchmarks_in,
    capability_rows,
    cell,
    last_evaluated,
)
from mlflow_scalpel.views.common.panels import Panel, empty_figure, panels
from mlflow_scalpel.views.common.style import BASE_COLOUR, TEXT_COLOUR, Run
from mlflow_scalpel.views.common.table import Measurements
from mlflow_scalpel.views.common.text import BARS, esc, hover, number, reasons, share_text
from mlflow_scalpel.views.common.traces import error_bars, share_intervals
from mlflow_scalpel.views.common.view import SAMPLES, Placement, view

TITLE = "pass@k: is one of k samples right?"
CURVE, BASE = "pass_at_k", "base_pass_at_k"
ENDS = ("crossing_k", "crossing_k_low", "crossing_k_high")
EARLIER = "earlier checkpoints"
CROSSING = "the order of the curves is reversed (bar: 95 % interval)"


@view(Placement("capabilities", 2, "pass@k", "capabilities/pass_at_k", SAMPLES))
def pass_at_k(
    data: Measurements, *, benchmark: str | None = None, step: float | None = None
) -> go.Figure:
    """pass@k against k (logarithmic), base and checkpoint, a panel per benchmark and run.

    Solid is the run's last evaluated checkpoint, or the one at `step`; thin dotted its first and
    the one in the middle. Bars are exact 95 % intervals over problems. A star marks the k at
    which the order of base and checkpoint is reversed, both leads told apart from chance, with its
    interval; without one the panel says "no crossing told apart from chance up to k = N".
    `benchmark` keeps one (`in/gsm8k/sampled`, or `gsm8k`). Reads `run_id, step, bin, value, stderr,
    n, texts, status, reason` of `capabilities/pass_at_k, base_pass_at_k, crossing_k,
    crossing_k_low, crossing_k_high`.

    Raises ValueError if columns are missing.
    """
    rows = capability_rows(data, CURVE, BASE, *ENDS)
    rows = rows.assign(k=[number(k) or 0.0 for k in rows["bin"]])
    # with k = 1 alone there is no curve
    many = set(rows.loc[(rows["k"] > 1) & rows["metric"].isin([GROUP + CURVE, GROUP + BASE]),
                        "benchmark"])  # fmt: skip
    kept = [one for one in benchmarks_in(rows, benchmark) if one.key in many]
    rows = rows[rows["benchmark"].isin([one.key for one in kept])]
    if not len(rows):
        return empty_figure(TITLE, f"This table has no curves of pass@k: {HOW_TO_MEASURE}.")
    shown = data.runs_in(rows)
    places = [(one, run) for one in kept for run in shown]
    grid = panels(
        [
            f"{esc(one.title, 34)}<br>{run.label}" if len(shown) > 1 else esc(one.title, 40)
            for one, run in places
        ],
        title=TITLE,
        names=[f"{one.title}: {run.name}" for one, run in places],
        subtitle=f"k samples of one problem; {BARS}",
        columns=min(3, max(2, len(shown))),
        row_height=210,
        gap=88,
        spacing=0.05,
        legend=["base", *(run.label for run in shown), EARLIER, CROSSING],
    )
    for (one, run), panel in zip(places, grid, strict=True):
        own = rows[(rows["benchmark"] == one.key) & (rows["run_id"] == run.run_id)]
        draw_curves(panel, own, run, last_evaluated(data, run.run_id) if step is None else step)
        panel.y(title_text="pass@k" if panel.first else None)
    grid.figure.update_xaxes(title_text="k", type="log", dtick=math.log10(2), tickformat="d")
    grid.figure.update_yaxes(range=[-0.03, 1.05])
    return grid.figure


def draw_curves(panel: Panel, own: pd.DataFrame, run: Run, step: float | None) -> None:
    """The curves of one run on one benchmark up to a step, and where their order is reversed."""
    every = own[own["metric"] == GROUP + CURVE]
    curve = every[every["value"].notna()]
    steps = sorted(set(curve["step"]))
    if step not in steps:
        missing = every[every["step"] == step]
        why = reasons(missing["reason"]) if len(missing) else "not evaluated on it"
        at_step = "" if step is None else f" at step {step:g}"
        panel.note(f"no curve{at_step}: {esc(why, 120)}")
        return
    before = [s for s in steps if s < step]
    for s in sorted({before[0], before[len(before) // 2]}) if before else []:
        line = {"color": run.colour, "dash": "dot", "width": 1}
        draw_curve(panel, curve[curve["step"] == s], f"{run.name}, step {s:g}", EARLIER, line)
    base = own[(own["metric"] == GROUP + BASE) & (own["step"] == step) & own["value"].notna()]
    line = {"color": BASE_COLOUR, "dash": "dash", "width": 2}
    draw_curve(panel, base, "base", "base", line, "square")
    points = curve[curve["step"] == step]
    line = {"color": run.colour, "dash": "solid", "width": 2}
    draw_curve(panel, points, f"{run.name}, step {step:g}", run.label, line, run.symbol)
    draw_crossing(panel, own[own["step"] == step], points, run)


def draw_curve(
    panel: Panel,
    points: pd.DataFrame,
    series: str,
    name: str,
    line: dict[str, object],
    symbol: str = "",
) -> None:
    """One curve; without a symbol it has neither markers nor bars."""
    points = points[points["k"] > 0].sort_values("k")
    if not len(points):
        return
    values = list(points["value"])
    bars = error_bars(values, share_intervals(points), thickness=1, width=2) if symbol else None
    trace = go.Scatter(
        x=list(points["k"]),
        y=values,
        error_y=bars,
        mode="lines+markers" if symbol else "lines",
        line=line,
        marker={"color": line["color"], "symbol": symbol or "circle", "size": 5},
    )
    text = [
        hover(series, f"k = {row.k:g}", share_text(row.value, row.stderr, row.n))  # type: ignore[arg-type]
        for row in points.itertuples()
    ]
    panel.add(trace, text, series=series, name=name)


def draw_crossing(panel: Panel, own: pd.DataFrame, points: pd.DataFrame, run: Run) -> None:
    """Mark the crossing, or say that there is none up to the last k."""
    (k, _, _, why), (low, *_), (high, *_) = (cell(own, metric) for metric in ENDS)
    most = max(points["k"])
    if math.isnan(k):
        statuses = set(own.loc[own["metric"] == GROUP + ENDS[0], "status"])
        text = f"no crossing told apart from chance up to k = {most:g}"
        if "none found" not in statuses:
            text = f"crossing not measured: {esc(why, 60)}"
        # Where the curves lie at the bottom, a capability was lost: the words stand above them.
        y = 0.45 if points["value"].min() < 0.2 else 0.04
        words = go.Scatter(
            x=[most],
            y=[y],
            mode="text",
            text=[text],
            textposition="top left",
            name=CROSSING,  # which its entry in the legend hides, too
            legendgroup=CROSSING,
            line={"color": TEXT_COLOUR},
            marker={"symbol": "star", "size": 13, "color": TEXT_COLOUR},
        )
        panel.add(words, [hover(run.name, text, why)], series=text)
        return
    y = float(points["value"].loc[(points["k"] - k).abs().idxmin()])
    open_ended = math.isnan(high)
    ends = f"{low:g} to {f'beyond {most:g}' if open_ended else f'{high:g}'}"
    text = f"crossing at k = {k:g}" + ("" if math.isnan(low) else f" ({ends})")
    bars = None
    if not math.isnan(low):
        right = (most if open_ended else high) - k
        bars = {"type": "data", "symmetric": False, "array": [right], "arrayminus": [k - low]}
        bars |= {"thickness": 1.5, "width": 5, "color": TEXT_COLOUR}
    star = go.Scatter(
        x=[k],
        y=[y],
        error_x=bars,
        mode="markers",
        text=[text],
        textposition="top center",
        line={"color": TEXT_COLOUR},
        marker={"symbol": "star", "size": 13, "color": TEXT_COLOUR},
    )
    panel.add(star, [hover(run.name, text, why)], series=text, name=CROSSING)
