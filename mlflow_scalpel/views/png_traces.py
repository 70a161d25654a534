"""Plotly's traces with matplotlib: scatter, bar, heat map."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from mlflow_scalpel.views.png_axes import FRAME, TEXT, points, positions
from mlflow_scalpel.views.style import HOLLOW

DASHES: dict[str | None, Any] = {
    None: "-",
    "solid": "-",
    "dash": (0, (5, 2.5)),
    "dot": (0, (1.2, 1.8)),
    "dashdot": (0, (5, 2, 1.2, 2)),
    "longdash": (0, (9, 3)),
}
SYMBOLS = {
    None: "o",
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "triangle-down": "v",
    "x": "X",
    "x-thin": "x",
    "cross": "P",
    "star": "*",
    "line-ew": "_",
}
HATCHES = {None: "", "": "", "/": "///", ".": "..", "x": "xxx", "\\": "\\\\\\", "-": "---"}


def thickness(bars: Any) -> dict[str, Any]:
    """Matplotlib's options for Plotly's error bars."""
    return {
        "elinewidth": points(bars.thickness or 1.2),
        "capsize": points(bars.width or 3),
        "capthick": points(bars.thickness or 1.2),
    }


def half(bars: Any, count: int) -> np.ndarray:
    """The error bars' two parts, below and above, (2, count); NaN where a point has none."""
    if bars is None or bars.array is None:
        return np.full((2, count), np.nan)
    above = bars.array
    below = above if bars.symmetric is not False or bars.arrayminus is None else bars.arrayminus
    parts = [[np.nan if item is None else item for item in part] for part in (below, above)]
    return np.array(parts, dtype=float)


def symbol_of(trace: Any) -> str:
    """A trace's marker; one that matplotlib has no like of becomes a disc."""
    return SYMBOLS.get((trace.marker.symbol or "circle").removesuffix("-open"), "o")


def is_open(trace: Any) -> bool:
    """Whether the markers are drawn as outlines."""
    return str(trace.marker.symbol).endswith("-open")


def sizes(trace: Any, count: int) -> list[float]:
    """Marker sizes in points, one a point of the trace."""
    size = trace.marker.size or 6
    each = list(size) if isinstance(size, (tuple, list, np.ndarray)) else [size] * count
    return [points(item) for item in each]


def draw_scatter(ax: Axes, trace: Any, figure: go.Figure) -> None:
    """Lines, markers and error bars; None breaks a line."""
    x = np.array(positions(figure, "x", trace.xaxis or "x", trace.x), dtype=float)
    y = np.array(positions(figure, "y", trace.yaxis or "y", trace.y), dtype=float)
    mode = trace.mode or "lines+markers"
    colour = trace.line.color or trace.marker.color or FRAME
    if "lines" in mode:
        style = DASHES.get(trace.line.dash, "-")
        ax.plot(x, y, color=colour, linestyle=style, linewidth=points(trace.line.width or 2))
    if "markers" in mode:
        marker = symbol_of(trace)
        edge = trace.marker.line.color if marker in ("x", "_") else None
        shade = (FRAME if marker == "x" else edge) if edge else (trace.marker.color or colour)
        for size in sorted(set(sizes(trace, len(x)))):
            own = np.array(sizes(trace, len(x))) == size
            face = "white" if is_open(trace) else shade
            look: dict[str, Any] = {"color": shade, "markersize": size, "markerfacecolor": face}
            ax.plot(x[own], y[own], marker, linestyle="none", zorder=3, **look)
    x_half, y_half = half(trace.error_x, len(x)), half(trace.error_y, len(x))
    for bars, sides, key in ((trace.error_x, x_half, "xerr"), (trace.error_y, y_half, "yerr")):
        known = np.isfinite(sides).all(axis=0) & np.isfinite(x) & np.isfinite(y)
        if known.any():
            options = {key: sides[:, known], **thickness(bars)}
            shade = bars.color or colour
            ax.errorbar(x[known], y[known], fmt="none", ecolor=shade, **options)
    if "text" in mode:
        vertical, horizontal = (trace.textposition or "middle center").split()
        up = {"top": 1, "bottom": -1}.get(vertical, 0)
        for place, height, text in zip(x, y, trace.text or (), strict=False):
            ax.annotate(
                html.unescape(str(text)),
                (place, height),
                xytext=(0, up * points(max(sizes(trace, 1)) / 2 + 3)),
                textcoords="offset points",
                ha={"left": "right", "right": "left"}.get(horizontal, "center"),
                va={1: "bottom", -1: "top"}.get(up, "center"),
                fontsize=points(trace.textfont.size or 12),
                color=TEXT,
                parse_math=False,
            )


def draw_bar(ax: Axes, trace: Any, figure: go.Figure) -> None:
    """Bars, side by side in Plotly's group mode, with error bars or a number behind them."""
    flat = trace.orientation == "h"
    along, across = ("y", "x") if flat else ("x", "y")
    name = getattr(trace, f"{along}axis") or along
    place = np.array(positions(figure, along, name, getattr(trace, along)), dtype=float)
    values = np.array([np.nan if v is None else v for v in getattr(trace, across)], dtype=float)
    width = 1 - (figure.layout.bargap or 0.2)
    offset = 0.0
    if figure.layout.barmode != "overlay":
        groups = list(dict.fromkeys(slot(t) for t in figure.data if same_panel(t, trace)))
        width /= len(groups)
        offset = (groups.index(slot(trace)) - (len(groups) - 1) / 2) * width
    looks = bar_looks(trace)
    draw = ax.barh if flat else ax.bar
    if trace.width is not None:
        width = trace.width
    feet = np.zeros(len(values)) if trace.base is None else np.array(trace.base, dtype=float)
    foot: dict[str, Any] = {"left" if flat else "bottom": feet}
    draw(place + offset, values, width, **foot, **looks)
    values = values + feet
    sides = half(trace.error_x if flat else trace.error_y, len(values))
    known = np.isfinite(sides).all(axis=0) & np.isfinite(values)
    if known.any():
        bars = trace.error_x if flat else trace.error_y
        options = {("xerr" if flat else "yerr"): sides[:, known], **thickness(bars)}
        spots = (place + offset)[known]
        pair = (values[known], spots) if flat else (spots, values[known])
        ax.errorbar(*pair, fmt="none", ecolor="#444444", **options)
    for spot, value, text in zip(place + offset, values, trace.text or (), strict=False):
        ax.annotate(
            text,
            (value, spot) if flat else (spot, value),
            xytext=(3, 0) if flat else (0, 3),
            textcoords="offset points",
            va="center" if flat else "bottom",
            ha="left" if flat else "center",
            fontsize=points(trace.textfont.size or 12),
            rotation=-(trace.textangle or 0),
            color=TEXT,
            parse_math=False,
        )


def bar_looks(trace: Any) -> dict[str, Any]:
    """Fill, edge and hatch of bars: filled, or an outline."""
    looks: dict[str, Any] = {"hatch": HATCHES.get(trace.marker.pattern.shape, "")}
    edge = trace.marker.line.color
    if edge is not None:
        return looks | {"facecolor": to_rgba(edge, HOLLOW), "edgecolor": edge, "linewidth": 1.5}
    looks |= {"facecolor": trace.marker.color, "alpha": trace.opacity}
    return looks | {"edgecolor": "white", "linewidth": 0.5}


def slot(trace: Any) -> str:
    """What decides a bar's place in its group."""
    return str(trace.offsetgroup or trace.name)


def same_panel(trace: Any, other: Any) -> bool:
    """Whether two bar traces stand in one panel."""
    return trace.type == "bar" and (trace.xaxis, trace.yaxis) == (other.xaxis, other.yaxis)


def colours_of(trace: Any) -> tuple[LinearSegmentedColormap, Normalize]:
    """The colour scale of a heat map and its range."""
    stops = [(float(at), str(colour)) for at, colour in trace.colorscale]
    scale = LinearSegmentedColormap.from_list("figure", stops, N=256)
    return scale, Normalize(trace.zmin, trace.zmax, clip=True)


def draw_heatmap(ax: Axes, trace: Any, figure: go.Figure) -> None:
    """Cells, with their text where the trace writes it; None leaves a cell blank."""
    scale, norm = colours_of(trace)
    values = np.array([[np.nan if v is None else v for v in line] for line in trace.z], dtype=float)
    x = np.array(positions(figure, "x", trace.xaxis or "x", trace.x), dtype=float)
    y = np.array(positions(figure, "y", trace.yaxis or "y", trace.y), dtype=float)
    cells = np.ma.masked_invalid(values)
    ax.pcolormesh(x, y, cells, cmap=scale, norm=norm, edgecolors="white", linewidth=0.6)
    if not trace.texttemplate:
        return
    for i, line in enumerate(trace.text):
        for j, text in enumerate(line):
            if np.isfinite(values[i, j]):
                red, green, blue, _ = scale(norm(values[i, j]))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
                ax.text(
                    x[j],
                    y[i],
                    text,
                    ha="center",
                    va="center",
                    fontsize=points(11),
                    color="white" if dark else "black",
                    parse_math=False,
                )


def colour_bar(ax: Axes, trace: Any, title: str, flat: bool) -> None:
    """The colour bar of a heat map, in axes made for it."""
    from matplotlib.cm import ScalarMappable

    scale, norm = colours_of(trace)
    side = "horizontal" if flat else "vertical"
    bar = Colorbar(ax, ScalarMappable(norm, scale), orientation=side)  # type: ignore[arg-type]
    bar.locator = MaxNLocator(4)
    formatter = ScalarFormatter(useMathText=True)
    formatter.set_powerlimits((-3, 4))
    bar.formatter = formatter
    bar.update_ticks()
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label(title, color=TEXT, fontsize=points(12), parse_math=False)
    ax.tick_params(labelsize=points(11), colors=FRAME, labelcolor=TEXT, length=2)


def patch(trace: Any) -> Patch:
    """The legend's sample of a bar."""
    return Patch(**bar_looks(trace))


def legend_line(trace: Any) -> Line2D:
    """The legend's sample of a line or of markers."""
    mode = trace.mode or "lines+markers"
    marker = symbol_of(trace)
    colour = trace.line.color or trace.marker.color or FRAME
    if marker in ("x", "_"):
        colour = FRAME if marker == "x" else trace.marker.line.color
    return Line2D(
        [],
        [],
        color=colour,
        linestyle=DASHES.get(trace.line.dash, "-") if "lines" in mode else "none",
        linewidth=points(2),
        marker=marker if "markers" in mode else None,
        markerfacecolor="white" if is_open(trace) else None,
        markersize=points(7),
    )


DRAW: dict[str, Callable[[Axes, Any, go.Figure], None]] = {
    "scatter": draw_scatter,
    "bar": draw_bar,
    "heatmap": draw_heatmap,
}
