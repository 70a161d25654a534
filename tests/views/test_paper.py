"""The paper's published numbers through the views."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
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
    heat = views.weight_heatmaps(table).data[0]
    assert (len(heat.z), len(heat.x)) == (32, 7)
    means = {m: sum(line[i] for line in heat.z) / 32 for i, m in enumerate(heat.x)}
    assert sorted(means, key=means.__getitem__)[-2:] == ["k_proj", "q_proj"]
    assert means["k_proj"] == pytest.approx(0.0638, abs=5e-5)
    over = views.norms_over_training(table)
    assert len(over.data[0].x) == 19


def published(make) -> pd.DataFrame:
    """Norms and KL of both published runs."""
    rows = []
    for run, version in (("grpo", "GRPOv01.14"), ("sft", "SFTv02.08")):
        norms = json.loads((PAPER / f"norms_{version}.json").read_text())
        kls = json.loads((PAPER / f"kl_math500_{version}.json").read_text())
        for name in {**norms, **kls}:
            if "-step-" not in name:
                continue
            own = {"run_id": run, "algorithm": run, "step": int(name.rsplit("-", 1)[1])}
            if name in kls:
                texts = "math500"
                rows.append(make.row(**own, metric="kl/all_tokens", value=kls[name], texts=texts))
            for matrix, values in norms.get(name, {}).items():
                cells = {**own, "metric": "weights/relative_frobenius", "matrix": matrix}
                rows += [
                    make.row(**cells, layer=layer, value=value)
                    for layer, value in enumerate(values)
                ]
    return make.frame(rows)


@pytest.mark.skipif(
    not (PAPER / "kl_math500_SFTv02.08.json").exists(),
    reason=f"the paper's published numbers are not at {PAPER}",
)
def test_both_published_runs_look_like_the_papers_figures(make):
    table = published(make)
    figure = views.weight_heatmaps(table)
    steps = figure.layout.sliders[0].steps
    assert len(steps) == 20
    # the SFT run's checkpoint at 95 % was never published
    notes = [note["text"].replace("<br>", " ") for note in steps[-2].args[1]["annotations"]]
    assert "no checkpoint near 96 % of the run; the nearest is of step 432" in notes[3]
    heat = figure.data[1]
    z = np.array(heat.z)
    _, matrix = np.unravel_index(z.argmax(), z.shape)
    assert list(heat.x)[matrix] in ("q_proj", "k_proj")
    by_layer = z[:, :2].mean(axis=1)
    assert set(by_layer.argsort()[-2:]) == {16, 18}
    assert figure.data[0].zmax == z.max()
    assert np.array(figure.data[0].z).max() < z.max() / 40
    lines = {t.meta["series"].split()[0]: t for t in views.kl_over_training(table).data}
    assert lines["sft"].y[-1] == pytest.approx(4.7, abs=0.02)
    assert max(lines["grpo"].y) < 0.5
