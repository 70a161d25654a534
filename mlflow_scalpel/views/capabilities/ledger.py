"""The ledger: problems kept, gained, lost and never solved, over training, beside chance."""

from __future__ import annotations

import itertools
import math

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.capabilities.scores import (
    CHANCE_COLOUR,
    GROUP,
    HOW_TO_MEASURE,
    STATUS_OPACITY,
    STATUS_STYLES,
    STATUS_WORDS,
    STATUSES,
    Benchmark,
    benchmarks_in,
    capability_rows,
    cell,
)
from mlflow_scalpel.views.common.axis import CHOICES, check_choice, place, set_x
from mlflow_scalpel.views.common.panels import Panel, empty_figure, panels
from mlflow_scalpel.views.common.style import Run, filled
from mlflow_scalpel.views.common.table import Measurements
from mlflow_scalpel.views.common.text import (
    between,
    corrected,
    esc,
    hover,
    joined,
    p_text,
    reasons,
)
from mlflow_scalpel.views.common.traces import error_bars
from mlflow_scalpel.views.common.view import EVALUATE, Placement, X, view

TITLE = "Ledger: which problems were kept, lost, gained"
CHANCE = "chance: the base against itself"
SIDES = ("lost", "gained")
TESTS = ("lost_p", "gained_p", "mcnemar_p")


@view(
    Placement(
        "capabilities", 1, "the ledger of problems", "capabilities/kept", EVALUATE, settings=X
    )
)
def ledger(data: Measurements, *, benchmark: str | None = None, x: str = "step") -> go.Figure:
    """Problems by what became of them, a bar per checkpoint, a panel per benchmark and run.

    From the foot up: kept, lost (both solved by the base), gained, never. Short marks stand where
    lost and gained would end if the checkpoint were the base with another sample, that is
    `lost_null` below and `gained_null` above the border; their bars hold the numbers that are not
    told apart from chance (exact test, 5 %).
    `benchmark` keeps one (`in/gsm8k/sampled`, or `gsm8k`); `x` is "step", "fraction", "tokens",
    "flops" or "hours" (`axis.place`). Reads `run_id, step, value, stderr, n, texts, reason` of
    `capabilities/kept, lost, gained, never`, of `lost_null, gained_null` with `_low` and `_high`,
    and of `lost_p, gained_p, mcnemar_p`.

    Raises ValueError for another `x`, or if columns are missing.
    """
    check_choice("x", x, CHOICES)
    nulls = [f"{side}_null{end}" for side in SIDES for end in ("", "_low", "_high")]
    rows = capability_rows(data, *STATUSES, *nulls, *TESTS)
    kept = benchmarks_in(rows, benchmark)
    rows = rows[rows["benchmark"].isin([one.key for one in kept])]
    if not len(rows):
        return empty_figure(TITLE, f"This table has no ledger of problems: {HOW_TO_MEASURE}.")
    placed = place(data, rows, x)
    rows = placed.rows[placed.rows["x"].notna()]
    if not len(rows):
        return empty_figure(TITLE, f"No checkpoint has a place on this axis: {placed.note}")
    shown = data.runs_in(rows)
    places = [(one, run) for one in kept for run in shown]
    some_null = rows.loc[rows["metric"].str.endswith("_null"), "value"].notna().any()
    chance = (
        "Lost or gained beyond the bars of the short marks is more than chance (5 %)"
        if some_null
        else "No null in the table: the base has one sample per problem, so what is chance is not "
        "known"
    )
    grid = panels(
        [
            f"{esc(one.title, 34)}<br>{run.label}" if len(shown) > 1 else esc(one.title, 40)
            for one, run in places
        ],
        title=TITLE,
        names=[f"{one.title}: {run.name}" for one, run in places],
        subtitle="number of problems, by the first sample of base and checkpoint. "
        + joined(chance, placed.note),
        columns=min(3, max(2, len(shown))),
        row_height=190,
        gap=88,
        spacing=0.05,
        legend=[*STATUS_WORDS.values(), *([CHANCE] if some_null else [])],
    )
    tests = int(rows.loc[rows["metric"].isin([GROUP + one for one in TESTS]), "value"].count())
    for (one, run), panel in zip(places, grid, strict=True):
        own = rows[(rows["benchmark"] == one.key) & (rows["run_id"] == run.run_id)]
        if len(own):
            draw_ledger(panel, own, one, run, tests)
        if own.loc[own["metric"].str.endswith("kept"), "value"].isna().all():
            why = reasons(own["reason"]) if len(own) else "not evaluated on it"
            panel.note(f"no value: {esc(why, 120)}")
        panel.y(title_text="problems" if panel.first else None)
    set_x(grid.figure, x)
    grid.figure.update_yaxes(rangemode="tozero")
    grid.figure.update_layout(barmode="overlay", bargap=0.2)
    return grid.figure


def draw_ledger(panel: Panel, own: pd.DataFrame, one: Benchmark, run: Run, tests: int) -> None:
    """The bars of one run on one benchmark, and the marks of chance."""
    steps = [(float(step), group) for step, group in own.groupby("step", sort=True)]  # type: ignore[arg-type]
    where = [float(group["x"].iloc[0]) for _, group in steps]
    counts = [{status: cell(group, status)[0] for status in STATUSES} for _, group in steps]
    text = [
        hover(f"{run.name}: {one.title}", f"step {step:g}", *ledger_text(group, tests))
        for step, group in steps
    ]
    gaps = [b - a for a, b in itertools.pairwise(where) if b > a]
    # What a click on a bar is to open.
    opens = {
        "run": run.run_id,
        "benchmark": one.key,
        "steps": [f"{step:g}" for step, _ in steps],
    }
    foot = [0.0 for _ in steps]
    for status in STATUSES:
        heights = [count[status] for count in counts]
        bars = go.Bar(
            x=where,
            y=[None if math.isnan(height) else height for height in heights],
            base=foot,
            width=0.8 * min(gaps, default=max(where[0], 1.0) * 0.5),
            marker=filled(*STATUS_STYLES[status]),
            opacity=STATUS_OPACITY.get(status, 1.0),
        )
        panel.add(bars, text, series=status, name=STATUS_WORDS[status], **opens)
        foot = [a + (0.0 if math.isnan(b) else b) for a, b in zip(foot, heights, strict=True)]
    for metric, sign in (("lost_null", -1), ("gained_null", 1)):
        solved = [count["kept"] + count["lost"] for count in counts]
        marks = [
            [border + sign * cell(group, metric + end)[0] for end in ("", "_low", "_high")]
            for border, (_, group) in zip(solved, steps, strict=True)
        ]
        middles = [None if math.isnan(mark) else mark for mark, *_ in marks]
        if all(height is None for height in middles):
            continue
        ends = [(min(low, high), max(low, high)) for _, low, high in marks]
        line = {"width": 2.5, "color": CHANCE_COLOUR}
        trace = go.Scatter(
            x=where,
            y=middles,
            error_y=error_bars(middles, ends, thickness=1.5, width=4, color=CHANCE_COLOUR),
            mode="markers",
            marker={"symbol": "line-ew", "size": 20, "line": line},
        )
        panel.add(trace, text, series=metric, name=CHANCE)


def ledger_text(group: pd.DataFrame, tests: int) -> list[str]:
    """The rows of one checkpoint, a line per number; `tests` p values stand in the figure."""
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
