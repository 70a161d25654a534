"""The ledger: problems kept, gained, lost and never solved, over training, beside chance."""

from __future__ import annotations

import itertools
import math

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.bars import between, corrected, error_bars, p_text
from mlflow_scalpel.views.capabilities import (
    CHANCE_COLOUR,
    EVALUATE,
    GROUP,
    STATUS_LOOKS,
    STATUS_OPACITY,
    STATUS_WORDS,
    STATUSES,
    Benchmark,
    benchmarks_in,
    capability_rows,
    cell,
)
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
from mlflow_scalpel.views.xaxis import CHOICES, lacking_words, set_x, x_of

TITLE = "Ledger: which problems were kept, lost, gained"
CHANCE = "chance: the base against itself"
SIDES = ("lost", "gained")
TESTS = ("lost_p", "gained_p", "mcnemar_p")


def ledger(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    benchmark: str | None = None,
    x: str = "step",
) -> go.Figure:
    """Problems by what became of them, a bar a checkpoint, a panel a benchmark and run.

    From the foot up: kept, lost (both solved by the base), gained, never. Short marks stand where
    lost and gained would end if the checkpoint were the base with another sample, that is
    `lost_null` below and `gained_null` above the border; their bars hold the numbers that are not
    told apart from chance (exact test, 5 %).
    `benchmark` keeps one (`in/gsm8k/sampled`, or `gsm8k`); `x` is "step", "fraction", "tokens",
    "flops" or "hours" (`xaxis.x_of`). Reads `run_id, step, value, stderr, n, texts, reason` of
    `capabilities/kept, lost, gained, never`, of `lost_null, gained_null` with `_low` and `_high`,
    and of `lost_p, gained_p, mcnemar_p`.

    Raises ValueError for another `x`, or if columns are missing.
    """
    if x not in CHOICES:
        raise ValueError(f"x is {x!r}: pass one of {', '.join(map(repr, CHOICES))}")
    clean = read(table)
    looks = styles(clean, runs)
    nulls = [f"{side}_null{end}" for side in SIDES for end in ("", "_low", "_high")]
    rows = capability_rows(clean, *STATUSES, *nulls, *TESTS)
    shown_benchmarks = benchmarks_in(rows, benchmark)
    rows = rows[rows["benchmark"].isin([one.key for one in shown_benchmarks])]
    if not len(rows):
        return nothing(TITLE, f"This table has no ledger of problems: {EVALUATE}.")
    on_x = x_of(clean, rows, x, runs)
    rows = rows.assign(where=on_x.where)
    lacking = lacking_words(on_x, looks)
    rows = rows[rows["where"].notna()]
    if not len(rows):
        return nothing(TITLE, f"No checkpoint has a place on this axis: {lacking}")
    shown = in_rows(looks, rows)
    places = [(one, run) for one in shown_benchmarks for run in shown]
    some_null = rows.loc[rows["metric"].str.endswith("_null"), "value"].notna().any()
    grid = panels(
        [
            f"{esc(one.words, 34)}<br>{run.label}" if len(shown) > 1 else esc(one.words, 40)
            for one, run in places
        ],
        title=TITLE,
        subtitle="number of problems, by the first sample of base and checkpoint. "
        + (
            "Lost or gained beyond the bars of the short marks is more than chance (5 %)"
            if some_null
            else "No null in the table: the base has one sample a problem, so what is chance is "
            "not known"
        )
        + (f"; {lacking}" if lacking else ""),
        columns=min(3, max(2, len(shown))),
        row_height=190,
        gap=88,
        spacing=0.05,
        legend=[*STATUS_WORDS.values(), *([CHANCE] if some_null else [])],
    )
    figure, listed = grid.figure, set[str]()
    tests = int(rows.loc[rows["metric"].isin([GROUP + one for one in TESTS]), "value"].count())
    for (one, run), at in zip(places, grid.at, strict=True):
        own = rows[(rows["benchmark"] == one.key) & (rows["run_id"] == run.run_id)]
        if len(own):
            one_panel(figure, at, own, one, run, listed, tests)
        if not len(own) or own.loc[own["metric"].str.endswith("kept"), "value"].isna().all():
            why = reasons(own["reason"]) if len(own) else "not evaluated on it"
            remark(figure, f"no value: {esc(why, 120)}", *at)
        figure.update_yaxes(title_text="problems" if at[1] == 1 else None, row=at[0], col=at[1])
    set_x(figure, x)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(barmode="overlay", bargap=0.2)
    return figure


def one_panel(
    figure: go.Figure,
    at: tuple[int, int],
    own: pd.DataFrame,
    one: Benchmark,
    run: Run,
    listed: set[str],
    tests: int,
) -> None:
    """The bars of one run on one benchmark, and the marks of chance."""
    steps = [(float(step), group) for step, group in own.groupby("step", sort=True)]  # type: ignore[arg-type]
    where = [float(group["where"].iloc[0]) for _, group in steps]
    counts = [{s: cell(group, s)[0] for s in STATUSES} for _, group in steps]
    said = [
        hover(f"{run.name}: {one.words}", f"step {step:g}", *told(group, tests))
        for step, group in steps
    ]
    gaps = [b - a for a, b in itertools.pairwise(where) if b > a]
    width = 0.8 * min(gaps, default=max(where[0], 1.0) * 0.5)
    foot = [0.0 for _ in steps]
    panel = f"{one.words}: {run.name}"
    for status in STATUSES:
        heights = [count[status] for count in counts]
        colour, pattern = STATUS_LOOKS[status]
        name = STATUS_WORDS[status]
        figure.add_trace(
            go.Bar(
                x=where,
                y=[None if math.isnan(height) else height for height in heights],
                base=list(foot),
                width=width,
                name=name,
                legendgroup=name,
                showlegend=name not in listed,
                marker=filled(colour, pattern),
                opacity=STATUS_OPACITY.get(status, 1.0),
                customdata=said,
                hovertemplate="%{customdata}<extra></extra>",
                meta={
                    "panel": panel,
                    "series": status,
                    # What a click on a bar is to open.
                    "run": run.run_id,
                    "benchmark": one.key,
                    "steps": [f"{step:g}" for step, _ in steps],
                },
            ),
            row=at[0],
            col=at[1],
        )
        listed.add(name)
        foot = [a + (0.0 if math.isnan(b) else b) for a, b in zip(foot, heights, strict=True)]
    for metric, sign in (("lost_null", -1), ("gained_null", 1)):
        solved = [count["kept"] + count["lost"] for count in counts]
        marks = [
            [foot + sign * cell(group, metric + end)[0] for end in ("", "_low", "_high")]
            for foot, (_, group) in zip(solved, steps, strict=True)
        ]
        middles = [None if math.isnan(mark) else mark for mark, *_ in marks]
        ends = [(min(low, high), max(low, high)) for _, low, high in marks]
        if not any(height is not None for height in middles):
            continue
        figure.add_trace(
            go.Scatter(
                x=where,
                y=middles,
                error_y=error_bars(middles, ends, thickness=1.5, width=4, color=CHANCE_COLOUR),
                mode="markers",
                name=CHANCE,
                legendgroup=CHANCE,
                showlegend=CHANCE not in listed,
                marker={
                    "symbol": "line-ew",
                    "size": 20,
                    "line": {"width": 2.5, "color": CHANCE_COLOUR},
                },
                customdata=said,
                hovertemplate="%{customdata}<extra></extra>",
                meta={"panel": panel, "series": metric},
            ),
            row=at[0],
            col=at[1],
        )
        listed.add(CHANCE)


def told(group: pd.DataFrame, tests: int) -> list[str]:
    """What one checkpoint's rows say, a line a number; `tests` p values stand in the figure."""
    lines = []
    for status in STATUSES:
        value, _, n, why = cell(group, status)
        line = f"{status}: {why}" if math.isnan(value) else f"{status}: {value:g} of {n:g}"
        if status in SIDES:
            null, _, _, unknown = cell(group, f"{status}_null")
            low, high, p = (
                cell(group, f"{status}{end}")[0] for end in ("_null_low", "_null_high", "_p")
            )
            if math.isnan(null):
                line += f"; by chance not known: {unknown}"
            else:
                line += f"; by chance {null:.3g} ({between(low, high)})"
            line += "" if math.isnan(p) else f", {p_text(p)}"
        lines.append(line)
    p = cell(group, "mcnemar_p")[0]
    if not math.isnan(p):
        lines.append(f"McNemar's exact test of gained against lost: {p_text(p)}")
    if tests:
        lines.append(f"p values are {corrected(tests)}")
    return lines
