"""The same figures without a browser."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from mlflow_scalpel import views
from mlflow_scalpel.views.slider import ROOM

VIEWS = [
    views.norms_over_training,
    views.weight_heatmaps,
    views.kl_over_training,
    views.scores_before_after,
    views.scores_over_training,
    views.in_versus_out,
    views.cost,
]


def share(picture: Image.Image, colour: str) -> float:
    """The share of pixels of a colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    pixels = np.asarray(picture)[..., :3].astype(int)
    return float((np.abs(pixels - wanted).max(axis=-1) <= 3).mean())


@pytest.mark.parametrize("view", VIEWS)
def test_size_and_ink(view, table, runs):
    figure, width = view(table, runs), 800
    picture = views.to_image(figure, width=width)
    room = ROOM if figure.layout.sliders else 0  # pictures have no slider
    assert picture.size == (width, figure.layout.height - room)
    assert 0.3 < share(picture, "#ffffff") < 0.99
    if view not in (views.norms_over_training, views.weight_heatmaps):
        assert share(picture, "#0072B2") > 1e-4  # grpo's blue
        assert share(picture, "#E69F00") > 1e-4  # sft's orange


def test_a_file_of_the_scaled_size(table, runs, tmp_path):
    figure = views.cost(table, runs)
    path = views.to_png(figure, tmp_path / "cost.png", width=700, scale=1.5)
    with Image.open(path) as picture:
        assert picture.size == (1050, int(figure.layout.height * 1.5))


def test_bars_reach_as_far_as_their_values(make):
    rows = [
        make.row(run_id=i, algorithm=a, step=1, metric="cost/sequences", value=v)
        for i, a, v in (("a", "grpo", 100.0), ("b", "sft", 50.0))
    ]
    pixels = np.asarray(views.to_image(views.cost(make.frame(rows))))[..., :3].astype(int)
    widths = []
    for colour in ((0, 0x72, 0xB2), (0xE6, 0x9F, 0)):
        columns = np.flatnonzero((np.abs(pixels - colour).max(axis=-1) <= 3).any(axis=0))
        widths.append(np.ptp(columns))
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.02)


def test_numbers_stand_above_their_own_bars(table):
    table["stderr"] = None
    figure = views.scores_before_after(table[table["metric"] == "eval/in/add/sampled"])
    bare = go.Figure(figure).update_traces(text=None)
    pair = [np.asarray(views.to_image(one))[..., :3].astype(int) for one in (figure, bare)]
    written = (np.abs(pair[0] - pair[1]).max(axis=-1) > 40).any(axis=0)
    bars = [bar.marker.line.color or bar.marker.color for bar in figure.data]
    assert len(bars) == 4
    for colour in set(bars):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        own = (np.abs(pair[1] - wanted).max(axis=-1) <= 3)[: pair[1].shape[0] // 2].any(axis=0)
        assert (written & own).sum() >= 6, colour


def test_labels_that_look_like_mathematics(table, runs):
    runs["name"] = ["$\\frac{$", "$a_b$", "%s {x} $"]
    for view in VIEWS:
        views.to_image(view(table, runs), width=800)


def test_an_empty_figure(table):
    assert views.to_image(views.cost(table.iloc[:0])).width == 1400


def test_a_trace_it_cannot_draw():
    with pytest.raises(ValueError, match="'pie' cannot be drawn without a browser"):
        views.to_image(go.Figure(go.Pie(values=[1])))


def test_the_backend_stays_as_it_was(table, runs):
    before = mpl.get_backend(auto_select=False)
    views.to_image(views.cost(table, runs))
    assert mpl.get_backend(auto_select=False) == before
