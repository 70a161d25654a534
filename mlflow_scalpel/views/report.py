"""The static report: one HTML file that needs no network, and the same figures as files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jinja2
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from mlflow_scalpel.views.before_after import scores_before_after
from mlflow_scalpel.views.confounding import SHOWN, confounder_table, confounders
from mlflow_scalpel.views.costs import cost
from mlflow_scalpel.views.findings import NORM, PER_RATE, findings, seed_words
from mlflow_scalpel.views.heatmaps import weight_heatmaps
from mlflow_scalpel.views.in_out import in_versus_out
from mlflow_scalpel.views.kl import kl_over_training
from mlflow_scalpel.views.norms import norms_over_training
from mlflow_scalpel.views.numbers import numbers
from mlflow_scalpel.views.over_training import scores_over_training
from mlflow_scalpel.views.png import to_png
from mlflow_scalpel.views.report_page import PAGE
from mlflow_scalpel.views.style import styles
from mlflow_scalpel.views.tidy import read, reasons

View = Callable[[pd.DataFrame, pd.DataFrame | None], go.Figure]

COMPARE = "run the stage compare on these runs (mlflow run . -e compare)"
EVALUATE = (
    "run the stage evaluate on the base and on the checkpoints (mlflow run . -e evaluate), "
    "then compare"
)


@dataclass(frozen=True)
class Section:
    """A heading, how to read what stands under it, and the figures by file stem.

    `needs` is the start of the metrics without which the section has nothing to show; `absent`
    says what to run then.
    """

    stem: str
    heading: str
    how: str
    needs: str
    absent: str
    views: dict[str, View] = field(default_factory=dict)


SECTIONS = (
    Section(
        "weights",
        "How far the weights moved",
        "Each line is one kind of matrix: the size of its update relative to its size at the base, "
        "averaged over layers. AdamW moves every entry by about the learning rate at each step, so "
        "these norms mostly compare learning rates and steps. The second figure divides by the sum "
        "of the learning rates so far, which takes most of that out; what an algorithm does to "
        "norms shows best between runs of equal rate and steps.",
        "weights/relative_frobenius",
        f"No norms of updates in the table: {COMPARE}.",
        {
            "norms_over_training": partial(norms_over_training, metric=NORM),
            "norms_per_learning_rate": partial(norms_over_training, metric=PER_RATE),
        },
    ),
    Section(
        "where",
        "Where the weights moved",
        "A cell is one matrix of one layer at a run's last checkpoint. On one scale for all runs "
        "the brighter run moved further; on a scale for each run the pattern within it shows.",
        "weights/relative_frobenius",
        f"No norms of updates in the table: {COMPARE}.",
        {
            "weight_heatmaps": partial(weight_heatmaps, shared_scale=True),
            "weight_heatmaps_own_scale": partial(weight_heatmaps, shared_scale=False),
        },
    ),
    Section(
        "kl",
        "How far the output distribution moved",
        "KL from the base to each checkpoint, over the full vocabulary, on texts fixed in advance. "
        "The same checkpoint has another KL on other texts, so compare runs within a panel.",
        "kl/",
        f"No KL in the table: {COMPARE}, with a probe set.",
        {"kl_over_training": kl_over_training},
    ),
    Section(
        "scores",
        "What was gained and lost",
        "Accuracy by skill, at the base and at the last evaluated checkpoint, then over training. "
        "Skills count as in-domain or out-of-domain as their suite declares. Bars that overlap "
        "do not show that two runs are the same.",
        "eval/",
        f"No scores in the table: {EVALUATE}.",
        {"scores_before_after": scores_before_after, "scores_over_training": scores_over_training},
    ),
    Section(
        "in_versus_out",
        "Gained in-domain against lost elsewhere",
        "Each line is a run's way from the base: right is better in-domain, down is worse "
        "out-of-domain. A last point whose bars reach a zero line shows no change in that "
        "direction beyond the noise of the problems sampled.",
        "eval/",
        f"No scores in the table: {EVALUATE}.",
        {"in_versus_out": in_versus_out},
    ),
    Section(
        "cost",
        "What it cost",
        "Totals up to each run's last step. Equal steps are not equal cost.",
        "cost/",
        "No costs in the table: train with the stages of this project, which log them, then "
        f"{COMPARE}.",
        {"cost": cost},
    ),
)


def write_report(
    table: pd.DataFrame,
    runs: pd.DataFrame | None,
    path: str | Path,
    *,
    title: str,
    notes: Sequence[str] = (),
) -> Path:
    """Write the report on a table as one HTML file, and return its path.

    The file loads nothing from elsewhere (Plotly stands in it once), works in a sandboxed frame
    that allows scripts, and follows the reader's light or dark setting. All text is escaped.
    `notes` are plain sentences to set below the findings. A section without data says what to run.
    The folder of `path` is made if it is not there.

    Raises ValueError if columns of the table are missing, OSError if the file cannot be written.
    """
    clean = read(table)
    names = [run.name for run in styles(clean, runs).values()]
    sections = []
    for section in SECTIONS:
        figures = []
        if clean["metric"].str.startswith(section.needs).any():
            for stem, view in section.views.items():
                figures.append(fragment(view(table, runs), stem))
        sections.append(
            {
                "stem": section.stem,
                "heading": section.heading,
                "how": section.how,
                "absent": section.absent,
                "figures": figures,
            }
        )
    known = runs is not None and len(runs) > 0
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(PAGE)
    text = page.render(
        title=title,
        plotly_js=Markup(get_plotlyjs()),
        bases=list(dict.fromkeys(base for base in clean["base"] if base)),
        names=names,
        parameters=confounder_table(
            runs[[c for c in runs.columns if c in ("name", "algorithm", *SHOWN)]]
        )
        if runs is not None and known
        else "",
        seeds=seed_words(runs, names),
        findings=findings(table, runs),
        notes=list(notes),
        gaps=gap_words(clean),
        sections=sections,
        confounders=confounder_table(runs) if runs is not None and known else "",
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


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


def gap_words(clean: pd.DataFrame) -> list[str]:
    """For each metric with missing values, how many and why."""
    missing = clean[clean["value"].isna()]
    words = []
    for metric, rows in missing.groupby("metric", sort=True):
        total = int((clean["metric"] == metric).sum())
        why = reasons(rows["reason"])
        why = why if len(why) <= 400 else why[:399] + "\u2026"
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
    for section in SECTIONS:
        for stem, view in section.views.items():
            figure = view(table, runs)
            if not figure.data:
                continue
            written.append(to_png(figure, directory / f"{stem}.png"))
            written.append(directory / f"{stem}.csv")
            numbers(figure).to_csv(written[-1], index=False)
    if runs is not None and len(runs):
        written.append(directory / "confounders.csv")
        confounders(runs, always=SHOWN).to_csv(written[-1])
    return written
