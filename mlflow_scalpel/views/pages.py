"""Which figures stand on which page of the server, and what can be set there.

The figures themselves, and how to read them, are the report's: `SECTIONS` of `report_sections.py`
is the one list. A page takes the sections that it names, then those whose metrics are of its
groups, and a figure takes the settings that its function has keywords for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from mlflow_scalpel.views.confounding import confounder_table
from mlflow_scalpel.views.controls import CONTROLS, METRIC, SCALE, Control
from mlflow_scalpel.views.findings import READING, findings, seed_words, warning_words
from mlflow_scalpel.views.norms import weight_trajectory
from mlflow_scalpel.views.report_sections import COMPARE, SECTIONS, Section, Shown
from mlflow_scalpel.views.style import nothing, styles
from mlflow_scalpel.views.tidy import read


@dataclass(frozen=True)
class Detail:
    """Something to read on a page that is not of the tidy table, with fields of its own."""

    kind: str
    heading: str
    how: str


@dataclass(frozen=True)
class Page:
    """A page: the sections it shows, by stem or by the group of their metrics, in that order."""

    name: str
    title: str
    about: str
    stems: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    details: tuple[Detail, ...] = ()

    def sections(self) -> list[Section]:
        """The page's sections, in the order of its stems, then of the report."""
        known = {one.stem: one for one in (*SECTIONS, *OVER_RUNS)}
        named = [known[stem] for stem in self.stems if stem in known]
        others = [one for one in SECTIONS if groups_of(one) & set(self.groups)]
        return named + [one for one in others if one not in named]


def said(table: pd.DataFrame, runs: pd.DataFrame | None = None) -> Markup:
    """What the numbers say, sentence by sentence, as HTML; all text is escaped."""
    names = [run.name for run in styles(read(table), runs).values()]
    sentences = [seed_words(runs, names), *findings(table, runs)]
    return _list("card warning", warning_words(runs)) + _list("card", sentences)


def _list(style: str, sentences: Sequence[str]) -> Markup:
    items = Markup("").join(Markup("<li>{}</li>").format(one) for one in sentences if one)
    return Markup('<ul class="{}">{}</ul>').format(style, items) if items else Markup("")


def differences(table: pd.DataFrame, runs: pd.DataFrame | None = None) -> Markup:
    """In what the runs differ, as HTML; "" where nothing is known of them."""
    return Markup("") if runs is None or not len(runs) else confounder_table(runs)


def one_cell(
    table: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    layer: int | None = None,
    matrix: str | None = None,
    metric: str = "weights/relative_frobenius",
    x: str = "fraction",
    log_x: bool = False,
    log_y: bool = True,
) -> go.Figure:
    """`weight_trajectory` of the layer and matrix that are chosen; until then, that none are."""
    if layer is None or matrix is None:
        return nothing("One matrix over training", "No layer and matrix are chosen.")
    return weight_trajectory(
        table, runs, layer=layer, matrix=matrix, metric=metric, x=x, log_x=log_x, log_y=log_y
    )


#: What the report has above and below its sections, and what only a page can have.
OVER_RUNS = (
    Section(
        "cell",
        "One matrix over training",
        "Click a cell of the map, or choose a layer and a matrix.",
        {"cell": Shown(one_cell, "one matrix over training", "weights/", COMPARE)},
    ),
    Section(
        "findings",
        "What the numbers say",
        READING,
        {},
        said,
    ),
    Section(
        "confounders",
        "In what the runs differ",
        "Every recorded parameter and count in which the runs differ, and the five that always "
        "count. In bold is what the comparison is not about: a difference in results can come from "
        "any of these rows.",
        {},
        differences,
    ),
)


def groups_of(section: Section) -> set[str]:
    """The groups of the metrics that a section's figures need."""
    starts = [start for shown in section.figures.values() for start in shown.starts]
    return {start.split("/")[0] for start in starts} - {""}


PAGES = (
    Page(
        "overview",
        "Overview",
        "How far each run moved, what it gained and lost, and in what the runs differ.",
        stems=("findings", "kl", "weights", "scores", "in_versus_out", "confounders", "cost"),
    ),
    Page(
        "weights",
        "Weights",
        "Where and how far the weights moved, by layer and matrix, over training.",
        stems=("where", "cell"),
        groups=("weights", "histograms", "spectra", "pairs", "weights_paper_compat"),
    ),
    Page(
        "attention",
        "Attention",
        "Where the heads look, against where they looked at the base.",
        groups=("attention",),
    ),
    Page(
        "divergence",
        "Divergence",
        "How far the output distribution moved: on which tokens, and how concentrated.",
        groups=("kl", "kl_on_base_samples", "kl_paper_compat"),
        details=(
            Detail(
                "tokens",
                "Token by token",
                "A problem's solution with each token coloured by KL where it was predicted, and "
                "what both models would have said.",
            ),
        ),
    ),
    Page(
        "capabilities",
        "Capabilities",
        "Which problems were kept, gained and lost, beside what chance alone would do.",
        stems=("capabilities", "scores"),
        groups=("capabilities",),
        details=(
            Detail(
                "problems",
                "The problems themselves",
                "Each problem with the first answer of the base and of the checkpoint. Click a "
                "part of a bar of the ledger, or choose.",
            ),
        ),
    ),
    Page(
        "ablations",
        "Ablations",
        "What freezing parts of the model did, and that what was frozen did not move.",
        stems=("ablations",),
    ),
    Page(
        "card",
        "Card",
        "Scalpel or hammer? Several axes and no single number; where the data do not decide, "
        "it says so.",
        stems=("card", "confounders"),
    ),
)


def page_named(name: str) -> Page | None:
    """The page of that name."""
    return next((page for page in PAGES if page.name == name), None)


def figures(page: Page, section: Section) -> Iterator[tuple[str, Shown]]:
    """The figures of a section on a page, by stem.

    Where the report shows a figure several times with different settings that the page lets the
    reader choose, the page shows it once.
    """
    settable = {control.keyword for control in CONTROLS if control not in fixed(page)}
    known: set[object] = set()
    for stem, shown in section.figures.items():
        given = shown.view.keywords if isinstance(shown.view, partial) else {}
        function = shown.view.func if isinstance(shown.view, partial) else shown.view
        other = frozenset((k, repr(v)) for k, v in given.items() if k not in settable)
        if (function, other) not in known:
            known.add((function, other))
            yield stem, shown


def fixed(page: Page) -> tuple[Control, ...]:
    """What cannot be set on a page: the overview shows chosen metrics, each on its own scale."""
    return (METRIC, SCALE) if page.name == "overview" else ()


def all_figures(page: Page) -> dict[str, Shown]:
    """Every figure of a page, by stem."""
    return {stem: shown for one in page.sections() for stem, shown in figures(page, one)}


def taken(page: Page, shown: Shown) -> list[Control]:
    """What can be set of a figure on a page."""
    found = [one for one in CONTROLS if one not in fixed(page) and one.taken_by(shown.view)]
    # A figure with a slider over its checkpoints needs no other choice of one.
    slides = any(control.name == "by" for control in found)
    return [one for one in found if not (slides and one.name == "step")]


def controls(page: Page) -> dict[str, list[str]]:
    """What can be set on a page: name of the control -> stems of the figures that take it."""
    found: dict[str, list[str]] = {control.name: [] for control in CONTROLS}
    for stem, shown in all_figures(page).items():
        for control in taken(page, shown):
            found[control.name].append(stem)
    return {name: stems for name, stems in found.items() if stems}


def groups(page: Page) -> set[str]:
    """The groups of metrics that a page shows."""
    return {group for section in page.sections() for group in groups_of(section)}


def needs(page: Page) -> set[str]:
    """How the names of the metrics begin that the page's figures need.

    A figure that takes any (such as the card) says by itself what it lacks.
    """
    return {start for shown in all_figures(page).values() for start in shown.starts} - {""}
