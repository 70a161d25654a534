"""Means are over the matrices of the layers, and say of what share of the parameters they are."""

from __future__ import annotations

import pytest

from mlflow_scalpel.comparison.run_store import summarise
from mlflow_scalpel.comparison.table import tidy
from mlflow_scalpel.views import (
    findings,
    norms_by_part,
    weight_heatmap,
    weights_over_training,
)
from mlflow_scalpel.views.png import to_png

#: layer, matrix, part, elements, relative norm, status
TENSORS = (
    (0, "q_proj", "attention", 100, 0.1, "ok"),
    (0, "experts.0.up_proj", "experts", 300, 0.3, "ok"),
    (0, "experts.1.up_proj", "experts", 300, 0.5, "ok"),
    (0, "o_proj", "attention", 100, 0.0, "not trained"),
    (0, "input_layernorm", "norm", 10, 40.0, "ok"),
    (None, "embed_tokens", "embeddings", 150, 60.0, "ok"),
    (None, "vision_tower.proj", "vision", 40, None, "missing"),
)
MEAN = (0.1 + 0.3 + 0.5) / 3


@pytest.fixture(scope="module")
def table():
    own = {"base": "b", "model_id": "m-1", "run_id": "r1", "algorithm": "grpo", "step": 10}
    return tidy(
        {
            **own,
            "metric": "weights/relative_frobenius",
            "layer": layer,
            "matrix": matrix,
            "part": part,
            "n": n,
            "value": value,
            "status": status,
            "reason": None if status == "ok" else f"because of {matrix}",
        }
        for layer, matrix, part, n, value, status in TENSORS
    )


def test_the_report_says_over_what_the_mean_is(table):
    (sentence,) = findings(table)
    assert f"mean relative norm {MEAN:.3g} at step 10" in sentence
    assert "over 3 matrices (1 more are not trained), 70 % of the parameters" in sentence


def test_figures_of_matrices_leave_out_norms_and_embeddings(table):
    heat = weight_heatmap(table)
    assert "input_layernorm" not in str(heat.to_plotly_json()["data"])
    assert sorted(heat.data[0].x) == ["experts.*.up_proj", "o_proj", "q_proj"]
    by_layer = weights_over_training(table, by="layer")
    assert list(by_layer.data[0].y) == pytest.approx([MEAN])


def test_every_part_has_its_mean_and_its_share(table, tmp_path):
    figure = norms_by_part(table)
    found = dict(zip(figure.data[0].y, figure.data[0].x, strict=True))
    assert found == {
        "attention (20 %)": 0.1,
        "experts (60 %)": pytest.approx(0.4),
        "embeddings (15 %)": 60.0,
        "norm (1 %)": 40.0,
        "vision (4 %), no value": None,
    }
    assert "because of vision_tower.proj" in figure.data[0].customdata[-1]
    assert to_png(figure, tmp_path / "parts.png").stat().st_size > 1000


def test_the_summary_of_a_checkpoint(table):
    assert summarise(table) == pytest.approx(
        {
            "weights/relative_frobenius/q_proj": 0.1,
            "weights/relative_frobenius/experts.up_proj": 0.4,
            "weights/relative_frobenius/embeddings": 60.0,
            "weights/relative_frobenius/mean": MEAN,
            "weights/measured_share": 0.96,
        }
    )
