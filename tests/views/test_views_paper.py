"""The paper's published numbers through the views."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlflow_scalpel import views

PAPER = Path(__file__).parents[3] / "shared" / "paper"


@pytest.mark.skipif(
    not (PAPER / "norms_SFTv02.08.json").exists(),
    reason=f"the paper's published norms are not at {PAPER}",
)
def test_queries_and_keys_are_brightest(make):
    rows = []
    for name, matrices in json.loads((PAPER / "norms_SFTv02.08.json").read_text()).items():
        for matrix, values in matrices.items():
            rows += [
                make.row(
                    run_id="sft",
                    algorithm="sft",
                    step=int(name.rsplit("-", 1)[1]),
                    metric="weights/relative_frobenius",
                    matrix=matrix,
                    layer=layer,
                    value=value,
                )
                for layer, value in enumerate(values)
            ]
    table = make.frame(rows)
    figure = views.weight_heatmap(table, maximum=0.1)
    heat = figure.data[0]
    assert (len(heat.z), len(heat.x)) == (32, 7)
    means = {m: sum(line[i] for line in heat.z) / 32 for i, m in enumerate(heat.x)}
    assert sorted(means, key=means.__getitem__)[-2:] == ["k_proj", "q_proj"]
    assert means["k_proj"] == pytest.approx(0.0638, abs=5e-5)
    picture = views.to_image(figure, width=800)
    assert picture.size == (800, figure.layout.height)
    over = views.norms_over_training(table)
    assert len(over.data[0].x) == 19
