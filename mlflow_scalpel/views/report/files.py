"""The figures of the report as files: HTML, numbers as CSV, and PNG where a browser is found."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.errors import MissingPackage
from mlflow_scalpel.extras import require_extra
from mlflow_scalpel.views.common.slider import without_slider
from mlflow_scalpel.views.common.table import Measurements
from mlflow_scalpel.views.common.traces import NO_VALUE
from mlflow_scalpel.views.common.view import public
from mlflow_scalpel.views.report.browser import FILE, plotly_js
from mlflow_scalpel.views.report.report import figures_of
from mlflow_scalpel.views.summary.differences import SHOWN, confounders

COLUMNS = ["panel", "series", "x", "y", "value", "half_x", "half_y", "below_x", "below_y"]
PNG_WIDTH, PNG_SCALE = 1400, 2
PNG_TEXT = "#24282E"  # darker than the figures' own grey, which must also read on black


@public
def write_figures(
    table: pd.DataFrame | Measurements, runs: pd.DataFrame | None, directory: str | Path
) -> tuple[list[Path], str]:
    """Write every figure of the report as HTML and PNG, with its numbers as CSV beside it.

    `STEM.html` (which needs the folder's copy of Plotly, and no network) has `STEM.csv` (see
    `numbers`); a figure without data is not written. Where `runs` is given, `confounders.csv` holds
    the parameters in which the runs differ. The folder is made if it is not there. PNG files need
    kaleido and a browser. Returns all paths, and in a line why there are no PNG files ("" where
    there are).

    Raises ValueError if columns are missing, OSError if a file cannot be written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    data = Measurements.of(table, runs)
    figures = figures_of(data)[0]
    written = []
    for stem, figure in figures.items():
        page, values = directory / f"{stem}.html", directory / f"{stem}.csv"
        figure.write_html(page, include_plotlyjs=FILE, include_mathjax=False)
        numbers(figure).to_csv(values, index=False)
        written += [page, values]
    if figures:
        written.append(directory / FILE)
        written[-1].write_text(plotly_js(), encoding="utf-8")
    if data.runs is not None and len(data.runs):
        written.append(directory / "confounders.csv")
        confounders(data.runs, always=SHOWN).to_csv(written[-1])
    pictures = {directory / f"{stem}.png": figure for stem, figure in figures.items()}
    why = write_png(pictures)
    return written + ([] if why else list(pictures)), why


def write_png(figures: dict[Path, go.Figure]) -> str:
    """Write figures as PNG on white, without sliders, all in one browser; why not, in a line."""
    try:
        require_extra("png", "no PNG files: drawing them")
    except MissingPackage as error:
        return str(error)
    import kaleido
    from choreographer.errors import BrowserFailedError, ChromeNotFoundError

    for figure in figures.values():
        without_slider(figure)
        figure.update_layout(paper_bgcolor="white", font_color=PNG_TEXT)
    sizes = {"width": PNG_WIDTH, "scale": PNG_SCALE}
    made = [
        {"fig": figure, "path": path, "opts": {**sizes, "height": figure.layout.height}}
        for path, figure in figures.items()
    ]
    try:
        kaleido.write_fig_from_object_sync(made)
    except (ChromeNotFoundError, BrowserFailedError) as error:
        return f"no PNG files: no Chrome or Chromium that runs was found ({error.args[0]})"
    return ""


@public
def numbers(figure: go.Figure) -> pd.DataFrame:
    """The numbers that a view drew, a row per point, bar or cell.

    `panel` and `series` name where it stands, `x` and `y` are its coordinates as drawn; `value` is
    a heat map's cell, `half_x` and `half_y` the length of an error bar from the value to its upper
    end, and `below_x` and `below_y` that to its lower end where it is another. Gaps are rows
    without a value.
    """
    rows: list[list[Any]] = []
    for trace in figure.data:
        meta = trace.meta if isinstance(trace.meta, dict) else {}
        panel, series = meta.get("panel", ""), meta.get("series", trace.name or "")
        if all(x is None for x in trace.x):
            continue  # has no place in the figure, but an entry in its legend
        if series == NO_VALUE:
            continue  # marks a gap that is already a row of its own line
        if isinstance(trace, go.Heatmap):
            rows += [
                [panel, series, plain(x), plain(y), value, *[None] * 4]
                for y, line in zip(trace.y, trace.z, strict=True)
                for x, value in zip(trace.x, line, strict=True)
            ]
            continue
        halves = [
            [None] * len(trace.x) if length is None else list(length)
            for bars in ("array", "arrayminus")
            for length in (trace.error_x[bars], trace.error_y[bars])
        ]
        rows += [
            [panel, series, plain(x), plain(y), None, *lengths]
            for x, y, *lengths in zip(trace.x, trace.y, *halves, strict=True)
        ]
    return pd.DataFrame(rows, columns=COLUMNS).dropna(axis="columns", how="all")


def plain(value: Any) -> Any:
    """A label as it was before it was made safe for Plotly; numbers as they are."""
    return html.unescape(value) if isinstance(value, str) else value
