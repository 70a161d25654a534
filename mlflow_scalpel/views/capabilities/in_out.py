"""What a run gained where it was trained, against what it lost elsewhere."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.metrics.capabilities.intervals import UNKNOWN
from mlflow_scalpel.views.bars import between, error_bars
from mlflow_scalpel.views.score_change import change_of
from mlflow_scalpel.views.scores import (
    DOMAINS,
    PUBLISHED,
    before,
    scores,
    shared_skills,
    stepless,
)
from mlflow_scalpel.views.style import (
    BASE_COLOUR,
    LINE_COLOUR,
    Run,
    dress,
    esc,
    hover,
    nothing,
    styles,
)
from mlflow_scalpel.views.tidy import read

TITLE = "In-domain against out-of-domain change"


def in_versus_out(table: pd.DataFrame, runs: pd.DataFrame | None = None) -> go.Figure:
    """Change of mean accuracy since the base: in-domain on x, out-of-domain on y.

    A point a checkpoint, a line a run, from the base at (0, 0); the last point is larger and
    carries its 95 % intervals both ways: paired over problems where the table has that of the same
    skills (`capabilities/in_domain_gain`, ...), else of two independent evaluations. Means are
    over the skills that every run has, each by its sampled score where there is one, else its
    greedy one. A checkpoint that lacks one of them breaks the line. Reads `base, base_digest,
    run_id, algorithm, step, metric, value, stderr, status, reason` of
    `eval/<in|out>/<skill>/<kind>`.

    Raises ValueError if columns are missing.
    """
    clean = read(table)
    looks = styles(clean, runs)
    rows = scores(clean)
    shown = [
        run
        for run in looks.values()
        if len(rows[(rows["run_id"] == run.run_id) & (rows["step"] > 0)])
        and len(before(rows, run.run_id))
    ]
    ids = [run.run_id for run in shown]
    kinds, left_out = {}, []
    for domain in DOMAINS:
        kinds[domain], out = shared_skills(rows, ids, domain)
        left_out += [f"{skill} ({DOMAINS[domain]})" for skill in out]
    if not shown or not all(kinds.values()):
        return nothing(
            TITLE,
            "This needs scores of the base (step 0) and of a checkpoint, both in-domain and "
            "out-of-domain, in the same skills for every run: eval/in/... and eval/out/...",
        )
    figure = go.Figure()
    notes = []
    published = stepless(ids, runs)
    for run in shown:
        note = trajectory(figure, clean, rows, run, kinds, published=run.run_id in published)
        if note:
            notes.append(note)
    subtitle = "mean accuracy minus the base's; "
    if rows["stderr"].notna().any():
        subtitle += "bars at the last point: 95 % intervals over problems"
    else:
        subtitle += "no standard errors in the table"
    if left_out:
        subtitle += f". Not in every run, left out: {esc(', '.join(left_out), 120)}"
    if notes:
        subtitle += ". " + ". ".join(notes)
    figure.add_trace(
        go.Scatter(
            x=[0],
            y=[0],
            mode="markers",
            name="base",
            marker={"symbol": "star", "size": 13, "color": BASE_COLOUR},
            customdata=["base"],
            hovertemplate="%{customdata}<extra></extra>",
            meta={"panel": TITLE, "series": "base"},
        )
    )
    dress(
        figure,
        400,
        title=TITLE,
        subtitle=subtitle,
        legend=[*(run.label for run in shown), "base"],
    )
    zero = {"zeroline": True, "zerolinecolor": LINE_COLOUR, "zerolinewidth": 1.5}
    axes = (("x", "in", figure.update_xaxes), ("y", "out", figure.update_yaxes))
    for _, domain, update in axes:
        used = " and ".join(esc(kind, 16) for kind in dict.fromkeys(kinds[domain].values()))
        many = f"{len(kinds[domain])} skill{'s' * (len(kinds[domain]) != 1)}"
        update(title_text=f"{DOMAINS[domain]} change ({used}, {many})", **zero)
    return figure


def trajectory(
    figure: go.Figure,
    clean: pd.DataFrame,
    rows: pd.DataFrame,
    run: Run,
    kinds: dict[str, dict[str, str]],
    *,
    published: bool,
) -> str:
    """Draw one run's way; say (as safe text) why, where there is nothing to draw.

    Of a `published` model only the end is known, and not its step.
    """
    start = before(rows, run.run_id)
    own = rows[(rows["run_id"] == run.run_id) & (rows["step"] > 0)]
    x: list[float | None] = [0.0]
    y: list[float | None] = [0.0]
    ends = [(UNKNOWN, UNKNOWN)]
    said = [hover(run.name, "base")]
    places = ["the base"]
    why = ""
    for step, end in own.groupby("step", sort=True):
        both = [
            change_of(clean, run.run_id, start, end, domain, kinds[domain], step=float(step))  # type: ignore[arg-type]
            for domain in DOMAINS
        ]
        when = PUBLISHED if published else f"step {step:g}"
        places.append(when)
        text = [run.name, when]
        if not all(c.known for c in both):
            why = f"{when}: " + "; ".join(c.why for c in both if c.why)
            x.append(None)
            y.append(None)
            ends.append((UNKNOWN, UNKNOWN))
        else:
            x.append(both[0].change)
            y.append(both[1].change)
            ends.append(((both[0].low, both[0].high), (both[1].low, both[1].high)))
            for c, domain in zip(both, DOMAINS.values(), strict=True):
                within = between(c.low, c.high)
                within = f", 95 % interval {within}" if within else ""
                within += ", paired" if c.paired else ""
                means = f"{c.before:.4g} \u2192 {c.after:.4g} " if c.before == c.before else ""
                text.append(f"{domain}: {means}({c.change:+.4g}{within})")
        said.append(hover(*text))
    there = [i for i, value in enumerate(x) if value is not None]
    last = there[-1] if len(there) > 1 else None
    bars = [
        error_bars(
            values,
            [both[axis] if i == last else UNKNOWN for i, both in enumerate(ends)],
            width=4,
        )
        for axis, values in enumerate((x, y))
    ]
    figure.add_trace(
        go.Scatter(
            x=x,
            y=y,
            error_x=bars[0],
            error_y=bars[1],
            mode="lines+markers",
            connectgaps=False,
            name=run.label,
            line={"color": run.colour, "dash": run.dash, "width": 2},
            marker={
                "color": run.colour,
                "symbol": run.symbol,
                "opacity": 1,
                "line": {"width": 0},
                "size": [13 if i == last else 6 for i in range(len(x))],
            },
            customdata=said,
            hovertemplate="%{customdata}<extra></extra>",
            meta={"panel": TITLE, "series": run.name},
        )
    )
    if not why:
        return ""
    lead = "nothing to draw" if last is None else "gap"
    note = f"{run.label}: {lead} at {esc(why, 140)}"
    if last is not None and last < len(x) - 1:
        note += f"; the large point is that of {places[last]}"
    return note
