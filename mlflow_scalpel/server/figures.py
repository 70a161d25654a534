"""Figures of a selection as JSON, made once for all who look at the same thing."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.server.caching import Cache
from mlflow_scalpel.server.data import Selection

HOW_TO_MEASURE = (
    "its checkpoints are measured by `mlflow run . -e compare`, or against any base by "
    "`mlflow-scalpel compare BASE runs:/RUN_ID --log`."
)
_FIGURE_BYTES = 128 << 20
_LONGEST, _LONGEST_NOTE = 400, 2000  # characters of a name, and of a note
_log = logging.getLogger(__name__)


class Figures:
    """The figures of pages, by what was chosen and set; shared by the threads of a process."""

    def __init__(self, limit: int = _FIGURE_BYTES) -> None:
        self._made: Cache[bytes] = Cache(limit, len)

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
        settings = settle(page, selection.table, wanted)
        controls = [
            {**control, "value": settings[str(control["name"])]}
            for control in offered(page, selection.table)
        ]
        yield _line({"about": about(selection), "controls": controls})
        for section, stem, view in pages.figures(page):
            if stems and stem not in stems:
                continue
            taken = {k: v for k, v in settings.items() if k in pages.keywords(view)}
            key = (selection.version, page.name, stem, tuple(sorted(taken.items())))
            try:
                yield self._made.get(
                    key,
                    lambda view=view, section=section, stem=stem, taken=taken: figure_line(  # type: ignore[misc]
                        selection, section, stem, view, taken
                    ),
                )
            except Exception as error:  # noqa: BLE001 - the other figures of the page are drawn
                _log.exception("figure %s of runs %s", stem, selection.described.index.to_list())
                yield _line({"stem": stem, "error": f"{type(error).__name__}: {error}"})


def settle(page: Any, table: pd.DataFrame, wanted: Mapping[str, str]) -> dict[str, str]:
    """The value of each control of a page: what the URL says, or else the default."""
    settings = {}
    for control in offered(page, table):
        allowed = [value for value, _ in control["choices"]]
        value = wanted.get(control["name"], "")
        settings[control["name"]] = value if value in allowed else (allowed or [""])[0]
    return settings


def offered(page: Any, table: pd.DataFrame) -> list[dict[str, Any]]:
    """The controls of a page, with the choices that the table leaves."""
    from mlflow_scalpel.views import pages

    found = []
    for control in pages.controls(page):
        choices: list[tuple[str, str]] = list(control.choices)
        if control.kind == "metric":
            choices = [(metric, metric) for metric in pages.metrics(page, table)]
        elif control.kind == "yes":
            choices = [("false", "no"), ("true", "yes")]
        found.append(
            {
                "name": control.name,
                "label": control.label,
                "kind": control.kind,
                "choices": choices,
                "figures": pages.taking(page, control.name),
            }
        )
    return found


def about(selection: Selection) -> dict[str, Any]:
    """The chosen runs, and what a reader of any of their figures must know."""
    from mlflow_scalpel.views.report import gap_words

    table = selection.table
    notes = [
        f"{name}: nothing was measured of this run yet; {HOW_TO_MEASURE}"
        for name in selection.unmeasured
    ]
    bases = list(dict.fromkeys(base for base in table["base"] if base))
    digests = {digest for digest in table["base_digest"] if digest}
    if len(bases) > 1 and len(digests) != 1:
        notes.append(
            f"These runs were measured against different bases ({', '.join(bases)}): their numbers "
            "are distances from different points."
        )
    gaps = gap_words(table)
    if gaps:
        notes.append("Values that are missing: " + "; ".join(gaps))
    runs = [
        {
            "id": run.info.run_id,
            "experiment": str(run.info.experiment_id),
            "name": str(run.info.run_name or run.info.run_id)[:_LONGEST],
        }
        for run in selection.runs
    ]
    return {"runs": runs, "notes": [note[:_LONGEST_NOTE] for note in notes]}


def figure_line(
    selection: Selection, section: Any, stem: str, view: Any, settings: Mapping[str, str]
) -> bytes:
    """A figure as a line of JSON; what to run, where the table has nothing of the section."""
    from plotly.io.json import to_json_plotly

    rows = selection.table[selection.table["metric"].str.startswith(section.needs)]
    if not len(rows):
        return _line({"stem": stem, "empty": section.absent})
    said = {"true": True, "false": False}
    chosen = {name: said.get(value, value) for name, value in settings.items() if value}
    figure = view(selection.table, selection.described, **chosen)
    steps = unslid(figure)
    content = {"stem": stem, "figure": {"data": figure.data, "layout": figure.layout}}
    return (to_json_plotly(content | ({"steps": steps} if steps else {})) + "\n").encode()


def unslid(figure: Any) -> list[dict[str, Any]]:
    """Take the slider out of a figure, and its room: the page has one for all its figures.

    Returns its steps: label, and what changes in traces and in the layout.
    """
    room = slider_room(figure)
    if not room:
        return []
    steps = [{"label": step.label, "args": step.args} for step in figure.layout.sliders[0].steps]
    figure.layout.sliders = []
    figure.layout.height -= room
    figure.layout.margin.b -= room
    return steps


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"
