"""What can be set on a page, and which figures take it: those whose functions have the keyword."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mlflow_scalpel.views.capabilities.scores import benchmarks_in, capability_rows
from mlflow_scalpel.views.common.axis import CHOICES
from mlflow_scalpel.views.common.table import Measurements, matrices_in, of_layers
from mlflow_scalpel.views.common.view import Placement

#: (value in the URL, label), the default first.
Choices = list[tuple[str, str]]
#: The choices of a control, for a table and the groups of metrics that its page shows.
Offer = Callable[[pd.DataFrame, set[str]], Choices]


@dataclass(frozen=True)
class Control:
    """Something that can be set on a page.

    `name` is its name in the URL; a figure takes it if its function has the keyword `keyword` with
    a default that `fits` (two figures may mean different things by one keyword). Its values are
    made of their text in the URL by `value`.
    """

    name: str
    label: str
    keyword: str
    offer: Offer
    fits: Callable[[Any], bool]
    value: Callable[[str], Any] = str
    yes_or_no: bool = False

    def taken_by(self, figure: Placement) -> bool:
        """Whether a figure can be set by this control."""
        keywords = figure.keywords()
        return self.keyword in keywords and self.fits(keywords[self.keyword])

    def default(self, figure: Placement) -> str:
        """The value of a figure that takes it, where none is chosen, as in the URL; "" for None."""
        value = figure.keywords()[self.keyword]
        return "" if value is None else str(value).lower() if value in (True, False) else str(value)


def choice(name: str, label: str, choices: Choices, keyword: str = "") -> Control:
    """One of a few values; a figure takes it if its default is one of them."""
    values = [value for value, _ in choices]
    return Control(
        name, label, keyword or name, lambda *_: choices, lambda default: default in values
    )


def yes(name: str, label: str, default: bool) -> Control:
    """Yes or no; a figure for which none is chosen keeps its function's default."""
    choices = [("true", "yes"), ("false", "no")]
    choices = choices if default else choices[::-1]
    return Control(
        name,
        label,
        name,
        lambda *_: choices,
        lambda default: default is None or isinstance(default, bool),
        lambda text: text == "true",
        yes_or_no=True,
    )


def metrics(table: pd.DataFrame, groups: set[str]) -> Choices:
    """The metrics of these groups with one value per layer and matrix, or layer and head."""
    rows = table[table["layer"].notna() & (table["bin"] == "") & (table["other"] == "")]
    found = [one for one in rows["metric"].unique() if one.split("/")[0] in groups]
    return [(metric, metric) for metric in found]


def steps(table: pd.DataFrame, groups: set[str]) -> Choices:
    """The steps of the checkpoints; the last of each run unless one is chosen."""
    found = sorted(table.loc[table["step"] > 0, "step"].unique())
    return [("", "the last of each run"), *((f"{step:g}", f"step {step:g}") for step in found)]


def layers(table: pd.DataFrame, groups: set[str]) -> Choices:
    """The layers of the model, or all of them."""
    found = sorted(of_layers(table)["layer"].unique())
    return [("", "all"), *((f"{layer:g}", f"{layer:g}") for layer in found)]


def matrices(table: pd.DataFrame, groups: set[str]) -> Choices:
    """The matrices of a layer, or all of them."""
    return [("", "all"), *((matrix, matrix) for matrix in matrices_in(of_layers(table)))]


def benchmarks(table: pd.DataFrame, groups: set[str]) -> Choices:
    """The benchmarks of which there is a ledger, or those that the figure would choose."""
    found = benchmarks_in(capability_rows(Measurements.of(table), "kept", "pass_at_k"))
    return [("", "all"), *((one.key, one.key) for one in found)]


def is_absent(default: Any) -> bool:
    """Whether a keyword has no value of its own."""
    return default is None


METRIC = Control(
    "metric",
    "metric",
    "metric",
    metrics,
    lambda default: isinstance(default, str) and "/" in default,
)
SCALE = Control(
    "shared_scale",
    "colour scale",
    "shared_scale",
    lambda *_: [("true", "one for all"), ("false", "one for each")],
    lambda default: isinstance(default, bool),
    lambda text: text == "true",
)
CONTROLS = (
    METRIC,
    SCALE,
    choice("by", "checkpoints by", [("fraction", "fraction of the run"), ("step", "step")]),
    choice("lines", "lines by", [("matrix", "matrix"), ("layer", "layer")], "by"),
    choice("x", "x axis", list(CHOICES.items())),
    yes("log_x", "logarithmic x", default=False),
    yes("log_y", "logarithmic y", default=True),
    Control("step", "bars and curves at", "step", steps, is_absent, lambda text: int(float(text))),
    Control("layer", "layer", "layer", layers, is_absent, int),
    Control("matrix", "matrix", "matrix", matrices, is_absent),
    Control("benchmark", "benchmark", "benchmark", benchmarks, is_absent),
)
