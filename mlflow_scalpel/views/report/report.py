"""The static report: one HTML file that needs no network, and the same figures as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.io import to_html

from mlflow_scalpel.views.bases import base_words
from mlflow_scalpel.views.confounding import SHOWN, confounder_table, confounders
from mlflow_scalpel.views.findings import READING, findings, seed_words, warning_words
from mlflow_scalpel.views.keys import SLIDER_KEYS
from mlflow_scalpel.views.numbers import numbers
from mlflow_scalpel.views.plotlyjs import plotly_js
from mlflow_scalpel.views.png import to_png
from mlflow_scalpel.views.problems import lost_problems
from mlflow_scalpel.views.report_page import PAGE
from mlflow_scalpel.views.report_sections import SECTIONS
from mlflow_scalpel.views.style import styles, unbroken
from mlflow_scalpel.views.tidy import read, reasons

REASONS = 2  # of one metric's gaps, in words
#: Statuses without a value that are results: looked for and not there, or nothing to measure.
RESULTS = ("none found", "not applicable")


def write_report(
    table: pd.DataFrame,
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
    clean = read(table)
    names = {run.run_id: run.name for run in styles(clean, runs).values()}
    drawn, unmeasured = figures_of(clean, runs)
    sections = []
    for section in SECTIONS:
        figures = {stem: drawn[stem] for stem in section.figures if stem in drawn}
        below = section.table(clean, runs) if section.table is not None else ""
        if section.stem == "capabilities":
            below = lost_problems(ledgers or {}, names)
        if figures or (below and section.stem != "card"):
            sections.append(
                {
                    "stem": section.stem,
                    "heading": section.heading,
                    "how": section.how,
                    "figures": [fragment(figure, stem) for stem, figure in figures.items()],
                    "table": below,
                }
            )
    known = runs is not None and len(runs) > 0
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(PAGE)
    text = page.render(
        title=title,
        plotly_js=Markup(plotly_js()),
        slider_keys=Markup(SLIDER_KEYS),
        bases=base_words(clean, runs),
        names=list(names.values()),
        parameters=confounder_table(
            runs[[c for c in runs.columns if c in ("name", "algorithm", *SHOWN)]]
        )
        if runs is not None and known
        else "",
        seeds=seed_words(runs, list(names.values())),
        warnings=warning_words(runs),
        findings=findings(clean, runs),
        reading=READING,
        notes=[*notes, *stepless_words(clean)],
        gaps=gap_words(clean),
        sections=sections,
        unmeasured={unbroken(remedy): names for remedy, names in unmeasured.items()},
        confounders=confounder_table(runs) if runs is not None and known else "",
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def figures_of(
    table: pd.DataFrame, runs: pd.DataFrame | None
) -> tuple[dict[str, go.Figure], dict[str, list[str]]]:
    """The report's figures with something to show, by stem; of the others the names, by remedy."""
    clean = read(table)
    metrics = list(clean["metric"].unique())
    drawn: dict[str, go.Figure] = {}
    unmeasured: dict[str, list[str]] = {}
    for section in SECTIONS:
        for stem, shown in section.figures.items():
            if any(metric.startswith(shown.needs) for metric in metrics):
                figure = shown.view(clean, runs)
                if figure.data:
                    drawn[stem] = figure
                    continue
            unmeasured.setdefault(shown.remedy, []).append(shown.name)
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


def stepless_words(clean: pd.DataFrame) -> list[str]:
    """What to do about values that belong to no step of training, which no figure draws."""
    count = int((clean["value"].notna() & clean["step"].isna()).sum())
    if not count:
        return []
    return [
        f"{count} values belong to no step of training and are not drawn; directories named "
        "step-N or checkpoint-N, and logged checkpoints, have one."
    ]


def gap_words(clean: pd.DataFrame, needs: Sequence[str] = ("",)) -> list[str]:
    """For each metric with missing values, how many and why; of the metrics that begin so.

    That something was looked for and not found, or that a statistic does not apply, is a result and
    no gap (see RESULTS); nor is the base against itself (step 0), which nobody measures.
    """
    own = clean[(clean["step"] != 0) & clean["metric"].str.startswith(tuple(needs))]
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


def write_figures(
    table: pd.DataFrame, runs: pd.DataFrame | None, directory: str | Path
) -> list[Path]:
    """Write every figure of the report as PNG, its numbers as CSV beside it; return all paths.

    `STEM.png` has `STEM.csv` (see `numbers`); a figure without data is not written. Where `runs`
    is given, `confounders.csv` holds the parameters in which the runs differ. The folder is made
    if it is not there.

    Raises ValueError if columns of the table are missing, OSError if a file cannot be written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for stem, figure in figures_of(table, runs)[0].items():
        written.append(to_png(figure, directory / f"{stem}.png"))
        written.append(directory / f"{stem}.csv")
        numbers(figure).to_csv(written[-1], index=False)
    if runs is not None and len(runs):
        written.append(directory / "confounders.csv")
        confounders(runs, always=SHOWN).to_csv(written[-1])
    return written
