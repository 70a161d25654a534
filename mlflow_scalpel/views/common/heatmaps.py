"""Heat maps: colour scales that say what they span, cells that say why they are empty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.common.text import esc, hover, short

COLOURS = "Viridis"
#: For metrics of either sign: blue below, yellow above, grey at 0. Lightness rises throughout, so
#: that a greyscale print still tells a fall from a rise.
DIVERGING = ((0, "#0A2F6B"), (0.25, "#4677B5"), (0.5, "#A3A7AD"), (0.75, "#E2B741"), (1, "#FFF2A8"))
#: Up to so many cells a heat map has room for a number in each.
NUMBERED = 100


@dataclass(frozen=True)
class Scale:
    """What the colours of a heat map span."""

    low: float
    high: float
    colours: Any

    @property
    def span(self) -> str:
        """The two ends, to be written on the scale."""
        if self.low < 0:
            return f"\u2212{short(-self.low)} to {short(self.high)}"
        return f"{short(self.low)}\u2013{short(self.high)}"


def scale_of(values: pd.Series, *, signed: bool = False) -> Scale:
    """A scale that holds these values; [0, 1] where there is nothing to scale.

    It begins at 0, or is symmetric about it if `signed` or any value is below it; where all values
    lie within a factor of two it spans them alone, or nothing would show.
    """
    known = values.dropna()
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    if signed or low < 0:
        end = max(abs(low), abs(high)) or 1.0
        return Scale(-end, end, DIVERGING)
    begin = low if 0 < high / 2 < low < high else 0.0
    return Scale(begin, high if high > 0 else 1.0, COLOURS)


@dataclass(frozen=True)
class Cells:
    """The cells of a heat map: rows upwards, columns to the right."""

    z: np.ndarray  # (rows, columns); NaN where there is no value
    why: dict[tuple[int, int], str]  # why there is none, as plain text; only where one is known


def cells_of(rows: pd.DataFrame, down: Sequence[Any], across: Sequence[Any], column: str) -> Cells:
    """`rows` of one checkpoint as cells: `layer` upwards in the order `down`, `column` across."""
    i = pd.Index(down).get_indexer(rows["layer"])
    j = pd.Index(across).get_indexer(rows[column])
    values = rows["value"].to_numpy(dtype=float)
    z = np.full((len(down), len(across)), np.nan)
    z[i, j] = values
    gaps = np.flatnonzero(np.isnan(values))
    reasons = rows["reason"].to_numpy()
    return Cells(z, {(int(i[g]), int(j[g])): str(reasons[g]) for g in gaps})


def template_of(text: object) -> str:
    """Other people's text for a hover template, in which `%{...}` would be filled in."""
    return hover(text).replace("%{", "%\u200b{")


def parts_of(cells: Cells, name: str, where: str, *, digits: bool = False) -> dict[str, Any]:
    """What a trace shows of cells: z, text and hover.

    `where` is the template of a cell's place, such as "layer %{y}, %{x}". A map without gaps
    carries no text of its own for hovering: twenty checkpoints of 224 cells would make a report
    megabytes larger.
    """
    head = f"{template_of(name)}<br>{where}<br>"
    gaps = np.isnan(cells.z)
    parts: dict[str, Any] = {"z": cells.z, "hovertemplate": head + "%{z:.6~g}<extra></extra>"}
    reasons = {cells.why.get(place, "not in the table") for place in np.ndindex(*cells.z.shape)}
    if gaps.all() and len(reasons) == 1:
        why = template_of(f"no value: {reasons.pop()}")
        parts["hovertemplate"] = f"{head}{why}<extra></extra>"
    elif gaps.any():
        each = np.empty(cells.z.shape, dtype=object)
        for i, j in np.ndindex(*cells.z.shape):
            why = cells.why.get((i, j), "not in the table")
            each[i, j] = hover(f"no value: {why}") if gaps[i, j] else f"{cells.z[i, j]:.6g}"
        parts |= {
            "customdata": each.tolist(),
            "hovertemplate": head + "%{customdata}<extra></extra>",
        }
    if digits:
        parts["text"] = [["" if np.isnan(v) else short(v) for v in line] for line in cells.z]
    return parts


def heat_map(
    parts: dict[str, Any],
    down: Sequence[str],
    across: Sequence[str],
    scale: Scale,
    series: str,
) -> go.Heatmap:
    """A heat map of `parts_of`; `down` and `across` are plain text, `series` goes into `meta`."""
    return go.Heatmap(
        x=[esc(name, 24) for name in across],
        y=[esc(name, 24) for name in down],
        zmin=scale.low,
        zmax=scale.high,
        colorscale=scale.colours,
        hoverongaps=True,
        texttemplate="%{text}" if "text" in parts else None,
        textfont={"size": 11},
        xgap=1,
        ygap=1,
        meta={"panel": series, "series": series},
        **parts,
    )


def colour_bar(domain: Sequence[float], y: float, title: str) -> dict[str, object]:
    """A horizontal colour bar under a panel; `y` is the panel's lower edge, `domain` its width."""
    return {
        "orientation": "h",
        "x": (domain[0] + domain[1]) / 2,
        "xanchor": "center",
        "y": y,
        "yanchor": "top",
        "ypad": 66,
        "len": domain[1] - domain[0],
        "lenmode": "fraction",
        "thickness": 12,
        "thicknessmode": "pixels",
        "nticks": 5,
        "exponentformat": "power",
        "outlinewidth": 0,
        "title": {"text": title, "side": "bottom", "font": {"size": 12}},
        "tickfont": {"size": 11},
    }


def set_cell_axes(figure: go.Figure) -> None:
    """Make both axes categories, without a grid: a heat map's cells are its grid."""
    figure.update_xaxes(type="category", showgrid=False, showline=False, ticks="", tickangle=-35)
    figure.update_yaxes(type="category", showgrid=False, showline=False, ticks="")
