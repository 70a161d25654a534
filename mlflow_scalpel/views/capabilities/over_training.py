"""Scores over training: a panel per skill, and gain in-domain against loss elsewhere."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.metrics.capabilities.intervals import UNKNOWN, share_interval
from mlflow_scalpel.views.capabilities.changes import change_of
from mlflow_scalpel.views.capabilities.scores import (
    DOMAINS,
    KINDS,
    PUBLISHED,
    before,
    of_key,
    score_rows,
    shared_skills,
)
from mlflow_scalpel.views.common.axis import place, set_x
from mlflow_scalpel.views.common.panels import Panel, empty_figure, panels
from mlflow_scalpel.views.common.style import BASE_COLOUR, LINE_COLOUR, Run
from mlflow_scalpel.views.common.table import Measurements, ordered
from mlflow_scalpel.views.common.text import (
    BARS,
    NO_BARS,
    between,
    esc,
    hover,
    joined,
    share_text,
)
from mlflow_scalpel.views.common.traces import Line, draw, error_bars, legend_of
from mlflow_scalpel.views.common.view import EVALUATE, Placement, X, view

TITLE = "Scores over training"
IN_OUT_TITLE = "In-domain against out-of-domain change"


@view(Placement("scores", 2, "scores over training", "eval/", EVALUATE, settings=X))
def scores_over_training(
    data: Measurements, *, kind: str | None = None, x: str = "step", log_x: bool = False
) -> go.Figure:
    """Accuracy against training, a panel per skill and kind, a line per run.

    In-domain panels come first; every line starts at the base (step 0). `kind` keeps one kind
    ("greedy" or "sampled"). `x` is "step", "fraction", "tokens", "flops" or "hours", as in
    `axis.place`; on a logarithmic axis (`log_x`) the base, at 0, has no place. Bars are exact
    95 % intervals over problems. Reads `base, base_digest, run_id, algorithm, step, metric,
    value, stderr, n, status, reason` of `eval/<in|out>/<skill>/<kind>`; an evaluation without a
    value draws a gap.

    Raises ValueError for another `x`, or if columns are missing.
    """
    rows = score_rows(data)
    published = data.stepless(data.styles)
    if x != "fraction":  # a published model of unknown training is the end of its run, no more
        rows = rows[~rows["run_id"].isin(published)]
    placed = place(data, rows, x)
    rows = placed.rows if kind is None else placed.rows[placed.rows["kind"] == kind]
    if not len(rows[rows["step"] > 0]) and published:
        return empty_figure(TITLE, "No step is recorded for these runs: pass x='fraction'.")
    if not len(rows):
        which = "" if kind is None else f" of the kind {esc(kind, 24)}"
        return empty_figure(TITLE, f"This table has no rows of eval/in/... or eval/out/...{which}")
    shown = data.runs_in(rows)
    places = [
        (d, skill, k)
        for d in ordered(rows["domain"], tuple(DOMAINS))
        for skill in ordered(rows.loc[rows["domain"] == d, "skill"], ())
        for k in ordered(rows.loc[(rows["domain"] == d) & (rows["skill"] == skill), "kind"], KINDS)
    ]
    grid = panels(
        [f"{DOMAINS[d]}<br>{esc(skill, 18)}, {esc(k, 12)}" for d, skill, k in places],
        title=TITLE,
        names=[f"{DOMAINS[d]}: {skill}, {k}" for d, skill, k in places],
        subtitle=joined(
            BARS if rows["stderr"].notna().any() else NO_BARS,
            "logarithmic: without the base, at 0" if log_x else "the first point is the base",
            placed.note,
        ),
        columns=3,
        row_height=180,
        gap=86,
        spacing=0.03,
        legend=legend_of(shown, rows),
    )
    bases = {run.run_id: before(rows, run.run_id) for run in shown}
    for key, panel in zip(places, grid, strict=True):
        here = of_key(rows, *key)
        for run in shown:
            own = here[(here["run_id"] == run.run_id) & (here["step"] > 0)]
            own = pd.concat([of_key(bases[run.run_id], *key), own]).sort_values("step")
            if log_x:
                own = own[own["x"] > 0]
            draw(panel, score_line(own, run, run.run_id in published), **run.line)
        panel.note_reasons(here)
        panel.y(
            range=[-0.03, 1.05],
            showticklabels=panel.first,
            title_text="accuracy" if panel.first else None,
        )
    set_x(grid.figure, x, log_x=log_x)
    return grid.figure


def score_line(rows: pd.DataFrame, run: Run, published: bool) -> Line:
    """A run's scores of one skill and kind, the base's first."""
    line = Line()
    for row in rows[rows["x"].notna()].itertuples():
        when = PUBLISHED if published else f"step {row.step:g}"
        when = "the base" if row.step == 0 else when
        head = (run.name, f"{row.skill}, {row.kind}, {when}")
        if pd.isna(row.value):
            line.add_gap(row.x, hover(*head, row.reason))
        else:
            share = row.value, row.stderr, row.n
            line.add(row.x, row.value, hover(*head, share_text(*share)), share_interval(*share))  # type: ignore[arg-type]
    return line


@view(Placement("in_versus_out", 1, "gain against loss", "eval/", EVALUATE))
def in_versus_out(data: Measurements) -> go.Figure:
    """Change of mean accuracy since the base: in-domain on x, out-of-domain on y.

    One point per checkpoint, a line per run, from the base at (0, 0); the last point is larger and
    carries its 95 % intervals both ways: paired over problems where the table has that of the same
    skills (`capabilities/in_domain_gain`, ...), else of two independent evaluations. Means are
    over the skills that every run has, each by its sampled score where there is one, else its
    greedy one. A checkpoint in which one of them is missing breaks the line. Reads `base,
    base_digest, run_id, algorithm, step, metric, value, stderr, status, reason` of
    `eval/<in|out>/<skill>/<kind>`.

    Raises ValueError if columns are missing.
    """
    rows = score_rows(data)
    scored = set(rows.loc[rows["step"] > 0, "run_id"])
    shown = [i for i in data.styles if i in scored and len(before(rows, i))]
    kinds, left_out = {}, []
    for domain, name in DOMAINS.items():
        kinds[domain], out = shared_skills(rows, shown, domain)
        left_out += [f"{skill} ({name})" for skill in out]
    if not shown or not all(kinds.values()):
        return empty_figure(
            IN_OUT_TITLE,
            "This needs scores of the base (step 0) and of a checkpoint, both in-domain and "
            "out-of-domain, in the same skills for every run: eval/in/... and eval/out/...",
        )
    published = data.stepless(shown)
    runs = [data.styles[i] for i in shown]
    ways = {run.run_id: Way(data, rows, run, kinds, run.run_id in published) for run in runs}
    subtitle = "mean accuracy minus the base's; " + (
        "bars at the last point: 95 % intervals over problems"
        if rows["stderr"].notna().any()
        else NO_BARS
    )
    if left_out:
        subtitle += f". Not in every run, left out: {esc(', '.join(left_out), 120)}"
    grid = panels(
        [""],
        title=IN_OUT_TITLE,
        names=[IN_OUT_TITLE],
        subtitle=". ".join([subtitle, *(way.note for way in ways.values() if way.note)]),
        row_height=400,
        legend=[*(run.label for run in runs), "base"],
    )
    (panel,) = grid
    for way in ways.values():
        way.draw(panel)
    marker = {"symbol": "star", "size": 13, "color": BASE_COLOUR}
    star = go.Scatter(x=[0], y=[0], mode="markers", marker=marker)
    panel.add(star, ["base"], series="base", name="base")
    zero = {"zeroline": True, "zerolinecolor": LINE_COLOUR, "zerolinewidth": 1.5}
    for set_up, domain in ((panel.x, "in"), (panel.y, "out")):
        used = " and ".join(esc(kind, 16) for kind in dict.fromkeys(kinds[domain].values()))
        many = f"{len(kinds[domain])} skill{'s' * (len(kinds[domain]) != 1)}"
        set_up(title_text=f"{DOMAINS[domain]} change ({used}, {many})", **zero)
    return grid.figure


class Way:
    """One run's way from the base through its checkpoints.

    Of a `published` model only the end is known, and not its step.
    """

    def __init__(
        self,
        data: Measurements,
        rows: pd.DataFrame,
        run: Run,
        kinds: dict[str, dict[str, str]],
        published: bool,
    ) -> None:
        self.run = run
        self.x: list[float | None] = [0.0]
        self.y: list[float | None] = [0.0]
        self.ends = [(UNKNOWN, UNKNOWN)]
        self.text = [hover(run.name, "base")]
        places, why = ["the base"], ""
        start = before(rows, run.run_id)
        own = rows[(rows["run_id"] == run.run_id) & (rows["step"] > 0)]
        for step, end in own.groupby("step", sort=True):
            when = PUBLISHED if published else f"step {step:g}"
            places.append(when)
            both = [
                change_of(data, run.run_id, start, end, domain, kinds[domain], step=float(step))  # type: ignore[arg-type]
                for domain in DOMAINS
            ]
            lines = []
            if not all(change.known for change in both):
                why = f"{when}: " + "; ".join(change.why for change in both if change.why)
                self.x.append(None)
                self.y.append(None)
                self.ends.append((UNKNOWN, UNKNOWN))
            else:
                self.x.append(both[0].change)
                self.y.append(both[1].change)
                self.ends.append(((both[0].low, both[0].high), (both[1].low, both[1].high)))
                for change, domain in zip(both, DOMAINS.values(), strict=True):
                    within = between(change.low, change.high)
                    within = f", 95 % interval {within}" if within else ""
                    within += ", paired" if change.paired else ""
                    known = change.before == change.before
                    means = f"{change.before:.4g} \u2192 {change.after:.4g} " if known else ""
                    lines.append(f"{domain}: {means}({change.change:+.4g}{within})")
            self.text.append(hover(run.name, when, *lines))
        there = [i for i, value in enumerate(self.x) if value is not None]
        self.last = there[-1] if len(there) > 1 else None
        self.note = ""  # safe text: why there is nothing to draw, or a gap
        if why:
            lead = "nothing to draw" if self.last is None else "gap"
            self.note = f"{run.label}: {lead} at {esc(why, 140)}"
            if self.last is not None and self.last < len(self.x) - 1:
                self.note += f"; the large point is that of {places[self.last]}"

    def draw(self, panel: Panel) -> None:
        """Add its line, with a larger last point that has intervals both ways."""
        bars = [
            error_bars(
                values,
                [both[axis] if i == self.last else UNKNOWN for i, both in enumerate(self.ends)],
                width=4,
            )
            for axis, values in enumerate((self.x, self.y))
        ]
        line = go.Scatter(
            x=self.x,
            y=self.y,
            error_x=bars[0],
            error_y=bars[1],
            mode="lines+markers",
            connectgaps=False,
            line={"color": self.run.colour, "dash": self.run.dash, "width": 2},
            marker={
                "color": self.run.colour,
                "symbol": self.run.symbol,
                "opacity": 1,
                "line": {"width": 0},
                "size": [13 if i == self.last else 6 for i in range(len(self.x))],
            },
        )
        panel.add(line, self.text, series=self.run.name, name=self.run.label)
