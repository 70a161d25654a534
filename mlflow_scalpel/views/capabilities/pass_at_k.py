"""pass@k of base and checkpoints, and where the curves cross."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.bars import BARS, error_bars, intervals_of, share_words
from mlflow_scalpel.views.capabilities import (
    EVALUATE,
    GROUP,
    Benchmark,
    benchmarks_in,
    capability_rows,
    cell,
    last_evaluated,
)
from mlflow_scalpel.views.style import (
    BASE_COLOUR,
    TEXT_COLOUR,
    Run,
    esc,
    hover,
    in_rows,
    nothing,
    panels,
    remark,
    styles,
)
from mlflow_scalpel.views.tidy import number, read, reasons

TITLE = "pass@k: is one of k samples right?"
CURVE, BASE = "pass_at_k", "base_pass_at_k"
ENDS = ("crossing_k", "crossing_k_low", "crossing_k_high")
CROSSING = "the order of the curves is reversed (bar: 95 % interval)"


def pass_at_k(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    benchmark: str | None = None,
    step: float | None = None,
) -> go.Figure:
    """pass@k against k (logarithmic), base and checkpoint, a panel a benchmark and run.

    Solid is the run's last evaluated checkpoint, or the one at `step`; thin dotted its first and
    the one in the middle. Bars are exact 95 % intervals over problems. A star marks the k at
    which the order of base and checkpoint is reversed, both leads told apart from chance, with its
    interval; without one the panel says "no crossing told apart from chance up to k = N".
    `benchmark` keeps one (`in/gsm8k/sampled`, or `gsm8k`). Reads `run_id, step, bin, value, stderr,
    n, texts, status, reason` of `capabilities/pass_at_k, base_pass_at_k, crossing_k,
    crossing_k_low, crossing_k_high`.

    Raises ValueError if columns are missing.
    """
    clean = read(table)
    looks = styles(clean, runs)
    rows = capability_rows(clean, CURVE, BASE, *ENDS)
    # with k = 1 alone there is no curve
    curves = rows[rows["metric"].isin([GROUP + CURVE, GROUP + BASE])]
    wide = curves.assign(k=[number(k) or 0.0 for k in curves["bin"]])
    many = set(wide.loc[wide["k"] > 1, "benchmark"])
    kept = [one for one in benchmarks_in(rows, benchmark) if one.key in many]
    rows = rows[rows["benchmark"].isin([one.key for one in kept])]
    if not len(rows):
        return nothing(TITLE, f"This table has no curves of pass@k: {EVALUATE}.")
    shown = in_rows(looks, rows)
    places = [(one, run) for one in kept for run in shown]
    grid = panels(
        [
            f"{esc(one.words, 34)}<br>{run.label}" if len(shown) > 1 else esc(one.words, 40)
            for one, run in places
        ],
        title=TITLE,
        subtitle=f"k samples of one problem; {BARS}",
        columns=min(3, max(2, len(shown))),
        row_height=210,
        gap=88,
        spacing=0.05,
        legend=["base", *(run.label for run in shown), "earlier checkpoints", CROSSING],
    )
    figure, listed = grid.figure, set[str]()
    for (one, run), at in zip(places, grid.at, strict=True):
        own = rows[(rows["benchmark"] == one.key) & (rows["run_id"] == run.run_id)]
        one_panel(figure, at, own, one, run, listed, step, last_evaluated(clean, run.run_id))
        first = at[1] == 1
        figure.update_yaxes(title_text="pass@k" if first else None, row=at[0], col=at[1])
    figure.update_xaxes(title_text="k", type="log", dtick=math.log10(2), tickformat="d")
    figure.update_yaxes(range=[-0.03, 1.05])
    return figure


def one_panel(
    figure: go.Figure,
    at: tuple[int, int],
    own: pd.DataFrame,
    one: Benchmark,
    run: Run,
    listed: set[str],
    step: float | None,
    end: float | None,
) -> None:
    """The curves of one run on one benchmark, and what became of their order.

    At `step`, or at `end`, the run's last evaluated checkpoint.
    """
    curve = own[(own["metric"] == GROUP + CURVE) & own["value"].notna()]
    steps = sorted(set(curve["step"]))
    last = end if step is None else step
    if last not in steps:
        missing = own[(own["metric"] == GROUP + CURVE) & (own["step"] == last)]
        why = reasons(missing["reason"]) if len(missing) else "not evaluated on it"
        at_last = "" if last is None else f" at step {last:g}"
        remark(figure, f"no curve{at_last}: {esc(why, 120)}", *at)
        return
    before = [s for s in steps if s < last]
    thin = sorted({before[0], before[len(before) // 2]}) if before else []
    panel = f"{one.words}: {run.name}"
    for s in thin:
        points = curve[curve["step"] == s]
        line(figure, at, points, f"{run.name}, step {s:g}", panel, listed, "earlier checkpoints",
             {"color": run.colour, "dash": "dot", "width": 1}, "", bars=False)  # fmt: skip
    base = own[(own["metric"] == GROUP + BASE) & (own["step"] == last) & own["value"].notna()]
    line(figure, at, base, "base", panel, listed, "base",
         {"color": BASE_COLOUR, "dash": "dash", "width": 2}, "square")  # fmt: skip
    points = curve[curve["step"] == last]
    line(figure, at, points, f"{run.name}, step {last:g}", panel, listed, run.label,
         {"color": run.colour, "dash": "solid", "width": 2}, run.symbol)  # fmt: skip
    crossing(figure, at, own[own["step"] == last], points, panel, listed, run)


def line(
    figure: go.Figure,
    at: tuple[int, int],
    points: pd.DataFrame,
    series: str,
    panel: str,
    listed: set[str],
    name: str,
    look: dict[str, object],
    symbol: str,
    *,
    bars: bool = True,
) -> None:
    """One curve; `look` is Plotly's of the line, and without a symbol there are no markers."""
    points = points.assign(k=[number(k) for k in points["bin"]]).dropna(subset="k").sort_values("k")
    if not len(points):
        return
    ends = intervals_of(points)
    figure.add_trace(
        go.Scatter(
            x=list(points["k"]),
            y=list(points["value"]),
            error_y=error_bars(list(points["value"]), ends, thickness=1, width=2) if bars else None,
            mode="lines+markers" if symbol else "lines",
            name=name,
            legendgroup=name,
            showlegend=name not in listed,
            line=look,
            marker={"color": look["color"], "symbol": symbol or "circle", "size": 5},
            customdata=[
                hover(series, f"k = {row.k:g}", share_words(row.value, row.stderr, row.n))
                for row in points.itertuples()
            ],
            hovertemplate="%{customdata}<extra></extra>",
            meta={"panel": panel, "series": series},
        ),
        row=at[0],
        col=at[1],
    )
    listed.add(name)


def crossing(
    figure: go.Figure,
    at: tuple[int, int],
    own: pd.DataFrame,
    points: pd.DataFrame,
    panel: str,
    listed: set[str],
    run: Run,
) -> None:
    """Mark the crossing, or say that there is none up to the last k."""
    ks = [number(k) or 0.0 for k in points["bin"]]
    (k, _, _, why), (low, *_), (high, *_) = (cell(own, metric) for metric in ENDS)
    most = max(ks)
    if math.isnan(k):
        statuses = set(own.loc[own["metric"] == GROUP + ENDS[0], "status"])
        text = f"no crossing told apart from chance up to k = {most:g}"
        if "none found" not in statuses:
            text = f"crossing not measured: {esc(why, 60)}"
        said = hover(run.name, text, why)
        # Where the curves lie at the bottom, a capability was lost: the words stand above them.
        y, x = (0.45 if points["value"].min() < 0.2 else 0.04), most
        mode, position = "text", "top left"
        bars = None
    else:
        near = min(range(len(ks)), key=lambda i: abs(ks[i] - k))
        y, x = float(points["value"].iloc[near]), k
        open_ended = math.isnan(high)
        ends = f"{low:g} to {'beyond ' + format(most, 'g') if open_ended else format(high, 'g')}"
        text = f"crossing at k = {k:g}" if math.isnan(low) else f"crossing at k = {k:g} ({ends})"
        said = hover(run.name, text, why)
        mode, position = "markers", "top center"
        bars = None
        if not math.isnan(low):
            right = (most if open_ended else high) - k
            bars = {"type": "data", "symmetric": False, "array": [right], "arrayminus": [k - low]}
            bars |= {"thickness": 1.5, "width": 5, "color": TEXT_COLOUR}
    figure.add_trace(
        go.Scatter(
            x=[x],
            y=[y],
            error_x=bars,
            mode=mode,
            text=[text],
            textposition=position,
            name=CROSSING,
            legendgroup=CROSSING,
            showlegend=mode == "markers" and CROSSING not in listed,
            line={"color": TEXT_COLOUR},
            marker={"symbol": "star", "size": 13, "color": TEXT_COLOUR},
            customdata=[said],
            hovertemplate="%{customdata}<extra></extra>",
            meta={"panel": panel, "series": text},
        ),
        row=at[0],
        col=at[1],
    )
    if mode == "markers":
        listed.add(CROSSING)
