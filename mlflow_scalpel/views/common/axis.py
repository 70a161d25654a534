"""The axes of figures over training: fraction of the run, steps, tokens, FLOPs or hours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.common.panels import Grid
from mlflow_scalpel.views.common.table import Measurements
from mlflow_scalpel.views.common.text import esc

#: x -> title of the axis
CHOICES = {
    "step": "step",
    "fraction": "fraction of the run",
    "tokens": "tokens trained on",
    "flops": "FLOP, estimated",
    "hours": "hours since training began, measuring included",
}
#: x -> (metric that gives it, how many of its unit make one of the axis's)
COSTS = {
    "tokens": ("cost/tokens_trained", 1.0),
    "flops": ("cost/flops", 1.0),
    "hours": ("cost/wall_seconds", 3600.0),
}


@dataclass(frozen=True)
class Placed:
    """Rows with their places on the x axis."""

    rows: pd.DataFrame  # with the column `x`: float64, NaN where the table does not say
    note: str  # safe text for a subtitle: whose points have no place, and why
    empty: str  # safe text: why no point has a place; "" where any has one


def place(data: Measurements, rows: pd.DataFrame, x: str = "step") -> Placed:
    """The places of `rows` on the axis `x`.

    `x` is "step"; "fraction", the step over the run's `steps` in `runs`, or over its last step in
    the table where that is unknown or later; or "tokens", "flops" or "hours", which are the run's
    `cost/tokens_trained`, `cost/flops` and `cost/wall_seconds` at the same step. The base (step 0)
    stands at 0. A row without a cost at its step has no place: NaN, and the reason in `note`.

    Raises ValueError for another `x`.
    """
    check_choice("x", x, CHOICES)
    steps = rows["step"].to_numpy(dtype=float)
    where, missing = steps, {}
    if x == "fraction":
        ends = {run_id: data.end(run_id) for run_id in set(rows["run_id"])}
        where = steps / rows["run_id"].map(ends).to_numpy(dtype=float)
    elif x in COSTS:
        metric, unit = COSTS[x]
        costs = data.rows(metric)
        costs = costs[costs["value"].notna()]
        known = costs.set_index(["run_id", "step"])["value"]
        known = known[~known.index.duplicated(keep="last")]
        places = pd.MultiIndex.from_arrays([rows["run_id"], steps])
        where = known.reindex(places).to_numpy(dtype=float) / unit
        where = np.where(steps == 0, 0.0, where)
        with_some = set(costs["run_id"])
        missing = {
            run_id: f"no {metric} in the table" + " at some of its steps" * (run_id in with_some)
            for run_id in dict.fromkeys(rows["run_id"][np.isnan(where)])
        }
    where = np.where(steps == 0, 0.0, where)
    lines = [f"{data.styles[run_id].label}: {esc(why)}" for run_id, why in missing.items()]
    note = f"not drawn: {'; '.join(lines)}" if lines else ""
    none = not np.isfinite(where).any()
    other = "Choose another x axis: steps or the fraction of the run."
    return Placed(rows.assign(x=where), note, f"{note}. {other}" if none else "")


def check_choice(name: str, value: str, choices: Sequence[str] | dict[str, Any]) -> None:
    """Raises ValueError for a keyword's value that is not one of its choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: pass one of {', '.join(map(repr, choices))}")


def set_x(figure: go.Figure, x: str, *, log_x: bool = False) -> None:
    """Title and type of every x axis of a figure."""
    settings: dict[str, object] = {"title_text": CHOICES[x], "type": "log" if log_x else "linear"}
    if x in ("tokens", "flops"):
        settings |= {"tickformat": "~s"}
    figure.update_xaxes(**settings)


def y_axis(log_y: bool) -> dict[str, object]:
    """A y axis; where it is logarithmic, with no more digits between the powers than have room."""
    axis: dict[str, object] = {"type": "log" if log_y else "linear", "exponentformat": "power"}
    return axis | ({"nticks": 6} if log_y else {})


def share_y(grid: Grid, axis_title: str, log_y: bool) -> None:
    """One y axis for all panels, written on the first of each row."""
    grid.figure.update_yaxes(y_axis(log_y), matches="y")
    grid.figure.layout.yaxis.matches = None  # Plotly warns of an axis that matches itself
    for panel in grid:
        panel.y(showticklabels=panel.first, title_text=axis_title if panel.first else None)


def scale_text(log_y: bool) -> str:
    """Of which kind an axis is, for a subtitle."""
    return "logarithmic axis" if log_y else "linear axis"
