"""What the figures draw is what the table says."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pandas as pd
import pytest
from scipy.stats import binomtest

from mlflow_scalpel import views
from mlflow_scalpel.views.common.panels import legend_rows
from mlflow_scalpel.views.common.text import DIRECTIONS
from mlflow_scalpel.views.common.traces import NO_VALUE
from tests.views.drawn import trace, words_of

VIEWS = [
    views.norms_over_training,
    views.weight_heatmaps,
    views.kl_over_training,
    views.scores_before_after,
    views.scores_over_training,
    views.in_versus_out,
    views.cost,
]
EVIL = "<script>alert(\"x\")</script> <a href='http://evil'>&amp; $x$"


def gap(table: pd.DataFrame, where: pd.Series, reason: str = "could not load") -> pd.DataFrame:
    """The table with some values replaced by a reason."""
    table = table.copy()
    table.loc[where, "value"] = None
    table.loc[where, "status"] = "failed"
    table.loc[where, "reason"] = reason
    return table


def test_norms_are_means_over_layers(table, runs):
    figure = views.norms_over_training(table, runs)
    assert len(figure.data) == 3 * 7
    line = trace(figure, "sft", "k_proj")
    rows = table[(table["run_id"] == "bbbb2222") & (table["matrix"] == "k_proj")]
    rows = rows[rows["metric"] == "weights/relative_frobenius"]
    expected = rows.groupby("step")["value"].mean()
    assert list(line.x) == [100, 200, 300]
    assert list(line.y) == pytest.approx(list(expected))
    assert {axis.type for axis in figure.select_yaxes()} == {"log"}
    assert [axis.matches for axis in figure.select_yaxes()] == [None, "y", "y"]


@pytest.mark.parametrize("metric", ["weights/relative_frobenius_per_lr", "weights/update_rms"])
def test_norms_draw_another_metric(table, runs, metric):
    line = trace(views.norms_over_training(table, runs, metric=metric), "grpo", "v_proj")
    rows = table[(table["run_id"] == "aaaa1111") & (table["matrix"] == "v_proj")]
    rows = rows[(rows["metric"] == metric) & (rows["step"] == 300)]
    assert line.y[-1] == pytest.approx(rows["value"].mean())


def test_norms_say_how_many_layers_and_break_where_there_are_none(table, runs):
    own = (table["run_id"] == "aaaa1111") & (table["matrix"] == "q_proj")
    holed = gap(table, own & (table["step"] == 200))
    holed = gap(holed, own & (table["step"] == 300) & (table["layer"] == 0))
    figure = views.norms_over_training(holed, runs)
    line = trace(figure, "grpo", "q_proj")
    assert line.y[1] is None
    assert not line.connectgaps
    assert "mean over 3 of 4 layers" in line.customdata[2]
    crosses = trace(figure, "grpo", NO_VALUE)
    assert list(crosses.x) == [200]
    assert "could not load" in crosses.customdata[0]


def test_heat_maps_hold_the_table_on_a_shared_or_own_scale(table, runs):
    shared = views.weight_heatmaps(table, runs)
    own = views.weight_heatmaps(table, runs, shared_scale=False)
    assert len(shared.data) == len(own.data) == 3
    rows = table[(table["metric"] == "weights/relative_frobenius") & (table["step"] == 300)]
    assert {t.zmax for t in shared.data} == {float(rows["value"].max())}
    for heat in own.data:
        run_id = runs.index[list(runs["name"]).index(heat.meta["series"])]
        mine = rows[rows["run_id"] == run_id]
        assert heat.zmax == pytest.approx(mine["value"].max())
        cell = mine[(mine["layer"] == 2) & (mine["matrix"] == "gate_proj")]["value"].iloc[0]
        assert heat.z[2][list(heat.x).index("gate_proj")] == pytest.approx(cell)
    assert "shared scale 0" in shared.data[0].colorbar.title.text
    assert "own scale 0" in own.data[0].colorbar.title.text


def test_heat_maps_leave_a_cell_blank_and_say_why(table, runs):
    cell = (table["run_id"] == "bbbb2222") & (table["layer"] == 1) & (table["matrix"] == "up_proj")
    heat = trace(views.weight_heatmaps(gap(table, cell), runs), "sft", "sft")
    column = list(heat.x).index("up_proj")
    assert math.isnan(heat.z[1][column])
    assert "no value: could not load" in heat.customdata[1][column]
    assert heat.hoverongaps


def test_names_over_three_maps_have_a_line_for_themselves(table, runs):
    three = views.weight_heatmaps(table, runs)
    assert three.layout.annotations[0].text == "grpo<br>step 300"
    both = table[table["run_id"].isin(["aaaa1111", "bbbb2222"])]
    two = views.weight_heatmaps(both, runs)
    assert two.layout.annotations[0].text == "grpo, step 300"
    assert three.layout.margin.t == two.layout.margin.t + 16


def test_heat_maps_at_a_step(table, runs):
    figure = views.weight_heatmaps(table, runs, step=100)
    assert "step 100" in figure.layout.annotations[0].text
    assert not views.weight_heatmaps(table, runs, step=150).data


def test_kl_draws_values_and_intervals(table, runs):
    figure = views.kl_over_training(table, runs)
    assert len(figure.data) == 4 * 3
    line = trace(figure, "teacher_style: answer tokens", "grpo")
    assert list(line.y) == pytest.approx([4e-3 / 3, 8e-3 / 3, 4e-3])
    assert list(line.error_y.array) == pytest.approx([1.96 * y / 10 for y in line.y])
    assert "n = 64" in line.customdata[0]
    assert "nats/token" in line.customdata[0]


def test_kl_against_the_fraction_of_the_run(table, runs):
    runs.loc["aaaa1111", "steps"] = "600"
    line = trace(
        views.kl_over_training(table, runs, x="fraction", log_y=False),
        "base_style: all tokens",
        "grpo",
    )
    assert list(line.x) == pytest.approx([100 / 600, 200 / 600, 0.5])
    alone = views.kl_over_training(table, x="fraction")
    assert max(alone.data[0].x) == 1
    with pytest.raises(ValueError, match="x is 'epoch'"):
        views.kl_over_training(table, runs, x="epoch")


def test_kl_breaks_at_a_missing_or_infinite_value(table, runs):
    where = (table["metric"] == "kl/all_tokens") & (table["step"] == 200)
    holed = gap(table, where & (table["run_id"] == "aaaa1111"), EVIL)
    holed.loc[where & (table["run_id"] == "bbbb2222"), "value"] = math.inf
    figure = views.kl_over_training(holed, runs)
    assert trace(figure, "base_style: all tokens", "grpo").y[1] is None
    assert trace(figure, "base_style: all tokens", "sft").y[1] is None
    said = [t.customdata[0] for t in figure.data if t.meta["series"] == NO_VALUE]
    assert any("not a finite number" in text for text in said)
    assert any("&lt;script&gt;" in text for text in said)


def test_scores_before_and_after(table, runs):
    figure = views.scores_before_after(table, runs)
    panel = "in-domain: sampled"
    assert [t.meta["series"] for t in figure.data if t.meta["panel"] == panel] == [
        "base",
        "grpo",
        "sft",
        "sft-matched",
    ]
    assert list(trace(figure, panel, "base").y) == pytest.approx([0.6, 0.5])
    bar = trace(figure, panel, "grpo")
    assert list(bar.x) == ["add", "gcd"]
    assert list(bar.y) == pytest.approx([0.8, 0.6])
    exact = binomtest(160, 200).proportion_ci(method="exact")
    bars = bar.error_y
    assert (0.8 - bars.arrayminus[0], 0.8 + bars.array[0]) == pytest.approx((exact.low, exact.high))
    assert list(trace(figure, "out-of-domain: greedy", "sft").y) == pytest.approx([0.68])
    assert "exact 95 % intervals" in figure.layout.title.subtitle.text
    texts = [note.text for note in figure.layout.annotations]
    assert any("no out-of-domain" in text for text in texts)


def test_bars_without_standard_errors_carry_their_numbers(table, runs):
    assert not any(t.text for t in views.scores_before_after(table, runs).data)
    table["stderr"] = None
    figure = views.scores_before_after(table, runs)
    for bar in figure.data:
        assert list(bar.text) == [f"{value:.2f}" for value in bar.y]
    assert figure.layout.yaxis.range[1] > 1.1  # a number above a bar of 1 is not cut


def test_scores_keep_two_readings_of_the_base_apart(table, runs):
    mine = (table["run_id"] == "bbbb2222") & (table["step"] == 0)
    table.loc[mine, "value"] = table.loc[mine, "value"] - 0.01
    figure = views.scores_before_after(table, runs)
    names = {t.meta["series"] for t in figure.data}
    assert {"base as measured for grpo, sft-matched", "base as measured for sft"} <= names


def test_a_run_without_base_scores_borrows_those_of_its_base(table, runs):
    table = table[~((table["run_id"] == "cccc3333") & (table["step"] == 0))]
    figure = views.scores_over_training(table, runs)
    line = trace(figure, "in-domain: add, greedy", "sft-matched")
    assert list(line.x) == [0, 100, 200, 300]
    table.loc[table["run_id"] == "cccc3333", "base_digest"] = "sha256:other"
    figure = views.scores_over_training(table, runs)
    assert list(trace(figure, "in-domain: add, greedy", "sft-matched").x) == [100, 200, 300]


def test_a_missing_score_is_a_cross_not_a_bar_of_zero(table, runs):
    where = (table["metric"] == "eval/in/add/greedy") & (table["step"] == 300)
    figure = views.scores_before_after(gap(table, where & (table["run_id"] == "aaaa1111")), runs)
    assert list(trace(figure, "in-domain: greedy", "grpo").x) == ["gcd"]
    cross = trace(figure, "in-domain: greedy", NO_VALUE)
    assert list(cross.x) == ["add"]
    assert "could not load" in cross.customdata[0]


def test_scores_over_training_of_one_kind(table, runs):
    assert len(views.scores_over_training(table, runs).data) == 5 * 3
    figure = views.scores_over_training(table, runs, kind="sampled")
    assert len(figure.data) == 2 * 3
    assert list(figure.data[0].y) == pytest.approx([0.6, 0.6 + 0.2 / 3, 0.6 + 0.4 / 3, 0.8])


def test_in_versus_out_is_the_change_since_the_base(table, runs):
    figure = views.in_versus_out(table, runs)
    assert len(figure.data) == 3 + 1
    line = trace(figure, "In-domain against out-of-domain change", "sft")
    assert (line.x[0], line.y[0]) == (0, 0)
    assert line.x[-1] == pytest.approx((0.12 + 0.06) / 2)
    assert line.y[-1] == pytest.approx(-0.3)
    # Of exact intervals of each score, whose distances add in squares.
    ends = [
        [(p, *binomtest(round(200 * p), 200).proportion_ci(method="exact")) for p in pair]
        for pair in ((0.6, 0.72), (0.5, 0.56))
    ]
    above = sum((high - b) ** 2 + (a - low) ** 2 for (a, low, _), (b, _, high) in ends) ** 0.5 / 2
    assert line.error_x.array[-1] == pytest.approx(above, rel=1e-4)
    assert set(line.error_x.array[:-1]) == {None}
    assert figure.layout.xaxis.zeroline
    assert figure.layout.yaxis.zeroline
    assert "sampled, 2 skills" in figure.layout.xaxis.title.text
    assert "greedy, 1 skill" in figure.layout.yaxis.title.text


def test_in_versus_out_breaks_rather_than_average_fewer_skills(table, runs):
    where = (table["metric"] == "eval/in/gcd/sampled") & (table["step"] == 200)
    figure = views.in_versus_out(gap(table, where & (table["run_id"] == "aaaa1111")), runs)
    line = trace(figure, "In-domain against out-of-domain change", "grpo")
    assert line.x[2] is None
    subtitle = figure.layout.title.subtitle.text.replace("<br>", " ")
    assert "gap at step 200: gcd (sampled) has no value here: could not load" in subtitle


def test_in_versus_out_leaves_out_a_skill_that_one_run_lacks(table, runs):
    where = table["metric"].str.startswith("eval/in/gcd") & (table["run_id"] == "cccc3333")
    figure = views.in_versus_out(table[~where], runs)
    line = trace(figure, "In-domain against out-of-domain change", "sft")
    assert line.x[-1] == pytest.approx(0.12)
    assert "gcd (in-domain)" in figure.layout.title.subtitle.text.replace("<br>", " ")


def test_cost_is_the_total_of_each_run(table, runs):
    where = (table["metric"] == "cost/flops") & (table["run_id"] == "bbbb2222")
    figure = views.cost(gap(table, where), runs)
    assert len(figure.data) == 6 * 3
    assert list(trace(figure, "tokens generated", "grpo").x) == [4e3 * 300]
    assert list(trace(figure, "computation", "sft").text) == ["no value"]
    titles = {axis.title.text for axis in figure.select_xaxes()}
    assert {"seconds", "FLOP", "tokens", "problems"} <= titles


def test_an_algorithm_keeps_its_colour_and_its_runs_differ(table, runs):
    lines = {t.meta["series"]: t for t in views.in_versus_out(table, runs).data}
    bars = {t.meta["series"]: t for t in views.cost(table, runs).data}
    for name in ("grpo", "sft", "sft-matched"):
        assert lines[name].line.color == bars[name].marker.color
    assert lines["sft"].line.color == lines["sft-matched"].line.color != lines["grpo"].line.color
    assert lines["sft"].line.dash != lines["sft-matched"].line.dash
    assert bars["sft"].marker.pattern.shape != bars["sft-matched"].marker.pattern.shape


def test_the_bases_bars_are_outlines_and_no_runs_are(table, runs):
    for bar in views.scores_before_after(table, runs).data:
        is_base = bar.meta["series"] == "base"
        assert (bar.marker.line.color is not None) == is_base
        assert bar.marker.color.startswith("rgba(" if is_base else "#")


def test_runs_are_named_by_algorithm_and_id_where_nothing_is_known(table):
    names = {t.meta["series"] for t in views.cost(table).data}
    assert names == {"grpo aaaa11", "sft bbbb22", "sft cccc33"}


def test_runs_of_one_name_stay_apart(table, runs):
    runs["name"] = "arm"
    names = {t.meta["series"] for t in views.cost(table, runs).data}
    assert names == {"arm aaaa11", "arm bbbb22", "arm cccc33"}


def test_a_legend_has_room_for_names_that_leave_a_row_half_empty():
    assert legend_rows([], 684) == 0
    assert legend_rows(["base"], 684) == 1
    assert legend_rows(["a" * 60, "b" * 50, "c" * 60], 684) == 3  # two fill no row together


def test_the_mark_of_imported_runs_takes_no_room_where_all_have_it(table, runs):
    long = "SFT (unfrozen Q and K)"
    runs["name"] = [f"{name} (imported)" for name in ("GRPO", "SFT", long)]
    assert [t.name for t in views.kl_over_training(table, runs).data][-1] == long
    heads = {note.text for note in views.norms_over_training(table, runs).layout.annotations}
    assert heads == {"GRPO", "SFT", long}
    said = trace(views.cost(table, runs), "sequences", f"{long} (imported)")
    assert f"{long} (imported)" in said.customdata[0]
    runs["name"] = ["mine", "SFT (imported)", f"{long} (imported)"]
    heads = {note.text for note in views.norms_over_training(table, runs).layout.annotations}
    assert heads == {"mine", "SFT (imported)", f"{long} (imported)"}


@pytest.mark.parametrize("view", VIEWS)
def test_an_empty_table_says_so(view, table, runs):
    for empty in (table.iloc[:0], pd.DataFrame()):
        figure = view(empty, runs)
        assert not figure.data
        assert "This " in figure.layout.annotations[0].text


@pytest.mark.parametrize("view", VIEWS)
def test_one_run_without_parameters(view, table):
    figure = view(table[table["run_id"] == "aaaa1111"])
    assert figure.data
    json.loads(figure.to_json())


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_but_gaps(view, table, runs):
    one = table[table["run_id"] == "aaaa1111"]
    json.loads(view(gap(one, one["value"].notna()), runs).to_json())


@pytest.mark.parametrize("view", VIEWS)
def test_nulls_wherever_the_table_may_have_them(view, table):
    one = table[table["run_id"] == "aaaa1111"].copy()
    for column in ("base", "base_digest", "algorithm", "stderr", "n", "unit", "texts", "reason"):
        one[column] = pd.NA
    figure = view(one)
    json.loads(figure.to_json())


def test_missing_columns_are_named(table):
    with pytest.raises(ValueError, match=r"is missing the columns \['stderr'\].*tidy table"):
        views.kl_over_training(table.drop(columns="stderr"))


@pytest.mark.parametrize("view", VIEWS)
def test_other_peoples_text_is_escaped(view, table, runs):
    runs["name"] = EVIL
    runs["algorithm"] = EVIL
    one = table[table["run_id"] == "aaaa1111"].copy()
    one["texts"] = "<b>probe</b> sha256:1"
    one["metric"] = one["metric"].str.replace("/add/", "/<i>add/")
    holed = gap(one, (one["step"] == 200) & one["value"].notna(), EVIL)
    figure = view(holed, runs).to_dict()
    for item in figure["data"]:
        item.pop("meta")  # never shown
    shown = json.dumps(figure)
    for tag in ("<script", "<a ", "<b>", "<i>", "</"):
        assert tag not in shown.replace("<extra></extra>", "")
    assert "&lt;script" in shown


def test_numbers_are_those_of_the_figure(table, runs):
    scores = views.numbers(views.scores_before_after(table, runs))
    row = scores[(scores["series"] == "sft") & (scores["x"] == "facts")]
    assert row["y"].iloc[0] == pytest.approx(0.68)
    heat = views.numbers(views.weight_heatmaps(table, runs))
    assert len(heat) == 3 * 4 * 7
    assert heat["value"].notna().all()


def test_importing_the_package_does_not_import_the_views():
    code = "import sys, mlflow_scalpel; sys.exit('plotly' in sys.modules or "
    code += "'mlflow_scalpel.views' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_turn_nothing_of_what_stands_behind_them(table, runs):
    runs = runs.assign(name=[f"\u202e\u2067run {i}" for i in range(len(runs))])
    for view in VIEWS:
        assert not set(DIRECTIONS) & set(words_of(view(table, runs))), view.__name__
    assert not set(DIRECTIONS) & set("".join(views.findings(table, runs)))


def test_a_published_model_of_unknown_steps_stands_at_no_step(table, runs):
    published = runs.drop(columns="steps", errors="ignore").assign(imported_from="a paper")
    last = table["step"].groupby(table["run_id"]).transform("max")
    table = table[(table["step"] == 0) | (table["step"] == last)].copy()
    table.loc[table["step"] > 0, "step"] = 1
    for view, x in ((views.in_versus_out, {}), (views.scores_over_training, {"x": "fraction"})):
        said = words_of(view(table, published, **x))
        assert "published, the end of training" in said
        assert "step 1" not in said
