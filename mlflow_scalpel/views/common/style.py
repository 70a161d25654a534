"""The look of runs: one colour per algorithm, dashes, marks and patterns that tell runs apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mlflow_scalpel.comparison.table import IMPORTED
from mlflow_scalpel.views.common.text import column_of, esc, unique

# Okabe and Ito's palette, safe for colour-blind readers. Blue and orange stand for the two
# algorithms met most because they differ in lightness too: they survive a greyscale print.
ALGORITHM_COLOURS = {"base": "#8A8F98", "grpo": "#0072B2", "sft": "#E69F00"}
OTHER_COLOURS = ("#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
BASE_COLOUR = ALGORITHM_COLOURS["base"]

# Matrices take another palette (Tol's "bright"), so that no matrix wears an algorithm's colour.
MATRIX_COLOURS = ("#4477AA", "#EE6677", "#228833", "#AA9922", "#33AACC", "#AA3377", "#999999")

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down", "cross")
PATTERNS = ("", "/", ".", "x", "\\", "-")
HOLLOW = 0.25  # opacity of what an outline holds

TEXT_COLOUR = "#757B85"
GRID_COLOUR = "rgba(128,128,128,0.22)"
LINE_COLOUR = "rgba(128,128,128,0.65)"

#: Characters of a run's name in a figure, and of an imported one's before its mark.
LABEL, MARKED_LABEL = 28, 24


@dataclass(frozen=True)
class Run:
    """A run as every figure draws it."""

    run_id: str
    name: str  # other people's text: raw
    label: str  # the name, escaped and short enough for a legend or a panel title; unique
    algorithm: str
    colour: str
    dash: str
    symbol: str
    pattern: str

    @property
    def line(self) -> dict[str, Any]:
        """The keywords of its line, as `traces.draw` takes them."""
        return {
            "name": self.label,
            "series": self.name,
            "colour": self.colour,
            "dash": self.dash,
            "symbol": self.symbol,
        }

    @property
    def bar(self) -> dict[str, object]:
        """The marker of its bars."""
        return filled(self.colour, self.pattern)


def filled(colour: str, pattern: str = "") -> dict[str, object]:
    """A bar's marker: its algorithm's colour, with a pattern that tells runs of one apart."""
    hatch = {"shape": pattern, "bgcolor": colour, "fgcolor": "#FFFFFF", "solidity": 0.25}
    return {"color": colour, "pattern": hatch}


def hollow(colour: str, pattern: str = "") -> dict[str, object]:
    """The marker of a base's bar: an outline, which a greyscale print tells from any run's bar."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    within = f"rgba({red},{green},{blue},{HOLLOW})"
    hatch = {"shape": pattern, "bgcolor": within, "fgcolor": colour, "solidity": 0.25}
    return {"color": within, "pattern": hatch, "line": {"color": colour, "width": 1.5}}


def short_labels(names: Mapping[str, str]) -> dict[str, str]:
    """Names by run id, safe and short enough for a legend or a panel's title.

    The mark of imported runs takes no room where all have it, since it tells none apart, and is
    left whole where some have it. The name in full stands on hover and in tables.
    """
    if all(name.endswith(IMPORTED) for name in names.values()):
        return {i: esc(name.removesuffix(IMPORTED), LABEL) for i, name in names.items()}
    return {
        i: esc(name.removesuffix(IMPORTED), MARKED_LABEL) + IMPORTED
        if name.endswith(IMPORTED)
        else esc(name, LABEL)
        for i, name in names.items()
    }


def run_styles(clean: pd.DataFrame, runs: pd.DataFrame | None) -> dict[str, Run]:
    """The table's runs, in the order of `runs`, then of the table, each with its look.

    Colours follow from the whole table, not from the rows a figure draws, so that an algorithm
    keeps its colour from figure to figure.
    """
    seen = [run_id for run_id in clean["run_id"].unique() if run_id]
    listed = [] if runs is None else [str(index) for index in runs.index]
    order = [i for i in dict.fromkeys(listed) if i in seen] + [i for i in seen if i not in listed]
    algorithms = {}
    for run_id in order:
        found = [a for a in clean.loc[clean["run_id"] == run_id, "algorithm"].unique() if a]
        algorithms[run_id] = column_of(runs, run_id, "algorithm") or (found[0] if found else "run")
    names = unique(
        {
            i: column_of(runs, i, "name") or f"{algorithms[i]} {i.removeprefix('m-')[:6]}"
            for i in order
        }
    )
    labels = unique(short_labels(names))
    others = sorted({a.lower() for a in algorithms.values()} - set(ALGORITHM_COLOURS))
    count: dict[str, int] = {}
    result = {}
    for run_id in order:
        key = algorithms[run_id].lower()
        i = count[key] = count.get(key, -1) + 1
        colour = ALGORITHM_COLOURS.get(key)
        if colour is None:
            colour = OTHER_COLOURS[others.index(key) % len(OTHER_COLOURS)]
        result[run_id] = Run(
            run_id=run_id,
            name=names[run_id],
            label=labels[run_id],
            algorithm=algorithms[run_id],
            colour=colour,
            dash=DASHES[i % len(DASHES)],
            symbol=SYMBOLS[i % len(SYMBOLS)],
            pattern=PATTERNS[i % len(PATTERNS)],
        )
    return result
