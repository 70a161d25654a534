"""Plotly figures as PNG without a browser.

Plotly's own export starts Chrome, which a newcomer's machine or a training node lacks. The views
use few kinds of trace, so this draws the same figure again with matplotlib: a figure is defined
once, in Plotly, and both pictures come from it.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image

from mlflow_scalpel.views import png_traces
from mlflow_scalpel.views.png_axes import finish, points
from mlflow_scalpel.views.slider import ROOM

TEXT = "#24282E"  # darker than the figures' own grey, which must also read on black
DPI = 100


def plain(text: str | None) -> str:
    """Plotly's label without its markup: `<br>` breaks the line, other tags go."""
    lines = re.sub(r"<br\s*/?>", "\n", text or "")
    tagless = re.sub(r"</?(?:b|i|em|sub|sup|span|a)(?:\s[^<>]*)?>", "", lines)
    return html.unescape(tagless)


def to_image(figure: go.Figure, *, width: int = 1400, scale: float = 1.0) -> Image.Image:
    """A figure of these views as a picture, `width` x `layout.height` pixels times `scale`, less
    the room of a slider, which no picture has.

    Draws scatter, bar and heat map traces with error bars, on linear, logarithmic and category
    axes in subplots, with annotations, legend and colour bars, on white. Has no effect on
    pyplot's state. `numpy.asarray` of the result is (height, width, 4) of uint8.

    Raises ValueError for a trace type it cannot draw.
    """
    for trace in figure.data:
        if trace.type not in png_traces.DRAW:
            raise ValueError(
                f"a trace of type {trace.type!r} cannot be drawn without a browser: use "
                f"{sorted(png_traces.DRAW)}, or install Chrome and call figure.write_image"
            )
    layout = figure.layout
    # the slider's room goes with it: a picture shows one moment, which its panels' titles name
    height = (layout.height or 450) - slider_room(figure)
    canvas_figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI * scale, facecolor="white")
    canvas = FigureCanvasAgg(canvas_figure)
    box = Box(figure, canvas_figure, width, height)
    axes = box.axes()
    handles: dict[str, Any] = {}
    for trace in figure.data:
        ax = axes[trace.xaxis or "x", trace.yaxis or "y"]
        png_traces.DRAW[trace.type](ax, trace, figure)
        if trace.type == "heatmap":
            box.colour_bar(trace)
        elif trace.showlegend is not False and trace.name:
            handles.setdefault(plain(trace.name), handle_of(trace))
    finish(figure, axes)
    box.annotations(axes)
    box.title()
    if layout.showlegend:
        box.legend(handles, canvas)
    canvas.draw()
    return Image.fromarray(np.array(canvas.buffer_rgba()))


def to_png(figure: go.Figure, path: str | Path, *, width: int = 1400, scale: float = 2.0) -> Path:
    """Write `to_image` of a figure to `path`; the file has `width * scale` pixels across.

    Raises ValueError for a trace type that cannot be drawn, OSError if the file cannot be written.
    """
    path = Path(path)
    to_image(figure, width=width, scale=scale).save(path, format="PNG", dpi=(100 * scale,) * 2)
    return path


def slider_room(figure: go.Figure) -> int:
    """The height of a figure's slider in pixels; 0 without one."""
    return ROOM if figure.layout.sliders else 0


def handle_of(trace: Any) -> Line2D | Patch:
    """What stands before a trace's name in the legend."""
    if trace.type == "bar":
        return png_traces.patch(trace)
    return png_traces.legend_line(trace)


class Box:
    """The page: where Plotly's fractions and pixels fall on matplotlib's canvas."""

    def __init__(self, figure: go.Figure, canvas: Figure, width: int, height: int) -> None:
        self.figure, self.canvas, self.width, self.height = figure, canvas, width, height
        margin = figure.layout.margin
        self.left, self.right = margin.l or 80, margin.r or 80
        self.top, self.bottom = margin.t or 100, (margin.b or 80) - slider_room(figure)
        self.across = width - self.left - self.right
        self.down = height - self.top - self.bottom

    def x(self, fraction: float) -> float:
        """A fraction of the plot area as one of the page."""
        return float((self.left + fraction * self.across) / self.width)

    def y(self, fraction: float) -> float:
        """A fraction of the plot area as one of the page, both upwards."""
        return float((self.bottom + fraction * self.down) / self.height)

    def axes(self) -> dict[tuple[str, str], Axes]:
        """A matplotlib axes for each pair of Plotly axes that a trace or annotation uses."""
        pairs = {(t.xaxis or "x", t.yaxis or "y") for t in self.figure.data}
        for note in self.figure.layout.annotations:
            if note.xref != "paper":
                pairs.add((note.xref.split()[0], note.yref.split()[0]))
        found = {}
        for x, y in sorted(pairs):
            x_axis, y_axis = (
                self.figure.layout["xaxis" + x[1:]],
                self.figure.layout["yaxis" + y[1:]],
            )
            (x0, x1), (y0, y1) = x_axis.domain or (0, 1), y_axis.domain or (0, 1)
            found[x, y] = self.canvas.add_axes(
                (self.x(x0), self.y(y0), self.x(x1) - self.x(x0), self.y(y1) - self.y(y0))
            )
            if x_axis.visible is False:
                found[x, y].set_axis_off()
        return found

    def text(self, x: float, y: float, text: str, size: float, **options: Any) -> Any:
        """Text at a fraction of the page; never read as mathematics, whatever it contains."""
        return self.canvas.text(
            x, y, text, fontsize=points(size), parse_math=False, color=TEXT, **options
        )

    def title(self) -> None:
        """Title and subtitle at the top left, as in Plotly."""
        title = self.figure.layout.title
        x = 12 / self.width
        self.text(x, 1 - 12 / self.height, plain(title.text), 17, va="top", ha="left")
        self.text(x, 1 - 38 / self.height, plain(title.subtitle.text), 12, va="top", ha="left")

    def annotations(self, axes: dict[tuple[str, str], Axes]) -> None:
        """Panel titles (relative to the page) and remarks (relative to a panel)."""
        where = {"middle": "center", "auto": "center", None: "center"}
        for note in self.figure.layout.annotations:
            size = note.font.size or 13
            ha = where.get(note.xanchor, note.xanchor)
            va = where.get(note.yanchor, note.yanchor)
            if note.xref == "paper":
                y = self.y(note.y) + (5 / self.height if va == "bottom" else 0)
                self.text(self.x(note.x), y, plain(note.text), size, ha=ha, va=va)
                continue
            ax = axes[note.xref.split()[0], note.yref.split()[0]]
            area = ax.get_position()
            x, y = area.x0 + note.x * area.width, area.y0 + note.y * area.height
            self.text(x, y, plain(note.text), size, ha=ha, va=va)

    def colour_bar(self, trace: Any) -> None:
        """The colour bar of a heat map: under its panel, or right of the only one."""
        bar = trace.colorbar
        flat = bar.orientation == "h"
        if flat:
            x0, length = self.x(bar.x - bar.len / 2), bar.len * self.across / self.width
            y0 = self.y(bar.y) - (bar.ypad + bar.thickness) / self.height
            place = (x0, y0, length, bar.thickness / self.height)
        else:
            x0 = self.x(1) + 12 / self.width
            place = (x0, self.y(0), bar.thickness / self.width, self.down / self.height)
        ax = self.canvas.add_axes(place)
        png_traces.colour_bar(ax, trace, plain(bar.title.text), flat)

    def legend(self, handles: dict[str, Any], canvas: FigureCanvasAgg) -> None:
        """The legend at the foot, in as few rows as fit the page."""
        for columns in range(len(handles), 0, -1):
            legend = self.canvas.legend(
                list(handles.values()),
                list(handles),
                loc="lower left",
                bbox_to_anchor=(self.left / self.width, 4 / self.height),
                borderaxespad=0,
                ncols=columns,
                frameon=False,
                fontsize=points(13),
                labelcolor=TEXT,
                handlelength=2.6,
            )
            for text in legend.get_texts():
                text.set_parse_math(False)
            if legend.get_window_extent(canvas.get_renderer()).x1 <= self.canvas.bbox.x1:
                return
            if columns > 1:
                legend.remove()
