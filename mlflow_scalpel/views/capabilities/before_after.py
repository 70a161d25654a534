"""Scores before and after, skill by skill: of all runs, and of freezing variants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from mlflow_scalpel.metrics.capabilities.intervals import share_interval
from mlflow_scalpel.views.capabilities.scores import (
    DOMAINS,
    KINDS,
    Cell,
    after,
    before,
    cells,
    score_rows,
)
from mlflow_scalpel.views.common.panels import NARROW, Panel, empty_figure, panels
from mlflow_scalpel.views.common.style import BASE_COLOUR, PATTERNS, Run, hollow
from mlflow_scalpel.views.common.table import Measurements, ordered
from mlflow_scalpel.views.common.text import (
    BARS,
    NO_BARS,
    esc,
    hover,
    isolated,
    number,
    reasons,
    share_text,
)
from mlflow_scalpel.views.common.traces import NO_VALUE, cross, error_bars
from mlflow_scalpel.views.common.view import EVALUATE, Placement, section_table, view

TITLE = "Scores before and after"
VARIANTS_TITLE = "Freezing variants"
FREEZE = "mlflow run . -e sft with train.freeze in the recipe, then evaluate"
FROZEN = "frozen/changed_elements"
#: Values of a parameter for nothing frozen.
NOT_FROZEN = ("", "None", "none", "null", "{}", "0")

#: The upper end of the axis: above bars that carry their numbers there is room for those.
TOP, TOP_NUMBERED = 1.05, 1.19


@dataclass(frozen=True)
class Bars:
    """One series of bars: of the base, or of a run's last evaluated checkpoint."""

    label: str  # safe
    name: str  # plain
    marker: dict[str, Any]
    cells: dict[tuple[str, str, str], Cell]


@view(Placement("scores", 1, "scores", "eval/", EVALUATE))
def scores_before_after(data: Measurements) -> go.Figure:
    """Accuracy by skill: the base and each run's last evaluated checkpoint, side by side.

    In-domain left, out-of-domain right, a row of panels for each kind (greedy, sampled). Bars are
    exact 95 % intervals over problems; where the table has no standard errors, each bar carries
    its number. Where runs carry different scores of the base, each reading gets its own bar. Reads
    `base, base_digest, run_id, algorithm, step, metric, value, stderr, n, status, reason` of
    `eval/<in|out>/<skill>/<kind>`; step 0 is the base. A score without a value draws no bar but a
    cross, with the reason on hover.

    Raises ValueError if columns are missing.
    """
    rows = score_rows(data)
    if not len(rows):
        return empty_figure(TITLE, "This table has no rows of eval/in/... or eval/out/...")
    names = {i: data.styles[i].label for i in data.stepless(data.styles)}
    return bars_of(rows, list(data.styles.values()), title=TITLE, names=names)


@view(Placement("ablations", 1, "freezing variants", "", FREEZE))
def ablation_bars(data: Measurements) -> go.Figure:
    """Scores of freezing variants: the base, the runs that froze weights, and those that did not.

    A bar per variant, as in `scores_before_after`; runs of an algorithm of which no run froze
    anything are left out. The weights that a run froze are read from its parameters `frozen`,
    `freeze` or `parameters_frozen`, or from its rows of `frozen/changed_elements`.

    Raises ValueError if columns are missing.
    """
    found = variants(data)
    rows = score_rows(data)
    scored = set(rows.loc[rows["step"] > 0, "run_id"])
    if not scored & found.keys():
        return empty_figure(
            VARIANTS_TITLE,
            "No evaluated run of this table froze weights: train with train.freeze in the recipe "
            "(or import with --frozen), and evaluate.",
        )
    kept = rows.index[rows["run_id"].isin(found)]
    for run_id in found:
        kept = kept.union(before(rows, run_id).index)
    return bars_of(
        rows.loc[kept],
        [run for run in data.styles.values() if run.run_id in found],
        title=VARIANTS_TITLE,
        names={
            run_id: f"{data.styles[run_id].label}, frozen: {esc(frozen, 40)}"
            for run_id, frozen in found.items()
        },
    )


def bars_of(rows: pd.DataFrame, runs: list[Run], *, title: str, names: dict[str, str]) -> go.Figure:
    """The figure of `scores_before_after` for some runs; `names` are safe text for the legend."""
    scored = set(rows.loc[rows["step"] > 0, "run_id"])
    shown = [run for run in runs if run.run_id in scored]
    series = base_bars(rows, shown)
    for run in shown:
        last = after(rows, run.run_id)
        label = names.get(run.run_id) or f"{run.label}, step {last['step'].iloc[0]:g}"
        series.append(Bars(label, run.name, run.bar, cells(last)))
    domains = ordered(rows["domain"], tuple(DOMAINS))
    kinds = ordered(rows["kind"], KINDS)
    skills = {d: ordered(rows.loc[rows["domain"] == d, "skill"], ()) for d in domains}
    some_gap = any(pd.isna(row["value"]) for one in series for row in one.cells.values())
    numbered = bool(rows["stderr"].isna().all())  # a number above a bar, where no error bar stands
    # labels that would meet at the narrowest width are turned, and get room to hang into
    longest = max(min(24, len(skill)) for d in domains for skill in skills[d])
    turned = longest * 8 * sum(len(skills[d]) for d in domains) > NARROW - 160
    hanging = int(longest * 7 * 0.58) if turned else 18
    places = [(kind, domain) for kind in kinds for domain in domains]
    grid = panels(
        [f"{DOMAINS[domain]}: {esc(kind, 24)}" for kind, domain in places],
        title=title,
        names=[f"{DOMAINS[domain]}: {kind}" for kind, domain in places],
        subtitle=(NO_BARS if numbered else f"error {BARS}")
        + ("" if scored else "; the base only: no checkpoint was evaluated"),
        columns=len(domains),
        row_height=230,
        gap=58 + hanging,
        spacing=0.06,
        widths=[max(1, len(skills[d])) for d in domains] if len(domains) > 1 else None,
        bottom=38 + hanging,
        legend=[*(one.label for one in series), *([NO_VALUE] if some_gap else [])],
    )
    for (kind, domain), panel in zip(places, grid, strict=True):
        here = rows[(rows["kind"] == kind) & (rows["domain"] == domain)]
        own_skills = ordered(here["skill"], ())
        draw_bars(panel, series, domain, own_skills, kind, numbered)
        if not own_skills:
            panel.note(f"no {DOMAINS[domain]} {esc(kind, 24)} scores")
        panel.x(
            type="category",
            categoryorder="array",
            categoryarray=[esc(skill, 24) for skill in own_skills],
            showgrid=False,
            tickangle=-35 if turned else 0,
        )
        panel.y(
            range=[0, TOP_NUMBERED if numbered else TOP],
            dtick=0.2,
            title_text="accuracy" if panel.first else None,
        )
    grid.figure.update_layout(barmode="group")
    return grid.figure


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
        return [Bars("base", "base", hollow(BASE_COLOUR), cells(base))] if len(base) else []
    bars = []
    for i, (owners, found) in enumerate(readings.values()):
        name = "base"
        if len(readings) > 1:
            name += " as measured for " + ", ".join(run.name for run in owners)
        bars.append(Bars(esc(name, 44), name, hollow(BASE_COLOUR, PATTERNS[i % 4]), found))
    return bars


def draw_bars(
    panel: Panel, series: list[Bars], domain: str, skills: list[str], kind: str, numbered: bool
) -> None:
    """The bars of each series, and a cross per skill at the foot of the bars that are missing."""
    missing: dict[str, list[str]] = {}
    for one in series:
        found: dict[str, Cell] = {}
        for skill in skills:
            row = one.cells.get((domain, skill, kind))
            if row is not None and pd.notna(row["value"]):
                found[skill] = row
            else:
                why = "not evaluated" if row is None else row["reason"]
                missing.setdefault(skill, []).append(hover(one.name, f"no value: {why}"))
        if not found:
            continue
        values = [float(row["value"]) for row in found.values()]
        ends = [share_interval(row["value"], row["stderr"], row["n"]) for row in found.values()]
        bars = go.Bar(
            x=[esc(skill, 24) for skill in found],
            y=values,
            error_y=error_bars(values, ends, color="#5C626B"),
            offsetgroup=one.label,
            marker=one.marker,
            **(numbers_on(values) if numbered else {}),
        )
        text = [
            hover(one.name, f"{skill}, {kind}", share_text(row["value"], row["stderr"], row["n"]))
            for skill, row in found.items()
        ]
        panel.add(bars, text, series=one.name, name=one.label)
    if missing:
        crosses = cross(x=[esc(skill, 24) for skill in missing], y=[0.03] * len(missing))
        text = ["<br>".join(lines) for lines in missing.values()]
        panel.add(crosses, text, series=NO_VALUE, name=NO_VALUE)


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


def frozen_text(data: Measurements, run_id: str) -> str:
    """The weights that a run froze, in the words of its parameters; "" where none is recorded."""
    for column in ("frozen", "freeze", "parameters_frozen"):
        text = data.parameter(run_id, column)
        if text not in NOT_FROZEN:
            parsed = number(text)
            return text if parsed is None else f"{parsed:,.0f} parameters"
    return ""


def variants(data: Measurements) -> dict[str, str]:
    """Run ID -> what it froze, of those that did, and of those of the same algorithm that did not.

    Empty where no run froze anything: then there is nothing to compare.
    """
    checked = set(data.rows(FROZEN)["run_id"])
    frozen = {i: frozen_text(data, i) for i in data.styles}
    algorithms = {
        run.algorithm for i, run in data.styles.items() if frozen[i] or run.run_id in checked
    }
    return {
        i: frozen[i] or ("not recorded" if i in checked else "nothing")
        for i, run in data.styles.items()
        if run.algorithm in algorithms
    }


@section_table("ablations")
def frozen_table(data: Measurements) -> Markup:
    """Whether the weights that each run froze stayed as they were, as an HTML table.

    "" where no run froze any. Reads `run_id, step, value, n, status, reason` of
    `frozen/changed_elements`: the number of elements of frozen tensors that differ from the base,
    which must be 0 at every checkpoint.

    Raises ValueError if columns are missing.
    """
    rows = data.checkpoints(FROZEN)
    body = Markup("")
    for run_id, frozen in variants(data).items():
        own = rows[rows["run_id"] == run_id].sort_values("step")
        if frozen == "nothing" and not len(own):
            continue
        style, *answers = _verdict(own)
        body += Markup('<tr class="{}"><th>{}</th><td>{}</td><td>{}</td><td>{}</td></tr>').format(
            style, isolated(data.styles[run_id].name), isolated(frozen), *answers
        )
    if not body:
        return Markup("")
    return Markup(
        '<table class="frozen"><thead><tr><th>run</th><th>frozen</th><th>did it move?</th>'
        "<th>rests on</th></tr></thead><tbody>{}</tbody></table>"
    ).format(body)


def _verdict(own: pd.DataFrame) -> tuple[str, str, str]:
    """Class of the row, the answer, and what it rests on."""
    if not len(own):
        return "unknown", "not checked", "no frozen weight was compared with the base's"
    moved = own[own["value"] > 0]
    unknown = own[own["value"].isna()]
    tensors = number(own["n"].max())
    many = "tensors" if tensors is None else f"{tensors:g} tensors"
    at = f"{many}, bit for bit, at {len(own)} checkpoint{'s' * (len(own) != 1)}"
    if len(moved):
        first = moved.iloc[0]
        text = f"MOVED: {first['value']:,.0f} elements differ at step {first['step']:g}"
        return "moved", text, at
    if len(unknown):
        return "unknown", f"unknown at {len(unknown)} of them: {reasons(unknown['reason'])}", at
    return "still", "no: 0 elements differ", at
