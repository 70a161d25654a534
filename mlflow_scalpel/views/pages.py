"""The pages of the server: which sections stand on each, and which settings its figures take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mlflow_scalpel.views.common.view import Placement
from mlflow_scalpel.views.controls import CONTROLS, Control
from mlflow_scalpel.views.sections import Section, section


@dataclass(frozen=True)
class Detail:
    """Something to read on a page that is not of the tidy table, with fields of its own."""

    kind: str
    heading: str
    how: str


@dataclass(frozen=True)
class Page:
    """A page: its sections by stem, in their order, and the controls that it does not offer."""

    name: str
    title: str
    about: str
    stems: tuple[str, ...]
    details: tuple[Detail, ...] = ()
    without: tuple[str, ...] = ()

    def sections(self) -> list[Section]:
        """The page's sections, in their order."""
        return [section(stem) for stem in self.stems]

    def controls(self) -> list[Control]:
        """The controls that it offers where a figure takes them."""
        return [control for control in CONTROLS if control.name not in self.without]


PAGES = (
    Page(
        "overview",
        "Overview",
        "How far each run moved, what it gained and lost, and in what the runs differ.",
        ("findings", "kl", "weights", "scores", "in_versus_out", "confounders", "cost"),
        # it shows chosen metrics, each on its own scale
        without=("metric", "shared_scale"),
    ),
    Page(
        "weights",
        "Weights",
        "Where and how far the weights moved, by layer and matrix, over training.",
        ("where", "cell", "weights", "update", "paper"),
    ),
    Page(
        "attention",
        "Attention",
        "Where the heads look, against where they looked at the base.",
        ("attention",),
    ),
    Page(
        "divergence",
        "Divergence",
        "How far the output distribution moved: on which tokens, and how concentrated.",
        ("kl", "divergence", "paper"),
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
        ("capabilities", "scores"),
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
        ("ablations",),
    ),
    Page(
        "card",
        "Card",
        "Scalpel or hammer? Several axes and no single number; where the data do not decide, "
        "it says so.",
        ("card", "confounders"),
    ),
)


def page_named(name: str) -> Page | None:
    """The page of that name."""
    return next((page for page in PAGES if page.name == name), None)


def figures(page: Page, section: Section) -> Iterator[tuple[str, Placement]]:
    """The figures of a section on a page, by stem.

    Where the report shows a figure several times with different settings that the page lets the
    reader choose, the page shows it once.
    """
    settable = {control.keyword for control in page.controls()}
    known: set[object] = set()
    for stem, figure in section.figures.items():
        other = frozenset((k, repr(v)) for k, v in figure.settings.items() if k not in settable)
        if (figure.view, other) not in known:
            known.add((figure.view, other))
            yield stem, figure


def all_figures(page: Page) -> dict[str, Placement]:
    """Every figure of a page, by stem."""
    return {stem: figure for one in page.sections() for stem, figure in figures(page, one)}


def taken(page: Page, figure: Placement) -> list[Control]:
    """The controls of a page that a figure takes."""
    found = [control for control in page.controls() if control.taken_by(figure)]
    # A figure with a slider over its checkpoints needs no other choice of one.
    slides = any(control.name == "by" for control in found)
    return [control for control in found if not (slides and control.name == "step")]


def controls(page: Page) -> dict[str, list[str]]:
    """The controls of a page, by name, with the stems of the figures that take each."""
    found: dict[str, list[str]] = {control.name: [] for control in CONTROLS}
    for stem, figure in all_figures(page).items():
        for control in taken(page, figure):
            found[control.name].append(stem)
    return {name: stems for name, stems in found.items() if stems}


def groups(page: Page) -> set[str]:
    """The groups of metrics that a page shows."""
    return {group for one in page.sections() for group in one.groups}


def required(page: Page) -> set[str]:
    """The starts of the metrics that the page's figures require.

    A figure that takes any (such as the card) says by itself which are missing.
    """
    return {start for figure in all_figures(page).values() for start in figure.starts} - {""}
