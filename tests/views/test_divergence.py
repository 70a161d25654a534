"""The views of divergences draw what the table says."""

from __future__ import annotations

import pandas as pd
import pytest

from mlflow_scalpel import views
from mlflow_scalpel.views.common.traces import FLOOR
from tests.views.detailed import ARMS, QUANTILES
from tests.views.drawn import trace

EVIL = "<script>alert(1)</script> %{x} \u05e9\u05dc\u05d5\u05dd"
VIEWS = {
    "kl": views.kl_over_training,
    "kl/quantile": views.kl_statistics,
    "kl/by_position": views.kl_by_position,
    "kl/by_base_entropy": views.kl_by_entropy,
    "kl/gini": views.kl_concentration,
    "kl_on_base_samples": views.kl_on_base_samples,
    "kl_paper_compat": views.paper_compat,
}


@pytest.fixture
def table(detailed) -> pd.DataFrame:
    return detailed


@pytest.fixture
def runs() -> pd.DataFrame:
    return pd.DataFrame({"name": ["grpo", "sft"]}, index=pd.Index(list(ARMS), name="run_id"))


def test_the_noise_floor_lies_under_the_kl(table, runs):
    figure = views.kl_over_training(table, runs)
    floors = [t for t in figure.data if t.meta["series"] == FLOOR]
    assert {t.meta["panel"] for t in floors} == {"math: all tokens", "math: answer tokens"}
    assert all(list(t.y) == [2e-4, 2e-4] and list(t.x) == [10, 82] for t in floors)
    figure = views.kl_on_base_samples(table, runs)
    floors = [t for t in figure.data if t.meta["series"] == FLOOR]
    assert [(t.meta["panel"], list(t.y)) for t in floors] == [
        ("base_samples: answer tokens", [1e-4, 1e-4])
    ]
    exact = table.assign(value=table["value"].where(~table["metric"].str.contains("floor"), 0.0))
    figure = views.kl_over_training(exact, runs)
    assert not [t for t in figure.data if t.meta["series"] == FLOOR]
    assert "noise floor of the dtype: 0" in figure.layout.title.subtitle.text


@pytest.mark.parametrize(
    ("metric", "factor", "title"),
    [("kl/reverse", 1.5, "KL(checkpoint \u2016 base)"), ("kl/js", 0.25, "Jensen-Shannon")],
)
def test_other_divergences_over_training(metric, factor, title, table, runs):
    figure = views.kl_over_training(table, runs, metric=metric, x="fraction")
    line = trace(figure, "math: all tokens", "grpo")
    assert list(line.y) == pytest.approx([factor * 0.01 * part for part in (0.25, 0.5, 0.75, 1)])
    assert title in figure.layout.title.text
    assert not [t for t in figure.data if t.meta["series"] == FLOOR]


def test_statistics_of_the_last_checkpoint(table, runs):
    figure = views.kl_statistics(table, runs)
    line = trace(figure, "KL of single tokens, by quantile", "sft")
    assert list(line.x) == ["min", "median", "99.9 %", "max"]
    assert list(line.y) == pytest.approx([0.2 * (0.1 + share) for share in QUANTILES])
    marks = trace(figure, "divergences", "sft")
    assert list(marks.x) == ["KL", "reverse KL", "JS"]
    assert list(marks.y) == pytest.approx([0.4, 0.6, 0.1])
    assert list(marks.error_y.array) == pytest.approx([1.96 * y / 10 for y in marks.y])
    bars = trace(figure, "probability of the right token", "grpo")
    assert list(bars.y) == pytest.approx([-0.01 / 8, 0.01 / 6])
    assert trace(figure, "same top token", "grpo").y[0] == pytest.approx(0.99)
    all_tokens = views.kl_statistics(table, runs, tokens="all tokens", step=41)
    assert trace(all_tokens, "divergences", "sft").y[0] == pytest.approx(0.2 * 41 / 82)
    assert not views.kl_statistics(table, runs, step=11).data


def test_by_position_and_by_entropy(table, runs):
    line = trace(views.kl_by_position(table, runs), "math: answer tokens", "grpo")
    assert list(line.x) == ["0", "1", "2", "4"]
    assert list(line.y) == pytest.approx([0.001, 0.011, 0.021, 0.041])
    line = trace(views.kl_by_entropy(table, runs, step=10), "math: all tokens", "grpo")
    assert list(line.x) == [1, 2, 10]
    assert list(line.y) == pytest.approx([0.01 / 4 * 1.1, 0.01 / 4 * 2.1, 0.01 / 4 * 10.1])


def test_concentration_and_base_samples(table, runs):
    line = trace(views.kl_concentration(table, runs), "math: answer tokens", "sft")
    assert line.y[-1] == pytest.approx(0.8)
    line = trace(views.kl_on_base_samples(table, runs), "base_samples: answer tokens", "sft")
    assert line.y[-1] == pytest.approx(0.2 / 3)
    assert line.error_y.array[-1] == pytest.approx(1.96 * 0.2 / 9)


def test_the_authors_way_beside_ours(table, runs):
    figure = views.paper_compat(table, runs)
    ours = trace(figure, "KL, all tokens: math", "sft, ours")
    theirs = trace(figure, "KL, all tokens: math", "sft, the authors' way")
    assert list(theirs.y) == pytest.approx([1.2 * y for y in ours.y])
    assert (ours.line.dash, theirs.line.dash) == ("solid", "dash")
    assert ours.line.color == theirs.line.color
    panel = "relative norm, mean over layers and matrices"
    ours, theirs = (trace(figure, panel, f"grpo, {w}") for w in ("ours", "the authors' way"))
    assert list(theirs.y) == pytest.approx([1.1 * y for y in ours.y])


@pytest.mark.parametrize("metric", list(VIEWS))
def test_gaps_and_empty_states(metric, table, runs):
    view = VIEWS[metric]
    gone = table.copy()
    last = gone["metric"].str.startswith(metric) & gone["step"].isin([20, 82])
    gone.loc[last, ["value", "status", "reason"]] = [None, "failed", EVIL]
    figure = view(gone, runs)
    assert figure.data
    assert "<script" not in figure.to_json().replace("\\u003c", "<")
    gone.loc[gone["value"].notna(), ["value", "status", "reason"]] = [None, "failed", EVIL]
    assert "<script" not in view(gone, runs).to_json().replace("\\u003c", "<")
    empty = view(table[table["metric"] == "weights/relative_frobenius"], runs)
    assert not empty.data
    said = empty.layout.annotations[0].text.replace("<br>", " ")
    assert (
        f"mlflow-scalpel compare BASE CHECKPOINT... --metrics {metric.split('/')[0]}"
        in said.replace("weights_paper_compat ", "")
    )
    assert "--texts" in said
