"""The registry of metrics, open to other packages."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from mlflow_scalpel.errors import ScalpelError

ENTRY_POINT_GROUP = "mlflow_scalpel.metrics"

GROUPS = {
    "weights": "one pass over each pair of matrices",
    "histograms": "each pair of matrices, in bins",
    "spectra": "singular values of each pair of matrices",
    "pairs": "the updates of two checkpoints from one base",
    "weights_paper_compat": "each pair of matrices, in bfloat16 as arXiv 2507.10616 computes it",
    "attention": "attention rows of base and checkpoint over texts",
    "kl": "base and checkpoint run over texts",
    "kl_paper_compat": "base and checkpoint run over texts, in bfloat16 as arXiv 2507.10616 does",
    "kl_on_base_samples": "base and checkpoint run over the base's own answers",
    "capabilities": "rows of evaluations of base and checkpoint",
}
"""What the functions of a group read; every function of a group takes the same arguments."""


@dataclass(frozen=True)
class Metric:
    """A registered metric: `function` computes it, the rest says what it is."""

    name: str
    """Full name as in the tidy table, group first: `weights/relative_frobenius`."""
    title: str
    """What figures and pages call it."""
    unit: str
    """What the table's column `unit` says."""
    version: int
    """Goes up when the values that the function gives change."""
    function: Callable[..., Any]
    axis: str
    """What the axis of a figure says: a formula, or the unit."""
    signed: bool = False
    """Whether values may lie below 0: figures then part their colours there."""
    on: str = ""
    """On what it is measured, where that is not in the function's docstring; a short line first."""

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        first = (inspect.getdoc(self.function) or "").partition("\n")[0]
        return f"{first} {self.on.partition(chr(10))[0]}".strip()

    @property
    def description(self) -> str:
        """What it is and on what it is measured, in full."""
        return "\n\n".join(filter(None, [inspect.getdoc(self.function) or "", self.on]))

    @property
    def group(self) -> str:
        """The part of the name before the first slash."""
        return self.name.split("/", 1)[0]


_METRICS: dict[str, Metric] = {}


def metric(
    name: str,
    *,
    title: str,
    unit: str,
    axis: str = "",
    signed: bool = False,
    version: int = 1,
    on: str = "",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: make the function known as the metric `name`, which begins with its group.

    Args:
        name: as in the tidy table, `group/name`.
        title: what figures and pages call it, in a few words.
        unit: of its values, for the table; figures show it where there is no `axis`.
        axis: what the axis of a figure says instead of the unit.
        signed: values may lie below 0.
        version: goes up when the values that the function gives change.
        on: what it is measured on, where one function serves several metrics.

    Raises ValueError for a second metric of that name, or a group that nothing computes.
    """

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        if name in _METRICS:
            raise ValueError(f"metric {name!r} is registered twice; give one of them another name")
        made = Metric(name, title, unit, version, function, axis or unit, signed, on)
        if made.group not in GROUPS:
            raise ValueError(f"metric {name!r}: its group is none of {', '.join(GROUPS)}")
        _METRICS[name] = made
        return function

    return add


def all_metrics() -> list[Metric]:
    """Every registered metric, in order of group and name."""
    _discover()
    order = list(GROUPS)
    return sorted(_METRICS.values(), key=lambda one: (order.index(one.group), one.name))


def find_metric(name: str) -> Metric | None:
    """The metric of that name; None where no package declares it."""
    _discover()
    return _METRICS.get(name)


def choose_metrics(names: Iterable[str]) -> list[Metric]:
    """The metrics that `names` (of metrics or groups) choose, in order of group and name.

    Raises ScalpelError for a name that is neither.
    """
    known, chosen = all_metrics(), set()
    for name in names:
        found = {one.name for one in known if name in (one.name, one.group)}
        if not found:
            near = difflib.get_close_matches(name, [*GROUPS, *(one.name for one in known)], n=1)
            raise ScalpelError(
                f"metric {name!r} is neither a metric nor a group"
                f"{f'; did you mean {near[0]}?' if near else ''}; "
                "`mlflow-scalpel metrics` lists them"
            )
        chosen |= found
    return [one for one in known if one.name in chosen]


@functools.cache
def _discover() -> None:
    """Import this package's metric files and those that entry points name."""
    package = importlib.import_module("mlflow_scalpel.metrics")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        entry_point.load()
