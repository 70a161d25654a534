"""Whether what was gained was there before: gained problems that the base solved now and then."""

from __future__ import annotations

import re

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.metrics.capabilities.intervals import Interval, share_interval
from mlflow_scalpel.views.bars import error_bars, share_words
from mlflow_scalpel.views.capabilities import (
    EVALUATE,
    STATUS_LOOKS,
    benchmarks_in,
    capability_rows,
    cell,
    last_evaluated,
)
from mlflow_scalpel.views.lines import NO_VALUE
from mlflow_scalpel.views.style import (
    Run,
    esc,
    filled,
    hover,
    in_rows,
    nothing,
    panels,
    remark,
    styles,
)
from mlflow_scalpel.views.tidy import read, reasons

TITLE = "Of the problems gained, how many the base solved at least once"
_K = re.compile(r"k = (\d+)")


def amplified(
    table: pd.DataFrame, runs: pd.DataFrame | None = None, *, benchmark: str | None = None
) -> go.Figure:
    """The gained problems in two parts, a bar a run, a panel a benchmark, at the last checkpoint.

    Solved by the base at least once in its k samples (amplified), and unsolved by it in k, which
    is not unsolvable: k stands in the labels. The last checkpoint is the run's last evaluated one:
    where nothing was gained at it, there is no bar. Bars are exact 95 % intervals of the share,
    over the gained problems. `benchmark` keeps one (`in/gsm8k/sampled`, or `gsm8k`). Reads `run_id,
    step, value, stderr, n, texts, reason` of `capabilities/amplified`, `capabilities/new`.

    Raises ValueError if columns are missing.
    """
    clean = read(table)
    looks = styles(clean, runs)
    rows = capability_rows(clean, "amplified", "new")
    kept = benchmarks_in(rows, benchmark)
    rows = rows[rows["benchmark"].isin([one.key for one in kept])]
    if not len(rows):
        return nothing(TITLE, f"This table has no gained problems: {EVALUATE}.")
    # Of one sample a problem there is no share, and its k would stand beside those of others.
    with_share = rows["value"].notna()
    told = rows.loc[with_share if with_share.any() else rows.index, "reason"]
    ks = sorted({int(k) for text in told for k in _K.findall(text)})
    samples = f"k = {' or '.join(map(str, ks))}" if ks else "k (not recorded)"
    names = (f"solved by the base at least once in {samples}", f"unsolved by it in {samples}")
    shown = in_rows(looks, rows)
    grid = panels(
        [esc(one.words, 40) for one in kept],
        title=TITLE,
        subtitle="share of the problems gained by the last evaluated checkpoint; bars: exact "
        "95 % intervals. Unsolved in k samples is not unsolvable",
        columns=2,
        row_height=30 + 34 * len(shown),
        gap=86,
        spacing=0.08,
        left=min(230, 30 + 8 * max(len(run.label) for run in shown)),
        legend=names,
    )
    figure, listed = grid.figure, set[str]()
    ends = {run.run_id: last_evaluated(clean, run.run_id) for run in shown}
    for one, at in zip(kept, grid.at, strict=True):
        here = rows[rows["benchmark"] == one.key]
        bars: list[tuple[str, float, Interval, float, str]] = []
        missing: dict[str, list[tuple[Run, float]]] = {}
        for run in reversed(shown):  # horizontal bars stack upwards
            own = here[here["run_id"] == run.run_id]
            end = ends[run.run_id] or 0.0
            last = own[own["step"] == end]
            share, error, n, why = cell(last, "amplified")
            if pd.isna(share):
                why = why if len(last) else "not evaluated on it"
                missing.setdefault(why, []).insert(0, (run, end))
                continue
            said = hover(
                f"{run.name}: {one.words}",
                f"step {end:g}, {n:g} problems gained",
                f"{share_words(share, error, n)}: {why}",
                f"{1 - share:.3g} unsolved by the base in {samples}",
            )
            bars.append((run.label, share, share_interval(share, error, n), n, said))
        rest = [1 - share for _, share, *_ in bars]
        parts = (
            ([share for _, share, *_ in bars], [0.0] * len(bars), "kept"),
            (rest, [1 - part for part in rest], "gained"),
        )
        for name, (width, foot, look) in zip(names, parts, strict=True):
            first = name == names[0]
            figure.add_trace(
                go.Bar(
                    x=width,
                    y=[label for label, *_ in bars],
                    base=foot,
                    orientation="h",
                    error_x=error_bars(
                        width, [own for _, _, own, *_ in bars], thickness=1.4, width=4
                    )
                    if first
                    else None,
                    text=[] if first else [f"of {n:g}" for *_, n, _ in bars],
                    textposition="outside",
                    cliponaxis=False,
                    name=name,
                    legendgroup=name,
                    showlegend=bool(bars) and name not in listed,
                    marker=filled(*STATUS_LOOKS[look]),
                    customdata=[said for *_, said in bars],
                    hovertemplate="%{customdata}<extra></extra>",
                    meta={"panel": one.words, "series": name},
                ),
                row=at[0],
                col=at[1],
            )
            if bars:  # Plotly's legend leaves out a trace without any
                listed.add(name)
        whys = [
            f"{', '.join(f'{run.label} at step {end:g}' for run, end in own)}: {esc(why, 120)}"
            for why, own in missing.items()
        ]
        if not bars:
            remark(figure, "no value: " + reasons(whys), *at)
        else:
            words(figure, at, one.words, missing)
        figure.update_yaxes(
            type="category",
            categoryorder="array",
            categoryarray=[run.label for run in reversed(shown)],
            # The names stand at the left panel only, which may have fewer bars.
            range=[-0.5, len(shown) - 0.5],
            showgrid=False,
            ticks="",
            showticklabels=at[1] == 1,
            row=at[0],
            col=at[1],
        )
    figure.update_xaxes(range=[0, 1.14], tickvals=[0, 0.25, 0.5, 0.75, 1], tickformat=".0%")
    figure.update_xaxes(title_text="share of the gained problems")
    figure.update_layout(barmode="overlay", bargap=0.35)
    return figure


def words(
    figure: go.Figure,
    at: tuple[int, int],
    panel: str,
    missing: dict[str, list[tuple[Run, float]]],
) -> None:
    """Write why a run has no bar where its bar would begin."""
    gone = [(run, end, why) for why, own in missing.items() for run, end in own]
    if not gone:
        return
    figure.add_trace(
        go.Scatter(
            x=[0.01] * len(gone),
            y=[run.label for run, *_ in gone],
            mode="text",
            text=[f"{esc(why, 40)}, step {end:g}" for _, end, why in gone],
            textposition="middle right",
            textfont={"size": 11},
            cliponaxis=False,
            showlegend=False,
            customdata=[hover(run.name, f"step {end:g}", why) for run, end, why in gone],
            hovertemplate="%{customdata}<extra></extra>",
            meta={"panel": panel, "series": NO_VALUE},
        ),
        row=at[0],
        col=at[1],
    )
