"""The static report: one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.io import to_html

from mlflow_scalpel.views.capabilities.problems import lost_problems
from mlflow_scalpel.views.common.table import Measurements
from mlflow_scalpel.views.common.text import reasons, unbroken
from mlflow_scalpel.views.common.view import public
from mlflow_scalpel.views.report.browser import SLIDER_KEYS, plotly_js
from mlflow_scalpel.views.report.template import PAGE
from mlflow_scalpel.views.sections import SECTIONS, section
from mlflow_scalpel.views.summary.differences import SHOWN, base_text, confounder_table
from mlflow_scalpel.views.summary.findings import findings, seed_text, warning_texts

REASONS = 2  # of one metric's gaps, in words
#: Statuses without a value that are results: looked for and not found, or nothing to measure.
RESULTS = ("none found", "not applicable")


@public
def write_report(
    table: pd.DataFrame | Measurements,
    runs: pd.DataFrame | None,
    path: str | Path,
    *,
    title: str,
    notes: Sequence[str] = (),
    ledgers: Mapping[str, pd.DataFrame] | None = None,
) -> Path:
    """Write the report on a table as one HTML file, and return its path.

    The file loads nothing from elsewhere (Plotly stands in it once), works in a sandboxed frame
    that allows scripts, and follows the reader's light or dark setting. All text is escaped.
    `ledgers` are those of the runs by ID, of which the lost problems are shown with both answers.
    `notes` are plain sentences to set below the findings. Figures without data are left out, and
    the end says what to run for them. The folder of `path` is made if it is not there.

    Raises ValueError if columns of the table are missing, OSError if the file cannot be written.
    """
    data = Measurements.of(table, runs)
    names = {run.run_id: run.name for run in data.styles.values()}
    drawn, unmeasured = figures_of(data)
    shown = []
    for one in SECTIONS:
        figures = {stem: drawn[stem] for stem in one.figures if stem in drawn}
        below = one.table(data) if one.table is not None else Markup("")
        if one.stem == "capabilities":
            below = lost_problems(ledgers or {}, names)
        if figures or (below and one.stem != "card"):
            html = [fragment(figure, stem) for stem, figure in figures.items()]
            shown.append({"section": one, "figures": html, "table": below})
    known = data.runs is not None and len(data.runs) > 0
    parameters = Markup("")
    if data.runs is not None and known:
        columns = [name for name in data.runs.columns if name in ("name", "algorithm", *SHOWN)]
        parameters = confounder_table(data.runs[columns])
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(PAGE)
    text = page.render(
        title=title,
        plotly_js=Markup(plotly_js()),
        slider_keys=Markup(SLIDER_KEYS),
        bases=base_text(data),
        names=list(names.values()),
        parameters=parameters,
        seeds=seed_text(data.runs, list(names.values())),
        warnings=warning_texts(data.runs),
        findings=findings(data),
        reading=section("findings").how,
        notes=[*notes, *stepless_texts(data.table)],
        gaps=gap_texts(data.table),
        shown=shown,
        unmeasured={unbroken(remedy): names for remedy, names in unmeasured.items()},
        differences=section("confounders"),
        confounders=confounder_table(data.runs) if data.runs is not None and known else "",
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def figures_of(data: Measurements) -> tuple[dict[str, go.Figure], dict[str, list[str]]]:
    """The report's figures with something to show, by stem; of the others the names, by remedy."""
    drawn: dict[str, go.Figure] = {}
    unmeasured: dict[str, list[str]] = {}
    for one in SECTIONS:
        for stem, placed in one.figures.items():
            if placed.has_rows(data.metrics):
                figure = placed.draw(data)
                if figure.data:
                    drawn[stem] = figure
                    continue
            unmeasured.setdefault(placed.remedy, []).append(placed.name)
    return drawn, unmeasured


def fragment(figure: go.Figure, stem: str) -> Markup:
    """A figure as HTML that relies on the page's one copy of Plotly."""
    text = to_html(
        figure,
        include_plotlyjs=False,
        include_mathjax=False,
        full_html=False,
        config={"responsive": True, "displaylogo": False, "showSendToCloud": False},
        div_id=f"figure-{stem}",
        default_width="100%",
        default_height=f"{figure.layout.height}px",
    )
    return Markup(text)


def stepless_texts(clean: pd.DataFrame) -> list[str]:
    """Advice about values that belong to no step of training, which no figure draws."""
    count = int((clean["value"].notna() & clean["step"].isna()).sum())
    if not count:
        return []
    return [
        f"{count} values belong to no step of training and are not drawn; directories named "
        "step-N or checkpoint-N, and logged checkpoints, have one."
    ]


def gap_texts(clean: pd.DataFrame, starts: Sequence[str] = ("",)) -> list[str]:
    """For each metric with missing values, how many and why; of the metrics that begin so.

    That something was looked for and not found, or that a statistic does not apply, is a result and
    no gap (see RESULTS); nor is the base against itself (step 0), which nobody measures.
    """
    own = clean[(clean["step"] != 0) & clean["metric"].str.startswith(tuple(starts))]
    missing = own[own["value"].isna() & ~own["status"].isin(RESULTS)]
    words = []
    for metric, rows in missing.groupby("metric", sort=True):
        total = int((own["metric"] == metric).sum())
        distinct = list(dict.fromkeys(rows["reason"]))
        why = reasons(distinct[:REASONS])
        why = why if len(why) <= 400 else why[:399] + "\u2026"
        if len(distinct) > REASONS:
            why += f"; and {len(distinct) - REASONS} more reasons"
        words.append(f"{metric}: {len(rows)} of {total} values ({why})")
    return words
