"""The card, which says where nothing is decided, and the bases that runs were compared with."""

from __future__ import annotations

import pandas as pd
import pytest

from mlflow_scalpel import views
from mlflow_scalpel.comparison.table import tidy
from mlflow_scalpel.views.common.table import Measurements
from mlflow_scalpel.views.summary.differences import base_text
from tests.views.whole import BENCHMARKS, FATES


def point(figure, axis: str, run: str):
    (found,) = [t for t in figure.data if t.meta == {"panel": axis, "series": run}]
    return found


def test_points_are_the_tables(whole, runs):
    figure = views.card(whole, runs)
    gain = point(figure, "In-domain gain", "grpo")
    assert gain.x[0] == pytest.approx(0.15)
    assert (gain.error_x.arrayminus[0], gain.error_x.array[0]) == pytest.approx((0.04, 0.05))
    assert gain.text is None  # all runs rest on the same: it stands once, under the axis
    assert "add, gcd (sampled)" in figure.layout.xaxis.title.text
    loss = point(figure, "Out-of-domain loss", "sft")
    assert loss.x[0] == pytest.approx(FATES["bbbb2222"][0])
    norm = point(figure, "Mean relative norm", "sft")
    assert norm.text[0] == "lr 5e-05, float32"
    assert point(figure, "Concentration of KL", "grpo").x[0] == pytest.approx(0.59)


def test_kl_says_on_which_texts(whole, runs):
    figure = views.card(whole, runs)
    own = point(figure, "KL from the base", "sft")
    assert own.x[0] == pytest.approx(0.40)
    assert own.text[0] == "on the base's own samples"
    other = point(figure, "KL from the base", "sft-matched")
    assert other.text[0] == "on answer tokens, base_style"


def test_what_decides_nothing_is_open_and_says_why(whole, runs):
    figure = views.card(whole, runs)
    sure, unsure = (point(figure, "In-domain gain", run) for run in ("grpo", "sft-matched"))
    assert sure.marker.symbol == "circle"
    assert unsure.marker.symbol == "circle-open"
    assert "the interval includes 0" in unsure.customdata[0]
    text = views.card_table(whole, runs)
    assert "decides nothing: the interval includes 0" in text
    assert "told apart neither from chance" not in text
    for test in ("overall_lost_p", "overall_gained_p", "overall_mcnemar_p"):
        whole.loc[whole["metric"] == f"capabilities/{test}", "value"] = 0.2
    text = views.card_table(whole, runs)
    nothing = "decides nothing: lost and gained are told apart neither from chance nor from each"
    assert text.count(nothing) == 3


def test_lost_against_gained_is_summed_over_benchmarks(whole, runs):
    figure = views.card(whole, runs)
    n = sum(count for count, _ in BENCHMARKS.values())
    lost, gained = FATES["bbbb2222"]
    losses = sum(round(solved * lost) for _, solved in BENCHMARKS.values())
    gains = sum(round((count - solved) * gained) for count, solved in BENCHMARKS.values())
    bars = {t.meta["series"]: t for t in figure.data if t.type == "bar"}
    at = list(bars["lost"].y).index("sft")
    assert bars["lost"].x[at] == pytest.approx(-losses / n)
    assert bars["gained"].x[at] == pytest.approx(gains / n)
    assert f"{losses} lost of 400 (" in views.card_table(whole, runs)


def test_without_a_ledger_the_scores_are_taken(table, runs):
    figure = views.card(table, runs)
    gain = point(figure, "In-domain gain", "grpo")
    assert gain.x[0] == pytest.approx(0.15)
    assert "mean over add, gcd (sampled) at step 300" in gain.customdata[0]
    subtitle = figure.layout.title.subtitle.text.replace("<br>", " ")
    assert "Not measured for any run: Concentration of KL, Problems lost against gained" in subtitle
    assert "run mlflow run . -e evaluate" in views.card_table(table, runs)
    assert not [t for t in figure.data if t.type == "bar"]


def test_no_interval_decides_nothing(table, runs):
    table["stderr"] = None
    text = views.card_table(table, runs)
    assert text.count("no interval: standard errors are missing") == 6
    runs["learning_rate"] = None
    assert "without the learning rate it says little" in views.card_table(table, runs)


def test_a_narrow_cell_breaks_no_option_of_a_command(table, runs):
    text = views.card_table(table, runs)
    assert '<span style="white-space:nowrap">--metrics</span> weights kl' in text
    runs["dtype"] = "<b>--x</b>"
    assert "<b>--x" not in views.card_table(table, runs)


def test_what_all_runs_say_of_an_axis_stands_once(table, runs):
    text = views.card_table(table, runs)
    assert text.count("The ledger was not measured") == 1
    assert text.count('<td colspan="3">') == 2  # KL's concentration, and the ledger


DIGEST, OTHER = "sha256:" + "a5" * 32, "sha256:" + "b6" * 32


def kl_row(run: str, base: str, digest: str | None) -> dict:
    made = {"metric": "kl/all_tokens", "value": 1.0, "step": 1, "run_id": run, "base": base}
    return made | ({} if digest is None else {"base_digest": digest})


def test_one_base_of_three_experiments_is_one():
    ids = [f"m-{n}" + "0" * 31 for n in (1, 2, 3)]
    table = tidy([kl_row(f"run{n}", one, DIGEST) for n, one in enumerate(ids)])
    runs = pd.DataFrame({"base_name": [None, "tiny-base/1", None]}, index=["run0", "run1", "run2"])
    assert base_text(Measurements.of(table, runs)) == ["tiny-base/1 (sha256:a5a5a5a5)"]
    runs = pd.DataFrame({"base_model": [f"models:/{ids[0]}", "org/base", "x"]}, index=runs.index)
    assert base_text(Measurements.of(table, runs)) == ["org/base (sha256:a5a5a5a5)"]
    assert base_text(Measurements.of(table)) == [f"{ids[0]} (sha256:a5a5a5a5)"]


def test_others_stand_by_themselves():
    table = tidy([kl_row("a", "one", DIGEST), kl_row("b", "two", OTHER), kl_row("c", "OLMo", None)])
    names = ["one (sha256:a5a5a5a5)", "two (sha256:b6b6b6b6)", "OLMo"]
    assert base_text(Measurements.of(table)) == names
    assert (
        base_text(Measurements.of(tidy([kl_row("a", "one", DIGEST), kl_row("c", "one", None)])))
        == names[:1]
    )
    assert base_text(Measurements.of(tidy([]))) == []
