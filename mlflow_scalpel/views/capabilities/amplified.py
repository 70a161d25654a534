"""Whether what was gained was there before: gained problems that the base solved now and then."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.metrics.capabilities.intervals import Interval, share_interval
from mlflow_scalpel.views.capabilities.scores import (
    HOW_TO_MEASURE,
    STATUS_STYLES,
    benchmarks_in,
    capability_rows,
    cell,
    last_evaluated,
)
from mlflow_scalpel.views.common.panels import Panel, empty_figure, panels
from mlflow_scalpel.views.common.style import Run, filled
from mlflow_scalpel.views.common.table import Measurements
from mlflow_scalpel.views.common.text import esc, hover, reasons, share_text
from mlflow_scalpel.views.common.traces import NO_VALUE, error_bars
from mlflow_scalpel.views.common.view import SAMPLES, Placement, view

TITLE = "Of the problems gained, how many the base solved at least once"
_K = re.compile(r"k = (\d+)")


@dataclass(frozen=True)
class Bar:
    """The gained problems of one run on one benchmark at its last evaluated checkpoint."""

    run: Run
    step: float
    share: float  # solved by the base at least once; NaN with `why`
    ends: Interval
    n: float
    why: str
    text: str  # of the hover box


@view(
    Placement(
        "capabilities",
        3,
        "what was gained, amplified or new",
        "capabilities/amplified",
        SAMPLES,
    )
)
def amplified(data: Measurements, *, benchmark: str | None = None) -> go.Figure:
    """The gained problems in two parts, a bar per run, a panel per benchmark.

    Solved by the base at least once in its k samples (amplified), and unsolved by it in k, which
    is not unsolvable: k stands in the labels. At the run's last evaluated checkpoint: where nothing
    was gained at it, there is no bar. Bars are exact 95 % intervals of the share, over the gained
    problems. `benchmark` keeps one (`in/gsm8k/sampled`, or `gsm8k`). Reads `run_id, step, value,
    stderr, n, texts, reason` of `capabilities/amplified`, `capabilities/new`.

    Raises ValueError if columns are missing.
    """
    rows = capability_rows(data, "amplified", "new")
    kept = benchmarks_in(rows, benchmark)
    rows = rows[rows["benchmark"].isin([one.key for one in kept])]
    if not len(rows):
        return empty_figure(TITLE, f"This table has no gained problems: {HOW_TO_MEASURE}.")
    # Of one sample per problem there is no share, and its k would stand beside those of others.
    with_share = rows["value"].notna()
    texts = rows.loc[with_share if with_share.any() else rows.index, "reason"]
    ks = sorted({int(k) for text in texts for k in _K.findall(text)})
    samples = f"k = {' or '.join(map(str, ks))}" if ks else "k (not recorded)"
    names = (f"solved by the base at least once in {samples}", f"unsolved by it in {samples}")
    shown = data.runs_in(rows)
    order = [run.label for run in reversed(shown)]  # horizontal bars stack upwards
    grid = panels(
        [esc(one.title, 40) for one in kept],
        title=TITLE,
        names=[one.title for one in kept],
        subtitle="share of the problems gained by the last evaluated checkpoint; bars: exact "
        "95 % intervals. Unsolved in k samples is not unsolvable",
        columns=2,
        row_height=30 + 34 * len(shown),
        gap=86,
        spacing=0.08,
        left=min(230, 30 + 8 * max(map(len, order))),
        legend=names,
    )
    for one, panel in zip(kept, grid, strict=True):
        here = rows[rows["benchmark"] == one.key]
        every = [
            bar_of(data, here[here["run_id"] == run.run_id], run, one.title, samples)
            for run in reversed(shown)
        ]
        draw_shares(panel, [bar for bar in every if not pd.isna(bar.share)], names)
        note_missing(panel, [bar for bar in every if pd.isna(bar.share)], len(every))
        panel.y(
            type="category",
            categoryorder="array",
            categoryarray=order,
            # The names stand at the left panel only, which may have fewer bars.
            range=[-0.5, len(shown) - 0.5],
            showgrid=False,
            ticks="",
            showticklabels=panel.first,
        )
    grid.figure.update_xaxes(
        range=[0, 1.14],
        tickvals=[0, 0.25, 0.5, 0.75, 1],
        tickformat=".0%",
        title_text="share of the gained problems",
    )
    grid.figure.update_layout(barmode="overlay", bargap=0.35)
    return grid.figure


def bar_of(data: Measurements, own: pd.DataFrame, run: Run, title: str, samples: str) -> Bar:
    """The bar of one run on one benchmark."""
    step = last_evaluated(data, run.run_id) or 0.0
    last = own[own["step"] == step]
    share, error, n, why = cell(last, "amplified")
    text = hover(
        f"{run.name}: {title}",
        f"step {step:g}, {n:g} problems gained",
        f"{share_text(share, error, n)}: {why}",
        f"{1 - share:.3g} unsolved by the base in {samples}",
    )
    why = why if len(last) else "not evaluated on it"
    return Bar(run, step, share, share_interval(share, error, n), n, why, text)


def draw_shares(panel: Panel, bars: list[Bar], names: tuple[str, str]) -> None:
    """Both parts of each bar; Plotly's legend leaves out a trace without any."""
    labels, text = [bar.run.label for bar in bars], [bar.text for bar in bars]
    shares = [bar.share for bar in bars]
    rest = [1 - share for share in shares]
    solved = go.Bar(
        x=shares,
        y=labels,
        base=[0.0] * len(bars),
        orientation="h",
        error_x=error_bars(shares, [bar.ends for bar in bars], thickness=1.4, width=4),
        text=[],
        textposition="outside",
        cliponaxis=False,
        marker=filled(*STATUS_STYLES["kept"]),
    )
    unsolved = go.Bar(
        x=rest,
        y=labels,
        base=[1 - part for part in rest],
        orientation="h",
        text=[f"of {bar.n:g}" for bar in bars],
        textposition="outside",
        cliponaxis=False,
        marker=filled(*STATUS_STYLES["gained"]),
    )
    for name, trace in zip(names, (solved, unsolved), strict=True):
        trace.update(name=name, legendgroup=name)
        panel.add(trace, text, series=name, name=name if bars else None)


def note_missing(panel: Panel, missing: list[Bar], count: int) -> None:
    """Write why runs have no bar: where it would begin, or once where none of `count` has one."""
    by_reason: dict[str, list[Bar]] = {}
    for bar in missing:
        by_reason.setdefault(bar.why, []).insert(0, bar)
    if len(missing) == count:
        whys = [
            f"{', '.join(f'{bar.run.label} at step {bar.step:g}' for bar in own)}: {esc(why, 120)}"
            for why, own in by_reason.items()
        ]
        panel.note("no value: " + reasons(whys))
        return
    ordered = [bar for own in by_reason.values() for bar in own]
    if not ordered:
        return
    words = go.Scatter(
        x=[0.01] * len(ordered),
        y=[bar.run.label for bar in ordered],
        mode="text",
        text=[f"{esc(bar.why, 40)}, step {bar.step:g}" for bar in ordered],
        textposition="middle right",
        textfont={"size": 11},
        cliponaxis=False,
    )
    text = [hover(bar.run.name, f"step {bar.step:g}", bar.why) for bar in ordered]
    panel.add(words, text, series=NO_VALUE)
