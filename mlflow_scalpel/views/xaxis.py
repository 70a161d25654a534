"""What the x axis of training counts: fraction of the run, steps, tokens, FLOPs or hours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.style import Run, column_of, esc
from mlflow_scalpel.views.tidy import number

#: x -> title of the axis
CHOICES = {
    "step": "step",
    "fraction": "fraction of the run",
    "tokens": "tokens trained on",
    "flops": "FLOP, estimated",
    "hours": "hours since training began, measuring included",
}
#: x -> (metric that says it, how many of its unit make one of the axis's)
COSTS = {
    "tokens": ("cost/tokens_trained", 1.0),
    "flops": ("cost/flops", 1.0),
    "hours": ("cost/wall_seconds", 3600.0),
}


@dataclass(frozen=True)
class X:
    """Where rows stand on the x axis."""

    title: str
    where: np.ndarray  # (rows,) float64; NaN where the table does not say
    lacking: dict[str, str]  # run id -> why some of its rows have no place


def x_of(
    clean: pd.DataFrame, rows: pd.DataFrame, x: str = "step", runs: pd.DataFrame | None = None
) -> X:
    """Where each of `rows` stands on the axis `x`; `clean` is all of the table, as `read` gives it.

    `x` is "step"; "fraction", the step over the run's `steps` in `runs`, or over its last step in
    the table where that is unknown or later; or "tokens", "flops" or "hours", which are the run's
    `cost/tokens_trained`, `cost/flops` and `cost/wall_seconds` at the same step. The base (step 0)
    stands at 0. A row without a cost at its step has no place: NaN, and the reason in `lacking`.

    Raises ValueError for another `x`.
    """
    if x not in CHOICES:
        raise ValueError(f"x is {x!r}: pass one of {', '.join(map(repr, CHOICES))}")
    steps = rows["step"].to_numpy(dtype=float)
    if x == "step":
        return X(CHOICES[x], steps, {})
    if x == "fraction":
        ends = {run_id: end_of(clean, run_id, runs) for run_id in set(rows["run_id"])}
        where = steps / rows["run_id"].map(ends).to_numpy(dtype=float)
        return X(CHOICES[x], np.where(steps == 0, 0.0, where), {})
    metric, unit = COSTS[x]
    costs = clean[(clean["metric"] == metric) & clean["value"].notna()]
    known = costs.set_index(["run_id", "step"])["value"]
    known = known[~known.index.duplicated(keep="last")]
    places = pd.MultiIndex.from_arrays([rows["run_id"], steps])
    where = known.reindex(places).to_numpy(dtype=float) / unit
    where = np.where(steps == 0, 0.0, where)
    lost = rows["run_id"][np.isnan(where)]
    with_some = set(costs["run_id"])
    lacking = {
        run_id: f"no {metric} in the table" + " at some of its steps" * (run_id in with_some)
        for run_id in dict.fromkeys(lost)
    }
    return X(CHOICES[x], where, lacking)


def end_of(clean: pd.DataFrame, run_id: str, runs: pd.DataFrame | None) -> float:
    """A run's last step: what `runs` says in `steps`, or the table's last where that is later."""
    last = clean.loc[clean["run_id"] == run_id, "step"].max()
    said = number(column_of(runs, run_id, "steps"))
    ends = [float(end) for end in (last, said) if end is not None and end > 0]
    return max(ends, default=float("nan"))


def lacking_words(x: X, looks: Mapping[str, Run]) -> str:
    """For a subtitle: whose points have no place on the axis, and why; "" where all have one."""
    said = [f"{looks[run_id].label}: {esc(why)}" for run_id, why in x.lacking.items()]
    return f"not drawn: {'; '.join(said)}" if said else ""


def nowhere(x: X, looks: Mapping[str, Run]) -> str:
    """For a figure with no point that has a place on the axis: why; "" where any has one."""
    if np.isfinite(x.where).any():
        return ""
    return f"{lacking_words(x, looks)}. Choose another x axis: steps or the fraction of the run."


def set_x(figure: go.Figure, x: str, *, log_x: bool = False, rows: Sequence[int] = ()) -> None:
    """Title and type of every x axis of a figure (or of its panels' `rows`, from 1)."""
    settings: dict[str, object] = {"title_text": CHOICES[x], "type": "log" if log_x else "linear"}
    if x in ("tokens", "flops"):
        settings |= {"tickformat": "~s"}
    for row in rows or (None,):
        figure.update_xaxes(**settings, row=row)
