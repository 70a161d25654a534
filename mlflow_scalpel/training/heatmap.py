"""The picture of a checkpoint that MLflow's own charts show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mlflow_scalpel.views.common.table import (
    Measurements,
    matrices_in,
    over_experts,
    whole_matrices,
)
from mlflow_scalpel.views.common.text import reasons, short

if TYPE_CHECKING:
    from PIL import Image

METRIC = "weights/relative_frobenius"
WIDTH, ROW, ROOM = 760, 26, 160  # pixels; MLflow shows it whole beside other runs' pictures
NUMBERED = 100  # up to so many cells there is room for a number in each


def heatmap_image(table: pd.DataFrame, step: int, maximum: float) -> Image.Image:
    """The layer by matrix heat map of the updates of one checkpoint on the scale [0, maximum].

    The scale is that of every checkpoint, so that a film of them can be compared; values above it
    are clipped, and the title says how many. Cells without a value are white.
    """
    # Has no effect on pyplot's state, which is the caller's.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    data = Measurements.of(table)
    rows = over_experts(whole_matrices(data.rows(METRIC)))
    rows = rows[(rows["step"] == step) & (rows["run_id"] != "")]
    layers, matrices = sorted(set(rows["layer"])), matrices_in(rows)
    wide = rows.pivot_table("value", "layer", "matrix", dropna=False)
    cells = wide.reindex(index=layers, columns=matrices).to_numpy(dtype=float)
    height = ROOM + min(640, max(190, ROW * len(layers)))
    figure = Figure(figsize=(WIDTH / 100, height / 100), dpi=100, layout="constrained")
    axes = figure.add_subplot(ylabel="layer")
    axes.set_title(title_of(data, rows, step, maximum), parse_math=False)
    if np.isnan(cells).all():
        why = f"no value: {reasons(rows['reason'])}"
        axes.text(0.5, 0.5, why, ha="center", va="center", wrap=True, parse_math=False)
    else:
        edges = np.arange(len(matrices) + 1) - 0.5, np.arange(len(layers) + 1) - 0.5
        drawn = axes.pcolormesh(*edges, cells, vmin=0.0, vmax=maximum, edgecolors="white")
        figure.colorbar(drawn, label="\u2016W\u209c \u2212 W\u2080\u2016 / \u2016W\u2080\u2016")
        for (i, j), value in np.ndenumerate(cells if cells.size <= NUMBERED else cells[:0]):
            if not np.isnan(value):
                colour = "black" if value > 0.6 * maximum else "white"
                axes.text(j, i, short(value), ha="center", va="center", size=8, color=colour)
    axes.set_xticks(range(len(matrices)), matrices, rotation=35, ha="right", parse_math=False)
    axes.set_yticks(range(len(layers)), [f"{layer:g}" for layer in layers])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.array(canvas.buffer_rgba()))


def title_of(data: Measurements, rows: pd.DataFrame, step: int, maximum: float) -> str:
    """Run and step, and how many cells lie above the scale."""
    run = ", ".join(run.name for run in data.runs_in(rows))
    clipped, known = int((rows["value"] > maximum).sum()), int(rows["value"].notna().sum())
    above = f": {clipped} of {known} cells above the scale, clipped" if clipped else ""
    return f"{run}, step {step}{above}"
