"""Figures of a selection as JSON, made once for all who look at the same thing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlflow_scalpel.credentials import without_credentials
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.server.caching import Cache
from mlflow_scalpel.server.data import Selection, frame_bytes

HOW_TO_MEASURE = (
    "its checkpoints are measured by `mlflow run . -e compare`, or against any base by "
    "`mlflow-scalpel compare BASE runs:/RUN_ID --log`."
)
if TYPE_CHECKING:  # plotly is imported where a figure is asked for
    from mlflow_scalpel.views.common.view import Placement
    from mlflow_scalpel.views.controls import Choices, Control
    from mlflow_scalpel.views.pages import Page

_FIGURE_BYTES = 128 << 20
_MOST_OFFERS = 200  # selections of which the controls' choices are kept
#: Groups with a value, or several, for each matrix or head.
LARGE = frozenset({"weights", "histograms", "spectra", "pairs", "attention"})
_LONGEST, _LONGEST_NOTE = 400, 2000  # characters of a name, and of a note
_log = logging.getLogger(__name__)


class Figures:
    """The figures of pages, by what was chosen and set; shared by the threads of a process."""

    def __init__(self, limit: int = _FIGURE_BYTES) -> None:
        self._made: Cache[bytes] = Cache(limit // 2, len)
        self._rows: Cache[pd.DataFrame] = Cache(limit // 2, frame_bytes)
        self._offers: Cache[dict[str, Choices]] = Cache(_MOST_OFFERS, lambda _: 1)
        self._about: Cache[dict[str, Any]] = Cache(_MOST_OFFERS, lambda _: 1)
        self._absent: Cache[dict[str, dict[str, str]]] = Cache(_MOST_OFFERS, lambda _: 1)

    def of_page(
        self, selection: Selection, page_name: str, wanted: Mapping[str, str], stems: set[str]
    ) -> Iterator[bytes]:
        """Lines of JSON: what can be set on the page, then each figure (of `stems`, if any).

        `wanted` are the settings in the URL; what is not among a control's choices is the default.
        Raises ScalpelError for a page that does not exist.
        """
        from mlflow_scalpel.views import pages

        page = pages.page_named(page_name)
        if page is None:
            raise ScalpelError(
                f"page {page_name[:40]!r}: there is none; there are "
                f"{', '.join(page.name for page in pages.PAGES)}"
            )
        return self._lines(selection, page, wanted, stems)

    def _lines(
        self, selection: Selection, page: Page, wanted: Mapping[str, str], stems: set[str]
    ) -> Iterator[bytes]:
        from mlflow_scalpel.views import pages

        version = selection.version
        offered = self._offers.get((version, page.name), lambda: offers(page, selection.table))
        settings = {
            name: value
            for name, choices in offered.items()
            if (value := wanted.get(name, "")) in [allowed for allowed, _ in choices] and value
        }
        controls = controls_of(page, offered, settings)
        said = self._about.get((version, page.name), lambda: about(selection, page))
        absent = self._absent.get((version, page.name), lambda: empty_lines(selection.table, page))
        yield _as_line({"about": said, "controls": controls})
        for section in page.sections():
            for stem, figure in pages.figures(page, section):
                if stems and stem not in stems:
                    continue
                if stem in absent:
                    yield _as_line({"stem": stem, **absent[stem]})
                else:
                    chosen = chosen_of(page, figure, settings)
                    key = (version, page.name, stem, tuple(sorted(chosen.items())))
                    make = partial(self._figure_line, selection, stem, figure, chosen)
                    yield self._line(key, stem, make)
            stem = table_stem(section.stem)
            if section.table is not None and (not stems or stem in stems):
                make = partial(table_line, selection, stem, section.table)
                yield self._line((version, page.name, stem), stem, make)

    def _figure_line(
        self, selection: Selection, stem: str, figure: Placement, chosen: Mapping[str, Any]
    ) -> bytes:
        """A figure as a line of JSON."""
        from plotly.io.json import to_json_plotly

        from mlflow_scalpel.views.common.slider import without_slider

        # A metric that was chosen may be of another group than the one shown by default.
        left_out = superfluous(figure) - {str(chosen.get("metric", "")).split("/")[0]}
        table = self._rows.get(
            (selection.version, left_out), lambda: without(selection.table, left_out)
        )
        drawn = figure.draw(table, selection.described, **chosen)
        steps = without_slider(drawn)
        content = {"stem": stem, "figure": {"data": drawn.data, "layout": drawn.layout}}
        return (to_json_plotly(content | ({"steps": steps} if steps else {})) + "\n").encode()

    def _line(self, key: Hashable, stem: str, make: Callable[[], bytes]) -> bytes:
        try:
            return self._made.get(key, make)
        except Exception as error:  # noqa: BLE001 - told on the page; its other figures are drawn
            _log.exception("%s", stem)
            said = without_credentials(f"{type(error).__name__}: {error}")
            return _as_line({"stem": stem, "error": said[:_LONGEST]})


def table_stem(section: str) -> str:
    """The stem of a section's table."""
    return f"{section}_table"


def offers(page: Page, table: pd.DataFrame) -> dict[str, Choices]:
    """The choices of each control of a page that the table leaves any, and a figure to set."""
    from mlflow_scalpel.views import controls, pages

    known = {control.name: control for control in controls.CONTROLS}
    metrics = list(table["metric"].unique())
    drawn = {stem for stem, one in pages.all_figures(page).items() if one.has_rows(metrics)}
    found = {
        name: known[name].offer(table, pages.groups(page))
        for name, stems in pages.controls(page).items()
        if drawn.intersection(stems)
    }
    return {name: choices for name, choices in found.items() if len(choices) > 1}


def controls_of(
    page: Page, offered: Mapping[str, Choices], settings: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The controls of a page, for its script."""
    from mlflow_scalpel.views import controls, pages

    stems = pages.controls(page)
    return [
        {
            "name": control.name,
            "label": control.label,
            "yes": control.yes_or_no,
            "choices": offered[control.name],
            "default": default_of(page, control, offered[control.name]),
            "value": settings.get(control.name) or default_of(page, control, offered[control.name]),
            "figures": stems[control.name],
        }
        for control in controls.CONTROLS
        if control.name in offered
    ]


def default_of(page: Page, control: Control, choices: Choices) -> str:
    """What a control's figures show where nothing is chosen."""
    from mlflow_scalpel.views import pages

    figures = pages.all_figures(page).values()
    value = next(control.default(figure) for figure in figures if control.taken_by(figure))
    return value if value in [allowed for allowed, _ in choices] else choices[0][0]


def chosen_of(page: Page, figure: Placement, settings: Mapping[str, str]) -> dict[str, Any]:
    """The keywords that the settings give to a figure; the others keep their defaults."""
    from mlflow_scalpel.views import pages

    return {
        control.keyword: control.value(settings[control.name])
        for control in pages.taken(page, figure)
        if control.name in settings
    }


def about(selection: Selection, page: Page) -> dict[str, Any]:
    """The chosen runs, and what a reader of the page's figures must know.

    `gaps` says of which metrics of the page values are missing, and why.
    """
    from mlflow_scalpel.views import pages
    from mlflow_scalpel.views.common.table import Measurements
    from mlflow_scalpel.views.report.report import gap_texts
    from mlflow_scalpel.views.summary.differences import base_text

    table = selection.table
    notes = [
        f"{name}: nothing was measured of this run yet; {HOW_TO_MEASURE}"
        for name in selection.unmeasured
    ]
    notes += selection.notes
    bases = base_text(Measurements.of(table, selection.described))
    if len(bases) > 1:
        notes.append(
            f"These runs were measured against different bases ({', '.join(bases)}): their numbers "
            "are distances from different points."
        )
    runs = [
        {
            "id": run.info.run_id,
            "experiment": str(run.info.experiment_id),
            "name": str(run.info.run_name or run.info.run_id)[:_LONGEST],
        }
        for run in selection.runs
    ]
    return {
        "runs": runs,
        "notes": [note[:_LONGEST_NOTE] for note in notes],
        "gaps": gap_texts(table, sorted(pages.required(page))),
    }


def superfluous(figure: Placement) -> frozenset[str]:
    """The large groups of metrics that a figure does not read; none where it may read any."""
    # What is computed the paper's way stands beside what is not.
    read = {group.removesuffix("_paper_compat") for group in figure.groups}
    return LARGE - read if read else frozenset()


def without(table: pd.DataFrame, groups: frozenset[str]) -> pd.DataFrame:
    """The table without these groups, but for a row of each run and step.

    A figure looks through all rows of a table several times, and nearly all of them are of single
    matrices. Runs, their colours and the length of their training are read from any row.
    """
    if not groups:
        return table
    codes, metrics = pd.factorize(table["metric"])
    left_out = np.array([metric.split("/")[0] in groups for metric in metrics], dtype=bool)
    first = ~table.duplicated(["run_id", "step"])
    return table[~left_out[codes] | first]


def empty_lines(table: pd.DataFrame, page: Page) -> dict[str, dict[str, str]]:
    """What to say of a page's figures that have nothing to show, by stem.

    Those of a section that come from one command are named together in the place of the first of
    them, which the lines of the others name as `told_at`.
    """
    from mlflow_scalpel.views import pages

    metrics = list(table["metric"].unique())
    together: dict[tuple[str, str], dict[str, str]] = {}  # section, remedy -> stem -> name
    for section in page.sections():
        for stem, figure in pages.figures(page, section):
            if not figure.has_rows(metrics):
                together.setdefault((section.stem, figure.remedy), {})[stem] = figure.name
    found: dict[str, dict[str, str]] = {}
    for (_, remedy), absent in together.items():
        stems, names = list(absent), ", ".join(absent.values())
        found[stems[0]] = {"empty": f"Not measured: {names}. Comes from: {remedy}."}
        found |= {stem: {"told_at": stems[0]} for stem in stems[1:]}
    return found


def table_line(selection: Selection, stem: str, make: Callable[..., Any]) -> bytes:
    """A section's table as a line of JSON; its text is escaped where the HTML is made."""
    return _as_line({"stem": stem, "html": str(make(selection.table, selection.described))})


def _as_line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"
