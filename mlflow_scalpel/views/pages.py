"""Which figures stand on which page of the server, and what can be set there.

The figures themselves, and how to read them, are the report's: `SECTIONS` of `report_sections.py`
is the one list. A page takes the sections that it names, then those whose metrics are of its
groups, and a figure takes the settings that its function has keywords for.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pandas as pd
from markupsafe import Markup

from mlflow_scalpel.views.confounding import confounder_table
from mlflow_scalpel.views.findings import findings, seed_words
from mlflow_scalpel.views.report_sections import SECTIONS, Section, Shown
from mlflow_scalpel.views.style import styles
from mlflow_scalpel.views.tidy import read
from mlflow_scalpel.views.xaxis import CHOICES


@dataclass(frozen=True)
class Control:
    """Something that can be set on a page.

    `name` is its name in the URL and the figures' keyword, `choices` are (value in the URL, label)
    pairs, the first of which is the default. A control of kind `metric` has the metrics of the
    table as its choices.
    """

    name: str
    label: str
    choices: tuple[tuple[str, str], ...] = ()
    kind: str = "choice"  # or "yes", or "metric"


X = Control("x", "x axis", tuple(CHOICES.items()))
LOG_X = Control("log_x", "logarithmic x", kind="yes")
LOG_Y = Control("log_y", "logarithmic y", kind="yes")
METRIC = Control("metric", "metric", kind="metric")
SCALE = Control("shared_scale", "colour scale", (("true", "one for all runs"), ("false", "own")))
BY = Control("by", "checkpoints by", (("fraction", "fraction of the run"), ("step", "step")))
CONTROLS = (METRIC, SCALE, BY, X, LOG_X, LOG_Y)


@dataclass(frozen=True)
class Page:
    """A page: the sections it shows, by stem or by the group of their metrics, in that order."""

    name: str
    title: str
    about: str
    stems: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()

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
    items = Markup("").join(Markup("<li>{}</li>").format(one) for one in sentences if one)
    return Markup('<ul class="card">{}</ul>').format(items) if items else Markup("")


def differences(table: pd.DataFrame, runs: pd.DataFrame | None = None) -> Markup:
    """In what the runs differ, as HTML; "" where nothing is known of them."""
    return Markup("") if runs is None or not len(runs) else confounder_table(runs)


#: What the report has above and below its sections.
OVER_RUNS = (
    Section(
        "findings",
        "What the numbers say",
        "\u00b1 is 1.96 standard errors over problems, the evaluations before and after taken as "
        "independent.",
        {},
        said,
    ),
    Section(
        "confounders",
        "In what the runs differ",
        "Every recorded parameter in which the runs differ, and the five that always count. A "
        "difference in results can come from any row that differs, not only from the algorithm.",
        {},
        differences,
    ),
)


def groups_of(section: Section) -> set[str]:
    """The groups of the metrics that a section's figures need."""
    return {shown.needs.split("/")[0] for shown in section.figures.values()} - {""}


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
        stems=("where",),
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
    ),
    Page(
        "capabilities",
        "Capabilities",
        "Which problems were kept, gained and lost, beside what chance alone would do.",
        stems=("capabilities", "scores"),
        groups=("capabilities",),
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
        stems=("card",),
    ),
)


def page_named(name: str) -> Page | None:
    """The page of that name."""
    return next((page for page in PAGES if page.name == name), None)


def keywords(shown: Shown) -> frozenset[str]:
    """The settings that a figure's function takes, besides the table and the runs."""
    parameters = list(inspect.signature(shown.view).parameters.values())
    return frozenset(one.name for one in parameters if one.kind is one.KEYWORD_ONLY)


def figures(page: Page, section: Section) -> Iterator[tuple[str, Shown]]:
    """The figures of a section on a page, by stem.

    Where the report shows a figure several times with different settings that the page lets the
    reader choose, the page shows it once.
    """
    settable = {control.name for control in CONTROLS} - fixed(page)
    known: set[object] = set()
    for stem, shown in section.figures.items():
        given = shown.view.keywords if isinstance(shown.view, partial) else {}
        function = shown.view.func if isinstance(shown.view, partial) else shown.view
        other = frozenset((k, repr(v)) for k, v in given.items() if k not in settable)
        if (function, other) not in known:
            known.add((function, other))
            yield stem, shown


def fixed(page: Page) -> set[str]:
    """What cannot be set on a page: the overview shows chosen metrics, each on its own scale."""
    return {METRIC.name, SCALE.name} if page.name == "overview" else set()


def all_figures(page: Page) -> dict[str, Shown]:
    """Every figure of a page, by stem."""
    return {stem: shown for one in page.sections() for stem, shown in figures(page, one)}


def controls(page: Page) -> list[Control]:
    """What can be set on a page: what any of its figures has a keyword for."""
    taken = {name for shown in all_figures(page).values() for name in keywords(shown)}
    return [control for control in CONTROLS if control.name in taken - fixed(page)]


def taking(page: Page, name: str) -> list[str]:
    """The stems of the page's figures that a control sets something of."""
    return [stem for stem, shown in all_figures(page).items() if name in keywords(shown)]


def metrics(page: Page, clean: pd.DataFrame) -> list[str]:
    """The metrics of the page's groups that have a value for single layers."""
    groups = {group for section in page.sections() for group in groups_of(section)}
    rows = clean[clean["layer"].notna() & (clean["bin"] == "")]
    return [one for one in dict.fromkeys(rows["metric"]) if one.split("/")[0] in groups]
