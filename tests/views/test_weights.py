"""Heat maps and their slider, trajectories, histograms, spectra, pairs, parts and attention."""

from __future__ import annotations

import base64
import math

import numpy as np
import pandas as pd
import pytest

from mlflow_scalpel import views
from mlflow_scalpel.comparison.run_store import summarise
from mlflow_scalpel.comparison.table import tidy
from mlflow_scalpel.views.common.slider import LAST
from mlflow_scalpel.views.common.traces import NO_VALUE
from tests.views.detailed import ARMS, LAYERS, MATRICES, detailed_table, norm
from tests.views.drawn import trace

EVIL = "<script>alert(1)</script> %{z} <b>\u05e9\u05dc\u05d5\u05dd</b>"


@pytest.fixture
def table(detailed) -> pd.DataFrame:
    return detailed


@pytest.fixture
def runs() -> pd.DataFrame:
    return pd.DataFrame({"name": ["grpo", "sft"]}, index=pd.Index(list(ARMS), name="run_id"))


def cells(step, panel):
    """What a step of the slider puts into a panel."""
    packed = step.args[0]["z"][panel]
    shape = [int(side) for side in packed["shape"].split(", ")]
    return np.frombuffer(base64.b64decode(packed["bdata"]), dtype="<f4").reshape(shape)


def heads(step):
    """The panels' titles at a step of the slider."""
    return [note["text"] for note in step.args[1]["annotations"]]


def failed(table, where, reason="could not load"):
    """The table with some values replaced by a reason."""
    table = table.copy()
    table.loc[where, "value"] = None
    table.loc[where, "status"] = "failed"
    table.loc[where, "reason"] = reason
    return table


def test_the_slider_aligns_runs_of_different_length(table, runs):
    figure = views.weight_heatmaps(table, runs)
    steps = figure.layout.sliders[0].steps
    assert [step.label for step in steps] == ["25 %", "50 %", "74 %", "100 %"]
    assert figure.layout.sliders[0].active == 3
    for step, grpo, sft in zip(steps, ARMS["aaaa1111"][2], ARMS["bbbb2222"][2], strict=True):
        assert heads(step)[:2] == [f"grpo, step {grpo}", f"sft, step {sft}"]
        for panel, (size, part) in enumerate(((1.0, grpo / 40), (20.0, sft / 82))):
            expected = [[norm(size, part, i, m) for m in MATRICES] for i in range(LAYERS)]
            assert cells(step, panel) == pytest.approx(np.array(expected), rel=1e-6)
    assert cells(steps[-1], 0) == pytest.approx(np.array(figure.data[0].z), rel=1e-6)
    assert {t.zmax for t in figure.data} == {norm(20.0, 1, 2, "q_proj")}


def test_the_slider_has_a_step_for_each_training_step(table, runs):
    steps = views.weight_heatmaps(table, runs, by="step").layout.sliders[0].steps
    assert [s.label for s in steps] == ["10", "20", "21", "30", "40", "41", "61", "82", LAST]
    assert np.isnan(cells(steps[0], 1)).all()
    assert "no checkpoint at step 10; the nearest is of step 21" in heads(steps[0])[3].replace(
        "<br>", " "
    )
    assert heads(steps[-1])[:2] == ["grpo, step 40", "sft, step 82"]
    with pytest.raises(ValueError, match="by is 'time': pass one of 'fraction', 'step'"):
        views.weight_heatmaps(table, runs, by="time")


def test_a_missing_checkpoint_is_an_empty_panel_with_its_reason(table, runs):
    table = table[~((table["run_id"] == "bbbb2222") & (table["step"] == 41))]
    table = failed(table, (table["run_id"] == "bbbb2222") & (table["step"] == 61), EVIL)
    steps = views.weight_heatmaps(table, runs).layout.sliders[0].steps
    assert np.isnan(cells(steps[1], 1)).all()
    assert not np.isnan(cells(steps[1], 0)).any()
    said = heads(steps[1])[3].replace("<br>", " ")
    assert said == "no checkpoint near 50 % of the run; the nearest is of step 21, at 25.6 %"
    assert "no checkpoint near 50 %" in steps[1].args[0]["hovertemplate"][1]
    assert "&lt;script&gt;" in heads(steps[2])[3]
    template = steps[2].args[0]["hovertemplate"][1]
    assert "&lt;script&gt;" in template
    assert "%{z}" not in template
    assert "<script>" not in views.weight_heatmaps(table, runs).to_json()


def test_a_run_that_ended_early_is_seen_at_its_last(table, runs):
    runs["steps"] = ["80", "82"]
    figure = views.weight_heatmaps(table, runs)
    steps = figure.layout.sliders[0].steps
    assert [step.label for step in steps][-2:] == ["100 %", LAST]
    assert heads(steps[-1])[:2] == ["grpo, step 40", "sft, step 82"]
    assert not np.isnan(np.array(figure.data[0].z)).any()


def test_one_checkpoint_needs_no_slider(table, runs):
    figure = views.weight_heatmaps(table[table["step"].isin([40, 82])], runs)
    assert not figure.layout.sliders
    assert len(figure.data) == 2
    assert not views.weight_heatmaps(table, runs, step=20).layout.sliders


def test_heat_maps_of_ranks_span_their_values(table, runs):
    heat = views.weight_heatmaps(table, runs, metric="spectra/stable_rank").data[0]
    assert heat.zmin == 0
    near = table[table["layer"] == 2]
    heat = views.weight_heatmaps(near, runs, metric="spectra/stable_rank").data[0]
    assert (heat.zmin, heat.zmax) == (pytest.approx(7), pytest.approx(10.75, abs=0.1))
    assert "shared scale 7" in heat.colorbar.title.text


def test_attention_is_layer_by_head_and_parts_at_zero(table, runs):
    figure = views.attention_heatmaps(table, runs)
    assert list(figure.data[0].x) == ["0", "1"]
    assert figure.data[0].zmin == 0
    assert len(figure.layout.sliders[0].steps) == 4
    signed = views.attention_heatmaps(table, runs, metric="attention/entropy_change")
    assert (signed.data[0].zmin, signed.data[0].zmax) == (-1.5, 1.5)
    assert signed.data[0].z[2][0] == pytest.approx(-1.5)
    assert "\u22121.5 to 1.5" in signed.data[0].colorbar.title.text


def test_trajectory_of_a_cell(table, runs):
    figure = views.weight_trajectory(table, runs, layer=2, matrix="k_proj", x="fraction")
    line = trace(figure, "layer 2, k_proj", "sft")
    assert list(line.x) == pytest.approx([21 / 82, 41 / 82, 61 / 82, 1])
    assert line.y[-1] == pytest.approx(norm(20.0, 1, 2, "k_proj"))
    nowhere = views.weight_trajectory(table, runs, layer=9, matrix="k_proj")
    assert "for layer 9, k_proj" in nowhere.layout.annotations[0].text.replace("<br>", " ")


def test_lines_by_layer_are_means_over_matrices(table, runs):
    figure = views.weights_over_training(table, runs, by="layer")
    line = trace(figure, "grpo", "layer 1")
    assert line.y[-1] == pytest.approx(np.mean([norm(1.0, 1, 1, m) for m in MATRICES]))
    assert "mean over 3 of 3 matrices" in line.customdata[-1]
    with pytest.raises(ValueError, match="by is 'head'"):
        views.weights_over_training(table, runs, by="head")


def test_lines_without_a_cost_are_named(table, runs):
    figure = views.weights_over_training(table, runs, x="flops")
    assert not figure.data
    said = figure.layout.annotations[0].text.replace("<br>", " ")
    assert "not drawn: grpo: no cost/flops in the table; sft: no cost/flops" in said
    costs = [
        {"run_id": "bbbb2222", "step": step, "metric": "cost/flops", "value": 1e9 * step}
        for step in ARMS["bbbb2222"][2]
    ]
    figure = views.weights_over_training(pd.concat([table, tidy(costs)]), runs, x="flops")
    assert list(trace(figure, "sft", "q_proj").x) == [2.1e10, 4.1e10, 6.1e10, 8.2e10]
    assert "not drawn: grpo: no cost/flops" in figure.layout.title.subtitle.text
    assert {t.meta["panel"] for t in figure.data} == {"sft"}


def test_many_layers_list_some_in_the_legend(table, runs):
    rows = table[(table["metric"] == "weights/relative_frobenius") & (table["layer"] == 0)]
    many = pd.concat([rows.assign(layer=layer) for layer in range(32)])
    figure = views.weights_over_training(many, runs, by="layer")
    names = {t.name for t in figure.data if t.showlegend}
    assert len(names) == 8
    assert {"layer 0", "layer 31"} <= names
    assert len({t.meta["series"] for t in figure.data}) == 32


def test_histogram_of_units_in_the_last_place(table, runs):
    figure = views.change_histogram(table, runs)
    line = trace(figure, "sft", "q_proj")
    assert list(line.x) == ["0", "1", "2", "4"]
    assert list(line.y) == pytest.approx([0.4, 0.3, 0.2, 0.1])
    far = table.assign(bin=table["bin"].astype(str).replace(["4", "4.0"], "1048576"))
    line = trace(views.change_histogram(far, runs), "sft", "q_proj")
    assert list(line.x) == ["0", "1", "2", "2\N{SUPERSCRIPT TWO}\N{SUPERSCRIPT ZERO}"]
    one = views.change_histogram(table, runs, layer=1, matrix="k_proj", step=10)
    assert [t.meta for t in one.data] == [{"panel": "grpo", "series": "k_proj"}]
    assert not views.change_histogram(table, runs, step=11).data


def test_an_empty_bin_of_a_layer_or_an_expert_is_a_fraction_of_0(runs):
    parts = {  # of each matrix's elements, by the bin's lower edge
        (0, "experts.0.up_proj"): {"0": 1.0},
        (0, "experts.1.up_proj"): {"0": 0.5, "1": 0.5},
        (1, "experts.0.up_proj"): {"0": 0.25, "2": 0.75},
        (1, "experts.1.up_proj"): {"1": 1.0},
    }
    rows = [
        {
            "run_id": runs.index[0],
            "algorithm": "grpo",
            "step": 10,
            "metric": "histograms/ulp_change",
            "layer": layer,
            "matrix": matrix,
            "part": "experts",
            "bin": edge,
            "value": value,
            "n": 8,
        }
        for (layer, matrix), bins in parts.items()
        for edge, value in bins.items()
    ]
    (line,) = views.change_histogram(tidy(rows), runs).data
    assert line.meta["series"] == "experts.*.up_proj"
    assert dict(zip(line.x, line.y, strict=True)) == {"0": 1.75 / 4, "1": 1.5 / 4, "2": 0.75 / 4}
    assert "mean over 4 of 4 matrices" in line.customdata[0]


def test_changes_by_magnitude_are_weighted_by_their_elements(table, runs):
    figure = views.change_by_magnitude(table, runs)
    assert figure.layout.yaxis.autorangeoptions.include == 0
    line = trace(figure, "grpo", "down_proj")
    assert list(line.x) == [-3, -2, -1]
    assert line.y[0] == pytest.approx((0.1 + 0.2 * 10 + 0.3 * 100) / 111)


def test_spectra_over_training_and_by_layer(table, runs):
    figure = views.spectra_over_training(table, runs)
    line = trace(figure, "stable rank: sft", "q_proj")
    assert line.y[-1] == pytest.approx(6)
    kinds = {axis.type for axis in figure.select_yaxes()}
    assert kinds == {"log", "linear"}
    layers = views.spectra_by_layer(table, runs)
    line = trace(layers, "spectral norm: grpo", "k_proj")
    assert list(line.x) == [0, 1, 2]
    assert list(line.y) == pytest.approx([3 * norm(1.0, 1, i, "k_proj") for i in range(3)])


def test_pairs_name_both_runs(table, runs):
    figure = views.pair_cosines(table, runs)
    heat = trace(figure, "grpo with sft", "grpo with sft")
    assert heat.z[0][0] == pytest.approx(-0.2)
    assert (heat.zmin, heat.zmax) == (-0.2, 0.2)
    assert len(figure.layout.sliders[0].steps) == 4
    line = trace(views.pair_overlap(table, runs), "", "grpo with sft")
    assert line.y[0] == pytest.approx((2 + 3 * 10 + 4 * 100) / 111)
    assert list(trace(views.pair_overlap(table, runs), "", "chance").y) == [1, 1]


@pytest.mark.parametrize(
    ("view", "metric"),
    [
        (views.weights_over_training, "weights/relative_frobenius"),
        (views.change_histogram, "histograms/ulp_change"),
        (views.change_by_magnitude, "histograms/change_by_magnitude"),
        (views.spectra_over_training, "spectra/stable_rank"),
        (views.pair_overlap, "pairs/changed_overlap"),
        (views.pair_cosines, "pairs/update_cosine"),
        (views.attention_heatmaps, "attention/js"),
        (views.weight_heatmaps, "weights/relative_frobenius"),
    ],
)
def test_gaps_have_their_reason(view, metric, table, runs):
    gone = failed(table, (table["metric"] == metric) & (table["step"].isin([20, 40])), EVIL)
    figure = view(gone, runs)
    assert "<script" not in figure.to_json().replace("\\u003c", "<")
    all_gone = view(failed(table, table["value"].notna(), EVIL), runs)
    assert "<script" not in all_gone.to_json().replace("\\u003c", "<")
    notes = [note.text.replace("<br>", " ") for note in all_gone.layout.annotations]
    assert any("no value: &lt;script" in note for note in notes)
    empty = view(table[table["metric"] == "kl/all_tokens"], runs)
    assert not empty.data
    said = empty.layout.annotations[0].text.replace("<br>", " ")
    assert f"--metrics {metric.split('/')[0]}" in said


def test_a_gap_in_a_line_is_a_cross(table, runs):
    where = (table["metric"] == "weights/relative_frobenius") & (table["step"] == 20)
    figure = views.weight_trajectory(failed(table, where), runs, layer=0, matrix="q_proj")
    assert trace(figure, "layer 0, q_proj", "grpo").y[1] is None
    assert "could not load" in trace(figure, "layer 0, q_proj", NO_VALUE).customdata[0]


def test_maps_of_the_full_size_are_small(runs):
    """2 runs x 20 checkpoints x 32 layers x 7 matrices: ten such figures fit a report."""
    matrices = [f"m{i}" for i in range(7)]
    index = pd.MultiIndex.from_product(
        [list(ARMS), range(10, 210, 10), range(32), matrices],
        names=["run_id", "step", "layer", "matrix"],
    )
    table = index.to_frame(index=False).assign(metric="weights/relative_frobenius", status="ok")
    table["value"] = np.random.default_rng(0).random(len(table))
    table = table.reindex(columns=detailed_table().columns)
    figure = views.weight_heatmaps(table, runs)
    assert len(figure.layout.sliders[0].steps) == 20
    assert len(figure.to_json()) < 250_000
    assert math.isfinite(cells(figure.layout.sliders[0].steps[3], 1).sum())


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
def parts():
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


def test_the_report_says_over_what_the_mean_is(parts):
    (sentence,) = views.findings(parts)
    assert f"mean relative norm {MEAN:.3g} at step 10" in sentence
    assert "over 3 matrices (1 more are not trained), 70 % of the parameters" in sentence


def test_figures_of_matrices_leave_out_norms_and_embeddings(parts):
    heat = views.weight_heatmaps(parts)
    assert "input_layernorm" not in str(heat.to_plotly_json()["data"])
    assert sorted(heat.data[0].x) == ["experts.*.up_proj", "o_proj", "q_proj"]
    by_layer = views.weights_over_training(parts, by="layer")
    assert list(by_layer.data[0].y) == pytest.approx([MEAN])


def test_every_part_has_its_mean_and_its_share(parts):
    figure = views.norms_by_part(parts)
    found = dict(zip(figure.data[0].y, figure.data[0].x, strict=True))
    assert found == {
        "attention (20 %)": 0.1,
        "experts (60 %)": pytest.approx(0.4),
        "embeddings (15 %)": 60.0,
        "norm (1 %)": 40.0,
        "vision (4 %), no value": None,
    }
    assert "because of vision_tower.proj" in figure.data[0].customdata[-1]


def test_the_summary_of_a_checkpoint(parts):
    assert summarise(parts) == pytest.approx(
        {
            "weights/relative_frobenius/q_proj": 0.1,
            "weights/relative_frobenius/experts.up_proj": 0.4,
            "weights/relative_frobenius/embeddings": 60.0,
            "weights/relative_frobenius/mean": MEAN,
            "weights/measured_share": 0.96,
        }
    )
