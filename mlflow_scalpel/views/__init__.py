"""Figures of the tidy table, and the static report.

Each figure is a function of the table (and, optionally, of the runs' names and parameters) that
returns a Plotly figure, so that it works in a notebook, in a report and in a server alike. The
functions are those that are declared with `@view`, `@section_table` or `@public`.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    # Plotly is imported where a view is asked for.
    from mlflow_scalpel.views.common.view import exported

    if not name.startswith("_") and name in (found := exported()):
        return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    from mlflow_scalpel.views.common.view import exported

    return list(exported())
