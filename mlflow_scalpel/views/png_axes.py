"""Plotly's axes with matplotlib: scales, ranges, ticks and titles."""

from __future__ import annotations

import html
from typing import Any

import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.ticker import (
    AutoLocator,
    EngFormatter,
    FixedLocator,
    LogFormatterSciNotation,
    LogLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
    ScalarFormatter,
)

TEXT = "#24282E"
GRID = "#DADCE0"
FRAME = "#8A8F98"
CHARACTER = 0.62  # width of an average character, as a share of its font size


def points(pixels: float) -> float:
    """A size in Plotly's pixels as one in points, at 100 dots an inch."""
    return pixels * 0.72


def tick_text(text: Any) -> str:
    """A category's label as it reads in the browser."""
    return html.unescape(str(text))


def categories(figure: go.Figure, which: str, axis: str) -> list[str]:
    """The categories of an axis, in the order in which Plotly places them."""
    settings = figure.layout[f"{which}axis{axis[1:]}"]
    found = dict.fromkeys(str(item) for item in settings.categoryarray or ())
    for trace in figure.data:
        if (getattr(trace, f"{which}axis") or which) == axis:
            found.update(dict.fromkeys(str(item) for item in getattr(trace, which)))
    return list(found)


def positions(figure: go.Figure, which: str, axis: str, values: Any) -> list[Any]:
    """Where values stand on an axis: themselves, or their place among the categories."""
    kind = figure.layout[f"{which}axis{axis[1:]}"].type
    if kind != "category":
        # Plotly leaves out what has no logarithm; matplotlib would draw it at the lower edge
        low = 0 if kind == "log" else -float("inf")
        return [v if v is not None and v > low else float("nan") for v in values]
    place = {name: i for i, name in enumerate(categories(figure, which, axis))}
    return [place[str(value)] for value in values]


def finish(figure: go.Figure, axes: dict[tuple[str, str], Axes]) -> None:
    """Scales, shared ranges, ticks, titles and grid of every panel, after its traces are drawn."""
    for which in ("x", "y"):
        shared: dict[str, list[Axes]] = {}
        for pair, ax in axes.items():
            name = pair[which == "y"]
            settings = figure.layout[f"{which}axis{name[1:]}"]
            if settings.type == "log":
                getattr(ax, f"set_{which}scale")("log", nonpositive="clip")
            shared.setdefault(settings.matches or name, []).append(ax)
        for group in shared.values():
            full = [ax for ax in group if ax.has_data()]
            limits = [getattr(ax, f"get_{which}lim")() for ax in full]
            for ax in group if limits else []:
                if getattr(ax, f"get_{which}scale")() == "log":  # a panel of gaps has no decade
                    limits = [pair for pair in limits if pair[0] > 0] or [(0.1, 1.0)]
                low, high = min(low for low, _ in limits), max(high for _, high in limits)
                getattr(ax, f"set_{which}lim")(low, high)
        for pair, ax in axes.items():
            one_axis(figure, ax, which, pair[which == "y"])
    for ax in axes.values():
        ax.set_axisbelow(True)
        ax.tick_params(colors=FRAME, labelcolor=TEXT, labelsize=points(12), length=3)
        ax.tick_params(which="minor", length=0)
        for side, spine in ax.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(FRAME)


def one_axis(figure: go.Figure, ax: Axes, which: str, name: str) -> None:
    """Range, ticks, title, grid and zero line of one axis."""
    settings = figure.layout[f"{which}axis{name[1:]}"]
    axis = ax.xaxis if which == "x" else ax.yaxis
    if settings.range is not None:
        log = settings.type == "log"  # then Plotly gives the range as powers of ten
        low, high = (10**end if log else end for end in settings.range)
        getattr(ax, f"set_{which}lim")(low, high)
    if settings.type == "category":
        names = categories(figure, which, name)
        thin(ax, which, [tick_text(item) for item in names], settings.tickangle)
        if settings.range is not None:
            getattr(ax, f"set_{which}lim")(*settings.range)
    elif settings.type == "log" and isinstance(settings.dtick, float):
        # Plotly gives the step between ticks as a logarithm to the base 10
        axis.set_major_locator(LogLocator(base=10**settings.dtick, numticks=20))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")
    elif settings.type == "log":
        decades = getattr(ax, f"get_{which}lim")()
        wide = decades[0] > 0 and decades[1] / decades[0] > 30
        axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=8))
        axis.set_minor_locator(NullLocator())
        if wide:
            axis.set_major_formatter(LogFormatterSciNotation())
        else:
            axis.set_major_formatter("{x:g}")
    elif settings.tickformat == ".0%":
        at = settings.tickvals
        axis.set_major_locator(FixedLocator(at) if at is not None else AutoLocator())
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    elif settings.tickformat == "~s":
        axis.set_major_locator(MaxNLocator(settings.nticks or 5))
        axis.set_major_formatter(EngFormatter(sep="", useMathText=False))
    else:
        axis.set_major_locator(AutoLocator())
        formatter = ScalarFormatter(useMathText=True)
        formatter.set_powerlimits((-4, 5))
        axis.set_major_formatter(formatter)
    if settings.showticklabels is False:
        ax.tick_params(axis=which, labelleft=False, labelbottom=False)  # type: ignore[arg-type]
    if settings.title.text:
        label = getattr(ax, f"set_{which}label")(
            tick_text(settings.title.text).replace("<br>", "\n"), color=TEXT
        )
        label.set_fontsize(points(13))
        label.set_parse_math(False)
    if settings.showgrid is not False and settings.visible is not False:
        ax.grid(True, axis=which, color=GRID, linewidth=0.7)  # type: ignore[arg-type]
    if settings.zeroline:
        (ax.axvline if which == "x" else ax.axhline)(0, color=FRAME, linewidth=1.2, zorder=1)


def thin(ax: Axes, which: str, names: list[str], angle: float | None) -> None:
    """Category labels, at an angle or only every n-th where they would run into each other."""
    extent = ax.get_window_extent()
    room = (extent.width if which == "x" else extent.height) / max(1, len(names))
    scale = ax.figure.dpi / 100
    if which == "x":
        longest = max((len(name) for name in names), default=0) * 12 * CHARACTER * scale
        turned = longest > room if angle is None else angle != 0
        options: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        ax.set_xticks(range(len(names)), names, **(options if turned else {}), parse_math=False)
        ax.set_xlim(-0.5, max(1, len(names)) - 0.5)
        return
    every = max(1, -(-int(15 * scale) // max(1, int(room))))
    shown = range(0, len(names), every)
    ax.set_yticks(list(shown), [names[i] for i in shown], parse_math=False)
    ax.set_ylim(-0.5, max(1, len(names)) - 0.5)
