"""Figures of the tidy table, and the static report.

Each figure is a function of the table (and, optionally, of the runs' names and parameters) that
returns a Plotly figure, so that it works in a notebook, in a report and in a server alike. The
functions are those that are declared with `@view`, `@section_table` or `@public`.
"""

from typing import Any

from mlflow_scalpel.views.common.view import exported


def __getattr__(name: str) -> Any:
    if not name.startswith("_") and name in (found := exported()):
        return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(exported())
