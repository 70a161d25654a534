"""The declaration of a view: `@view` makes a function of measurements one of the tidy table.

A view is declared once, at its function: what it is called, which metrics it requires, what to run
for them, and where it stands. The report's sections, the pages, and the names that
`mlflow_scalpel.views` exports are made from these declarations.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from mlflow_scalpel.views.common.table import Measurements

P = ParamSpec("P")
R = TypeVar("R", covariant=True)

X = {"x": "fraction"}  # at which runs of different length meet

COMPARE = "mlflow run . -e compare (or mlflow-scalpel compare BASE runs:/RUN --log)"
EVALUATE = "mlflow run . -e evaluate"
SAMPLES = "mlflow run . -e evaluate, with a suite of several samples per problem"


def compare(metrics: str, others: str = "") -> str:
    """The command that measures groups of metrics of a run."""
    return f"mlflow-scalpel compare BASE runs:/RUN{others} --metrics {metrics} --log"


class View(Protocol[P, R]):
    """A public function of the tidy table, and of what is known of its runs."""

    __name__: str

    def __call__(
        self,
        table: pd.DataFrame | Measurements,
        runs: pd.DataFrame | None = None,
        *args: P.args,
        **keywords: P.kwargs,
    ) -> R:
        """Draw it."""


@dataclass(frozen=True)
class Placement:
    """A place of a view in the report and on pages, with the settings that it has there."""

    section: str
    """The stem of its section; see `sections.py`."""
    place: int
    """Its order within the section."""
    name: str
    """What it is called where there is nothing to draw."""
    requires: str | tuple[str, ...] = ""
    """The start of the metrics without which it shows nothing."""
    remedy: str = ""
    """What to run for these metrics."""
    stem: str = ""
    """The name of its files; that of the function unless given."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Keywords that differ from the function's own defaults."""
    view: View[..., go.Figure] = field(kw_only=True, default=None)  # type: ignore[assignment,arg-type]
    """The public function; set by the decorator."""

    @property
    def starts(self) -> tuple[str, ...]:
        """`requires` as a tuple."""
        return (self.requires,) if isinstance(self.requires, str) else self.requires

    @property
    def groups(self) -> set[str]:
        """The groups of the metrics that it requires; empty where it may read any."""
        return {start.split("/")[0] for start in self.starts} - {""}

    def has_rows(self, metrics: list[str]) -> bool:
        """Whether there is any metric that it requires."""
        return any(metric.startswith(self.starts) for metric in metrics)

    def keywords(self) -> dict[str, Any]:
        """The keywords of the function with the defaults that they have here."""
        parameters = list(inspect.signature(self.view).parameters.values())[2:]
        return {one.name: one.default for one in parameters} | self.settings

    def draw(
        self, table: pd.DataFrame | Measurements, runs: pd.DataFrame | None = None, **chosen: Any
    ) -> go.Figure:
        """The figure; `chosen` keywords go before its own settings."""
        return self.view(table, runs, **{**self.settings, **chosen})


_FIGURES: list[Placement] = []
_TABLES: dict[str, View[[], Markup]] = {}
_PUBLIC: dict[str, Callable[..., Any]] = {}


def view(
    *placements: Placement,
) -> Callable[[Callable[Concatenate[Measurements, P], R]], View[P, R]]:
    """Decorator: make a function of measurements the public view `NAME(table, runs=None, *, ...)`.

    `placements` are its places in the report and on pages, none for a view that is only called.
    """

    def decorate(function: Callable[Concatenate[Measurements, P], R]) -> View[P, R]:
        made = _public(function)
        for one in placements:
            _FIGURES.append(
                replace(one, stem=one.stem or made.__name__, view=made)  # type: ignore[arg-type]
            )
        return made

    return decorate


def section_table(
    section: str,
) -> Callable[[Callable[Concatenate[Measurements, P], R]], View[P, R]]:
    """Decorator: make a function of measurements public, and its HTML the table of a section."""

    def decorate(function: Callable[Concatenate[Measurements, P], R]) -> View[P, R]:
        made = _public(function)
        _TABLES[section] = made  # type: ignore[assignment]
        return made

    return decorate


def public(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: export a function that is not of the tidy table."""
    _PUBLIC[function.__name__] = function
    return function


def _public(function: Callable[Concatenate[Measurements, P], R]) -> View[P, R]:
    @functools.wraps(function)
    def made(
        table: pd.DataFrame | Measurements,
        runs: pd.DataFrame | None = None,
        *args: P.args,
        **keywords: P.kwargs,
    ) -> R:
        return function(Measurements.of(table, runs), *args, **keywords)

    signature = inspect.signature(function)
    _, *others = signature.parameters.values()
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    first = [
        inspect.Parameter("table", kind, annotation="pd.DataFrame"),
        inspect.Parameter("runs", kind, default=None, annotation="pd.DataFrame | None"),
    ]
    made.__signature__ = signature.replace(parameters=[*first, *others])  # type: ignore[attr-defined]
    _PUBLIC[made.__name__] = made
    return made


@functools.cache
def load() -> None:
    """Import every module of the views, each of which declares its own."""
    folder = Path(__file__).parents[1]
    for module in pkgutil.walk_packages([str(folder)], "mlflow_scalpel.views."):
        importlib.import_module(module.name)


def exported() -> dict[str, Callable[..., Any]]:
    """The public functions of the views, by name."""
    load()
    return dict(sorted(_PUBLIC.items()))


@functools.cache
def figures_in(section: str) -> dict[str, Placement]:
    """The figures of a section by stem, in their order."""
    load()
    own = sorted((one for one in _FIGURES if one.section == section), key=lambda one: one.place)
    return {one.stem: one for one in own}


def table_in(section: str) -> View[[], Markup] | None:
    """The table of a section, where it has one."""
    load()
    return _TABLES.get(section)
