"""The picture of a checkpoint on a fixed scale."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from mlflow_scalpel.comparison.table import tidy
from mlflow_scalpel.training.heatmap import WIDTH, heatmap_image, title_of
from mlflow_scalpel.views.common.table import Measurements

MATRICES = ("q_proj", "k_proj", "up_proj")
VIRIDIS_TOP = (253, 231, 37)


def table_of(values: np.ndarray, step: int = 300, **more: object) -> pd.DataFrame:
    """Norms of layers x matrices."""
    own = {"run_id": "bbbb2222", "algorithm": "sft", "metric": "weights/relative_frobenius"}
    own |= {"part": "attention", "step": step, **more}
    return tidy(
        {**own, "layer": layer, "matrix": MATRICES[i], "value": value}
        for (layer, i), value in np.ndenumerate(values)
    )


def share(picture, colour: tuple[int, int, int]) -> float:
    """The share of pixels of a colour."""
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    return float((np.abs(pixels - colour).max(axis=-1) <= 3).mean())


def test_values_above_the_scale_are_clipped_and_counted():
    table = table_of(np.array([[0.01, 0.02, 0.03], [0.07, 0.08, 0.03]]))
    data = Measurements.of(table)
    assert title_of(data, data.table, 300, 0.06) == (
        "sft bbbb22, step 300: 2 of 6 cells above the scale, clipped"
    )
    assert title_of(data, data.table, 300, 1.0) == "sft bbbb22, step 300"
    picture, dark = heatmap_image(table, 300, 0.06), heatmap_image(table, 300, 1.0)
    assert picture.width == dark.width == WIDTH
    assert share(picture, VIRIDIS_TOP) > 5 * share(dark, VIRIDIS_TOP)


def test_a_step_is_drawn_by_itself_and_a_base_too():
    values = np.full((2, 3), 0.01)
    both = pd.concat([table_of(values), table_of(5 * values, step=0)])
    alone = np.asarray(heatmap_image(table_of(values), 300, 0.06))
    assert (np.asarray(heatmap_image(both, 300, 0.06)) == alone).all()
    assert (np.asarray(heatmap_image(both, 0, 0.06)) != alone).any()


@pytest.mark.parametrize("layers", [2, 51])
def test_cells_without_a_value_are_white(layers):
    values = np.full((layers, 3), 0.06)
    full = share(heatmap_image(table_of(values), 300, 0.06), VIRIDIS_TOP)
    values[0, :2] = values[1, 0] = np.nan
    holed = share(heatmap_image(table_of(values), 300, 0.06), VIRIDIS_TOP)
    assert holed / full == pytest.approx(1 - 1 / layers, abs=0.1 if layers == 2 else 0.02)


def test_no_value_at_all_and_names_that_look_like_mathematics():
    values = np.full((2, 3), np.nan)
    table = table_of(values, algorithm="$\\frac{$", status="failed", reason="could not load $x_")
    assert heatmap_image(table, 300, 0.06).width == WIDTH
    assert heatmap_image(table_of(values).iloc[:0], 300, 0.06).width == WIDTH


def test_the_backend_stays_as_it_was():
    before = mpl.get_backend(auto_select=False)
    heatmap_image(table_of(np.full((2, 3), 0.1)), 300, 0.2)
    assert mpl.get_backend(auto_select=False) == before
