"""Scores before and after: what each run gained and lost, skill by skill."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.metrics.capabilities.intervals import share_interval
from mlflow_scalpel.views.bars import BARS, NO_BARS, error_bars, share_words
from mlflow_scalpel.views.lines import NO_VALUE
from mlflow_scalpel.views.scores import (
    DOMAINS,
    KINDS,
    Cell,
    after,
    before,
    cells,
    scores,
    stepless,
)
from mlflow_scalpel.views.style import (
    BASE_COLOUR,
    LINE_COLOUR,
    NARROW,
    Run,
    esc,
    filled,
    hollow,
    hover,
    nothing,
    panels,
    remark,
    styles,
)
from mlflow_scalpel.views.tidy import ordered, read

TITLE = "Scores before and after"

#: The upper end of the axis: above bars that carry their numbers there is room for those.
TOP, TOP_WRITTEN = 1.05, 1.19

#: One bar series: name (safe), name (plain), colour, pattern, its cells.
Bars = tuple[str, str, str, str, dict[tuple[str, str, str], Cell]]


def base_bars(rows: pd.DataFrame, shown: list[Run]) -> list[Bars]:
    """One series for the base where all runs agree on its scores, else one for each reading."""
    readings: dict[str, tuple[list[Run], dict[tuple[str, str, str], Cell]]] = {}
    for run in shown:
        found = cells(before(rows, run.run_id))
        if found:
            key = repr(sorted((k, row["value"], row["stderr"]) for k, row in found.items()))
            readings.setdefault(key, ([], found))[0].append(run)
    if not readings:
        base = rows[rows["step"] == 0]
        return [("base", "base", BASE_COLOUR, "", cells(base))] if len(base) else []
    bars: list[Bars] = []
    for i, (owners, found) in enumerate(readings.values()):
        name = "base"
        if len(readings) > 1:
            name += " as measured for " + ", ".join(run.name for run in owners)
        bars.append((esc(name, 44), name, BASE_COLOUR, ("", "/", ".", "x")[i % 4], found))
    return bars


def scores_before_after(table: pd.DataFrame, runs: pd.DataFrame | None = None) -> go.Figure:
    """Accuracy by skill: the base and each run's last evaluated checkpoint, side by side.

    In-domain left, out-of-domain right, a row of panels for each kind (greedy, sampled). Bars are
    exact 95 % intervals over problems; where the table has no standard errors, each bar carries
    its number. Where runs carry different scores of the base, each reading gets its own bar. Reads
    `base, base_digest, run_id, algorithm, step, metric, value, stderr, n, status, reason` of
    `eval/<in|out>/<skill>/<kind>`; step 0 is the base. A score without a value draws no bar but a
    cross, with the reason on hover.

    Raises ValueError if columns are missing.
    """
    clean = read(table)
    looks = styles(clean, runs)
    rows = scores(clean)
    if not len(rows):
        return nothing(TITLE, "This table has no rows of eval/in/... or eval/out/...")
    names = {i: looks[i].label for i in stepless(looks, runs)}
    return bars_of(rows, list(looks.values()), title=TITLE, names=names)


def bars_of(
    rows: pd.DataFrame, looks: list[Run], *, title: str, names: dict[str, str] | None = None
) -> go.Figure:
    """The figure of `scores_before_after` for some runs; `names` are safe text for the legend."""
    scored = set(rows.loc[rows["step"] > 0, "run_id"])
    shown = [run for run in looks if run.run_id in scored]
    series = base_bars(rows, shown)
    for run in shown:
        last = after(rows, run.run_id)
        name = (names or {}).get(run.run_id) or f"{run.label}, step {last['step'].iloc[0]:g}"
        series.append((name, run.name, run.colour, run.pattern, cells(last)))
    domains = ordered(rows["domain"], tuple(DOMAINS))
    kinds = ordered(rows["kind"], KINDS)
    skills = {d: ordered(rows.loc[rows["domain"] == d, "skill"], ()) for d in domains}
    some_gap = any(pd.isna(row["value"]) for *_, found in series for row in found.values())
    written = bool(rows["stderr"].isna().all())  # a number above a bar, where no error bar stands
    # labels that would meet at the narrowest width are turned, and get room to hang into
    longest = max(min(24, len(skill)) for d in domains for skill in skills[d])
    turned = longest * 8 * sum(len(skills[d]) for d in domains) > NARROW - 160
    hanging = int(longest * 7 * 0.58) if turned else 18
    grid = panels(
        [f"{DOMAINS[d]}: {esc(kind, 24)}" for kind in kinds for d in domains],
        title=title,
        subtitle=(NO_BARS if written else f"error {BARS}")
        + ("" if scored else "; the base only: no checkpoint was evaluated"),
        columns=len(domains),
        row_height=230,
        gap=58 + hanging,
        spacing=0.06,
        widths=[max(1, len(skills[d])) for d in domains] if len(domains) > 1 else None,
        bottom=38 + hanging,
        legend=[*(name for name, *_ in series), *([NO_VALUE] if some_gap else [])],
    )
    figure, listed = grid.figure, set[str]()
    places = [(kind, d) for kind in kinds for d in domains]
    for (kind, domain), at in zip(places, grid.at, strict=True):
        here = rows[(rows["kind"] == kind) & (rows["domain"] == domain)]
        own_skills = ordered(here["skill"], ())
        panel = f"{DOMAINS[domain]}: {kind}"
        missing: list[tuple[str, str]] = []
        for name, plain, colour, pattern, found in series:
            got = [found.get((domain, skill, kind)) for skill in own_skills]
            has = [row is not None and pd.notna(row["value"]) for row in got]
            missing += [
                (
                    skill,
                    hover(plain, "no value: " + ("not evaluated" if r is None else r["reason"])),
                )
                for skill, r, there in zip(own_skills, got, has, strict=True)
                if not there
            ]
            if not any(has):
                continue
            pairs = [(s, r) for s, r in zip(own_skills, got, strict=True) if r is not None]
            pairs = [(s, r) for s, r in pairs if pd.notna(r["value"])]
            figure.add_trace(
                go.Bar(
                    x=[esc(skill, 24) for skill, _ in pairs],
                    y=[float(row["value"]) for _, row in pairs],
                    error_y=bars_on([row for _, row in pairs]),
                    name=name,
                    legendgroup=name,
                    offsetgroup=name,
                    showlegend=name not in listed,
                    marker=(hollow if colour == BASE_COLOUR else filled)(colour, pattern),
                    **(numbers_on([float(row["value"]) for _, row in pairs]) if written else {}),
                    customdata=[
                        hover(plain, f"{s}, {kind}", share_words(r["value"], r["stderr"], r["n"]))
                        for s, r in pairs
                    ],
                    hovertemplate="%{customdata}<extra></extra>",
                    meta={"panel": panel, "series": plain},
                ),
                row=at[0],
                col=at[1],
            )
            listed.add(name)
        if not own_skills:
            remark(figure, f"no {DOMAINS[domain]} {esc(kind, 24)} scores", *at)
        crosses(figure, at, missing, panel, listed)
        figure.update_xaxes(
            type="category",
            categoryorder="array",
            categoryarray=[esc(skill, 24) for skill in own_skills],
            showgrid=False,
            tickangle=-35 if turned else 0,
            row=at[0],
            col=at[1],
        )
        figure.update_yaxes(
            range=[0, TOP_WRITTEN if written else TOP],
            dtick=0.2,
            title_text="accuracy" if at[1] == 1 else None,
            row=at[0],
            col=at[1],
        )
    figure.update_layout(barmode="group")
    return figure


def numbers_on(values: list[float]) -> dict[str, object]:
    """Each bar's number above it, upright: a bar of 0 is then told from one that is not there."""
    return {
        "text": [f"{value:.2f}" for value in values],
        "textposition": "outside",
        "textangle": -90,
        "textfont": {"size": 10},
        "constraintext": "none",
        "cliponaxis": False,
    }


def bars_on(rows: list[Cell]) -> dict[str, Any] | None:
    """Error bars; none at all where no standard error is known, or Plotly draws bars of 0."""
    values = [float(row["value"]) for row in rows]
    ends = [share_interval(row["value"], row["stderr"], row["n"]) for row in rows]
    return error_bars(values, ends, color="#5C626B")


def crosses(
    figure: go.Figure,
    at: tuple[int, int],
    missing: list[tuple[str, str]],
    panel: str,
    listed: set[str],
) -> None:
    """One cross a skill, at the foot of its bars, that says on hover which bars lack and why."""
    if not missing:
        return
    figure.add_trace(
        go.Scatter(
            x=[esc(skill, 24) for skill in dict.fromkeys(skill for skill, _ in missing)],
            y=[0.03 for _ in dict.fromkeys(skill for skill, _ in missing)],
            mode="markers",
            name=NO_VALUE,
            legendgroup=NO_VALUE,
            showlegend=NO_VALUE not in listed,
            marker={"symbol": "x-thin", "size": 8, "line": {"width": 2, "color": LINE_COLOUR}},
            customdata=[
                "<br>".join(said for s, said in missing if s == skill)
                for skill in dict.fromkeys(skill for skill, _ in missing)
            ],
            hovertemplate="%{customdata}<extra></extra>",
            meta={"panel": panel, "series": NO_VALUE},
        ),
        row=at[0],
        col=at[1],
    )
    listed.add(NO_VALUE)
