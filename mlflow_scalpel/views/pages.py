"""Which figures stand on which page of the server, and what can be set there.

The figures themselves, and how to read them, are the report's: `SECTIONS` of `report.py` is the
one list. A page takes the sections that it names, or those whose metrics are of its groups, and a
figure takes the settings that its function has keywords for.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pandas as pd

from mlflow_scalpel.views.report import SECTIONS, Section, View


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


X = Control(
    "x",
    "x axis",
    (
        ("step", "step"),
        ("fraction", "fraction of the run"),
        ("tokens", "tokens"),
        ("flops", "FLOP"),
        ("hours", "hours"),
    ),
)
LOG_X = Control("log_x", "logarithmic x", kind="yes")
LOG_Y = Control("log_y", "logarithmic y", kind="yes")
METRIC = Control("metric", "metric", kind="metric")
SCALE = Control("shared_scale", "colour scale", (("true", "one for all runs"), ("false", "own")))
CONTROLS = (METRIC, SCALE, X, LOG_X, LOG_Y)


@dataclass(frozen=True)
class Page:
    """A page: the sections it shows, by stem or by the group of their metrics, in that order."""

    name: str
    title: str
    about: str
    stems: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    absent: str = ""
    """What to run where no section of the page has data."""

    def sections(self) -> list[Section]:
        """The page's sections, in the order of its stems, then of the report."""
        named = [one for stem in self.stems for one in SECTIONS if one.stem == stem]
        others = [one for one in SECTIONS if one.needs.split("/")[0] in self.groups]
        return named + [one for one in others if one not in named]


PAGES = (
    Page(
        "overview",
        "Overview",
        "How far each run moved, what it gained and lost, and in what the runs differ.",
        stems=("kl", "weights", "scores", "in_versus_out", "cost"),
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
        groups=("capabilities", "eval"),
    ),
    Page(
        "ablations",
        "Ablations",
        "What freezing parts of the model did, and that what was frozen did not move.",
        stems=("ablations", "freezing", "frozen"),
        groups=("frozen",),
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


def keywords(view: View) -> frozenset[str]:
    """The settings that a figure's function takes, besides the table and the runs."""
    parameters = list(inspect.signature(view).parameters.values())
    return frozenset(one.name for one in parameters if one.kind is one.KEYWORD_ONLY)


def figures(page: Page) -> Iterator[tuple[Section, str, View]]:
    """The figures of a page: (section, stem, function).

    Where the report shows a figure several times with different settings that the page lets the
    reader choose, the page shows it once.
    """
    settable = {control.name for control in CONTROLS} if page.name != "overview" else {X.name}
    shown: set[object] = set()
    for section in page.sections():
        for stem, view in section.views.items():
            fixed = view.keywords if isinstance(view, partial) else {}
            function = view.func if isinstance(view, partial) else view
            other = frozenset((k, repr(v)) for k, v in fixed.items() if k not in settable)
            if (function, other) not in shown:
                shown.add((function, other))
                yield section, stem, view


def controls(page: Page) -> list[Control]:
    """What can be set on a page: what any of its figures has a keyword for."""
    taken = {keyword for _, _, view in figures(page) for keyword in keywords(view)}
    if page.name == "overview":  # shows chosen metrics, and each on its own scale
        taken -= {METRIC.name, SCALE.name}
    return [control for control in CONTROLS if control.name in taken]


def taking(page: Page, name: str) -> list[str]:
    """The stems of the page's figures that a control sets something of."""
    return [stem for _, stem, view in figures(page) if name in keywords(view)]


def metrics(page: Page, clean: pd.DataFrame) -> list[str]:
    """The metrics of the page's groups that have a value for single layers."""
    groups = {section.needs.split("/")[0] for section in page.sections()}
    rows = clean[clean["layer"].notna() & (clean["bin"] == "")]
    return [one for one in dict.fromkeys(rows["metric"]) if one.split("/")[0] in groups]
