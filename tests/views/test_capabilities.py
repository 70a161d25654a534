"""Ledger, pass@k, amplified, problems, freezing variants: what they draw is what the table says."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from mlflow_scalpel import views
from mlflow_scalpel.metrics.capabilities.intervals import share_interval
from tests.views.whole import BENCHMARKS, FATES, K, ledger_of

EVIL = "<script>alert(\"x\")</script> <img src=x onerror='alert(1)'>"
VIEWS = [views.ledger, views.pass_at_k, views.amplified, views.card]


def traces(figure, panel: str) -> dict:
    return {t.meta["series"]: t for t in figure.data if t.meta["panel"] == panel}


def capability(table: pd.DataFrame, name: str) -> pd.Series:
    return table["metric"] == f"capabilities/{name}"


def test_a_bar_of_the_ledger_is_all_problems(whole, runs):
    figure = views.ledger(whole, runs)
    assert len({t.meta["panel"] for t in figure.data}) == 9
    for key, label in (
        ("in/add/sampled", "in-domain: add"),
        ("out/facts/sampled", "out-of-domain: facts"),
    ):
        n, solved = BENCHMARKS[key]
        found = traces(figure, f"{label}, sampled: sft")
        lost = round(solved * FATES["bbbb2222"][0])
        assert list(found["kept"].x) == [100, 200, 300]
        assert found["lost"].base[-1] == solved - lost
        assert found["lost"].y[-1] == lost
        assert found["gained"].base[-1] == solved
        assert found["never"].base[-1] + found["never"].y[-1] == n
        assert found["lost_null"].y[-1] == pytest.approx(solved - 0.06 * n)
        assert found["gained_null"].y[-1] == pytest.approx(solved + 0.06 * n)
        # The bars hold the numbers that are not told apart from chance, on the way of each mark.
        gained, lost_mark = found["gained_null"].error_y, found["lost_null"].error_y
        assert gained.array[-1] == lost_mark.arrayminus[-1] == pytest.approx(0.03 * n)
        assert gained.arrayminus[-1] == lost_mark.array[-1] == pytest.approx(0.02 * n)
        assert "not corrected for the 81 tests shown" in found["kept"].customdata[-1]
        assert f"lost: {lost} of {n}" in found["kept"].customdata[-1]


def test_the_ledger_of_one_benchmark_over_the_fraction_of_the_run(whole, runs):
    figure = views.ledger(whole, runs, benchmark="gcd", x="fraction")
    assert {t.meta["panel"].split(":")[1] for t in figure.data} == {" gcd, sampled"}
    assert list(figure.data[0].x) == pytest.approx([1 / 3, 2 / 3, 1])
    assert not views.ledger(whole, runs, benchmark="none of them").data
    with pytest.raises(ValueError, match="x is 'epoch'"):
        views.ledger(whole, runs, x="epoch")


def test_a_ledger_over_what_was_not_counted_says_so(whole, runs):
    figure = views.ledger(whole, runs, x="tokens")
    assert list(figure.data[0].x) == [5e5, 1e6, 1.5e6]
    bare = whole[whole["metric"] != "cost/tokens_trained"]
    figure = views.ledger(bare, runs, x="tokens")
    assert not figure.data
    assert "no cost/tokens_trained" in figure.layout.annotations[0].text.replace("<br>", " ")


def test_a_ledger_without_a_null_says_so(whole, runs):
    bare = whole[~whole["metric"].str.endswith("_null")]
    assert "what is chance is not known" in views.ledger(
        bare, runs
    ).layout.title.subtitle.text.replace("<br>", " ")


def test_pass_at_k_marks_the_crossing_or_says_there_is_none(whole, runs):
    figure = views.pass_at_k(whole, runs)
    found = traces(figure, "in-domain: add, sampled: grpo")
    curve = found["grpo, step 300"]
    assert list(curve.x) == [1, 2, 4, 8, 16]
    assert curve.y[0] == pytest.approx(0.3 * 0.7)
    assert list(found["base"].y) == pytest.approx([1 - 0.9**k for k in curve.x])
    star = found["crossing at k = 4 (2 to 8)"]
    assert (star.x[0], star.error_x.array[0], star.error_x.arrayminus[0]) == (4, 4, 2)
    assert star.y[0] == pytest.approx(curve.y[2])
    said = f"no crossing told apart from chance up to k = {K}"
    assert said in traces(figure, "in-domain: add, sampled: sft")


def test_an_open_interval_of_the_crossing_says_beyond(whole, runs):
    where = capability(whole, "crossing_k_high")
    whole.loc[where, "value"] = None
    whole.loc[where, "status"] = "none found"
    names = {t.meta["series"] for t in views.pass_at_k(whole, runs).data}
    assert f"crossing at k = 4 (2 to beyond {K})" in names


def test_pass_at_k_at_a_step(whole, runs):
    names = {t.meta["series"] for t in views.pass_at_k(whole, runs, step=100).data}
    assert "grpo, step 100" in names
    assert "grpo, step 300" not in names


def test_one_sample_is_no_curve(whole, runs):
    one = whole[~whole["metric"].str.endswith("pass_at_k") | (whole["bin"] == 1)]
    assert not views.pass_at_k(one, runs).data


def test_amplified_says_k(whole, runs):
    figure = views.amplified(whole, runs)
    found = traces(figure, "in-domain: add, sampled")
    name = f"solved by the base at least once in k = {K}"
    assert list(found[name].x) == [0.75] * 3
    assert list(found[f"unsolved by it in k = {K}"].base) == [0.75] * 3
    low, high = share_interval(0.75, 0.05, 4)
    bars = found[name].error_x
    assert (0.75 - bars.arrayminus[0], 0.75 + bars.array[0]) == pytest.approx((low, high))
    # of sft-matched, no fact was gained
    assert list(traces(figure, "out-of-domain: facts, sampled")[name].y) == ["sft", "grpo"]


def test_amplified_keeps_rows_and_legend_where_the_first_panel_has_no_bar(whole, runs):
    greedy = whole["texts"].str.startswith("in/add/sampled").fillna(False)
    for name in ("amplified", "new"):
        nothing = capability(whole, name) & greedy
        whole.loc[nothing, ["value", "status"]] = [None, "undefined"]
        whole.loc[nothing, "reason"] = "no problem was gained"
    figure = views.amplified(whole, runs)
    listed = [t.name for t in figure.data if t.showlegend and len(t.x)]
    assert len(listed) == len(set(listed)) == 2
    # The names of the left panel stand at the bars of the right one.
    assert {tuple(figure.layout[axis].range) for axis in ("yaxis", "yaxis2")} == {(-0.5, 2.5)}
    said = " ".join(note.text for note in figure.layout.annotations).replace("<br>", " ")
    assert (
        "no value: grpo at step 300, sft at step 300, sft-matched at step 300: no problem was"
        in said
    )


@pytest.mark.parametrize("view", VIEWS)
def test_half_a_table_and_an_empty_one(view, whole, runs):
    for empty in (whole.iloc[:0], pd.DataFrame()):
        assert not view(empty, runs).data
    gone = whole.copy()
    own = (gone["run_id"] == "aaaa1111") | (gone["step"] == 200)
    gone.loc[own, "value"] = None
    gone.loc[own, "status"] = "failed"
    gone.loc[own, "reason"] = EVIL
    json.loads(view(gone, runs).to_json())
    json.loads(view(whole).to_json())


@pytest.mark.parametrize("view", [*VIEWS, views.ablation_bars])
def test_other_peoples_text_is_escaped(view, whole, runs):
    runs["name"] = EVIL
    runs["frozen"] = ["", EVIL, EVIL]
    runs["learning_rate"] = EVIL
    whole["texts"] = whole["texts"].str.replace("add", "<i>add")
    whole["metric"] = whole["metric"].str.replace("/add/", "/<i>add/")
    figure = view(whole, runs).to_dict()
    assert figure["data"]
    for item in figure["data"]:
        item.pop("meta")
    shown = json.dumps(figure).replace("<extra></extra>", "").replace("<br>", "")
    for tag in ("<script", "<img", "<i>", "</"):
        assert tag not in shown
    assert "&lt;script" in shown


@pytest.mark.parametrize("view", VIEWS)
def test_figures_have_numbers(view, whole, runs):
    assert len(views.numbers(view(whole, runs)))


def test_problems_stand_with_both_answers():
    text = views.problem_table(ledger_of(), status="lost", benchmark="in/add/sampled")
    assert "1 problem at step 200, lost" in text
    assert "checkpoint says 2 at 200" in text
    assert "base says 2 at 200" in text
    assert "3, 1 of 4" in text
    assert "(gained)" not in text
    assert "4 problems at step 100" in views.problem_table(ledger_of(), step=100)
    assert "0 problems" in views.problem_table(ledger_of(), benchmark="other")
    assert "the first 2 of them" in views.problem_table(ledger_of(), most=2)
    with pytest.raises(ValueError, match="status is 'won'"):
        views.problem_table(ledger_of(), status="won")
    with pytest.raises(ValueError, match=r"is missing the columns \['gold'\]"):
        views.problem_table(ledger_of().drop(columns="gold"))


def test_the_gold_answers_likelihood_stands_under_it():
    ledger = ledger_of().assign(gold_loglik_base=-1.5, gold_loglik=-9.25)
    assert "its log-likelihood: -1.5 \u2192 -9.25 nats" in views.problem_table(ledger)
    assert "log-likelihood" not in views.problem_table(ledger.assign(gold_loglik=pd.NA))


def test_problems_are_escaped_cut_and_may_be_missing():
    ledger = ledger_of(EVIL, EVIL)
    ledger.loc[0, "completion"] = "x" * 1_000_000
    ledger.loc[ledger["status"] == "lost", "completion"] = pd.NA
    text = views.problem_table(ledger, step=100)
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text
    assert "1,000,000 characters in all" in text
    assert len(text) < 60_000


def test_freezing_variants_stand_beside_those_that_froze_nothing(whole, runs):
    runs["frozen"] = [None, "None", "MLPs of layers 19-25"]
    figure = views.ablation_bars(whole, runs)
    names = {t.meta["series"]: t.name for t in figure.data}
    assert set(names) == {"base", "sft", "sft-matched"}
    assert names["sft-matched"] == "sft-matched, frozen: MLPs of layers 19-25"
    assert names["sft"] == "sft, frozen: nothing"
    table = views.frozen_table(whole, runs)
    assert "no: 0 elements differ" in table
    assert "12 tensors, bit for bit, at 3 checkpoints" in table


def test_no_variant_is_no_figure(whole, runs):
    none = whole[~whole["metric"].str.startswith("frozen/")]
    assert not views.ablation_bars(none, runs).data
    assert views.frozen_table(none, runs) == ""


def test_frozen_weights_that_moved_are_named(whole, runs):
    where = (whole["metric"] == "frozen/changed_elements") & (whole["step"] == 200)
    whole.loc[where, "value"] = 7
    assert "MOVED: 7 elements differ at step 200" in views.frozen_table(whole, runs)
    runs["frozen"] = ["", EVIL, EVIL]
    text = views.frozen_table(whole, runs)
    assert "not checked" in text
    assert "<script" not in text
