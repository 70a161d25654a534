"""The registry of metrics, open to other packages."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Literal

ENTRY_POINT_GROUP = "mlflow_scalpel.metrics"
Kind = Literal["weights", "divergence"]


@dataclass(frozen=True)
class Metric:
    """A registered metric: `function` computes it, the rest says what it is."""

    name: str
    """Full name as in the tidy table, group first: `weights/relative_frobenius`."""
    kind: Kind
    """What the function takes: `weights` a pair of matrices' moments, `divergence` logits."""
    unit: str
    version: int
    """Goes up when the values that the function gives change."""
    function: Callable[..., Any]


_METRICS: dict[str, Metric] = {}


def register(
    kind: Kind, name: str, *, unit: str, version: int = 1
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: make the function known as the metric `name`; raises ValueError for a second."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        if name in _METRICS:
            raise ValueError(f"metric {name!r} is registered twice; give one of them another name")
        _METRICS[name] = Metric(name, kind, unit, version, function)
        return function

    return add


weight_metric = functools.partial(register, "weights")
divergence_metric = functools.partial(register, "divergence")


def metrics_of_kind(kind: Kind) -> list[Metric]:
    """Every registered metric of a kind, in order of name."""
    _discover()
    return sorted((m for m in _METRICS.values() if m.kind == kind), key=lambda metric: metric.name)


@functools.cache
def _discover() -> None:
    """Import this package's metric files and those that entry points name."""
    package = importlib.import_module("mlflow_scalpel.metrics")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        entry_point.load()
