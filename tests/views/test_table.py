"""The table as views read it, and the places of its rows on the x axis."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest

from mlflow_scalpel.comparison.table import DTYPES, tidy
from mlflow_scalpel.views.common.axis import place
from mlflow_scalpel.views.common.slider import label_of
from mlflow_scalpel.views.common.table import Measurements, clean_table


def test_ninety_thousand_rows_are_cleaned_fast():
    """0.15 s; three times that here, since the machine may be busy, and the best of five."""
    numbers = np.arange(90_000)
    table = pd.DataFrame(
        {
            "model_id": [f"m-{i // 2240}" for i in numbers],
            "run_id": [f"r{i // 45_000}" for i in numbers],
            "step": numbers // 2240,
            "metric": [f"weights/m{i % 10}" for i in numbers],
            "layer": numbers // 10 % 32,
            "matrix": [f"m{i // 320 % 7}" for i in numbers],
            "value": numbers / 7.0,
            "status": "ok",
        }
    )
    table = table.reindex(columns=list(DTYPES)).astype(DTYPES)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        clean = clean_table(table)
        times.append(time.perf_counter() - start)
    assert len(clean) == len(table)
    assert min(times) < 0.45, times


def test_a_clean_table_is_not_cleaned_again(table):
    clean = clean_table(table)
    assert clean_table(clean) is clean
    some = clean[clean["step"] == 100]
    assert clean_table(some) is some


def test_pairs_with_different_seconds_are_not_doubles():
    one = {"run_id": "a", "step": 1, "metric": "pairs/update_cosine", "value": 0.1, "other": "m-1"}
    table = tidy([one, {**one, "other": "m-2"}, {**one, "value": 0.3}])
    assert list(clean_table(table)["value"]) == [0.1, 0.3] or list(clean_table(table)["value"]) == [
        0.3,
        0.1,
    ]
    assert set(clean_table(table)["other"]) == {"m-1", "m-2"}
    older = table.drop(columns="other")
    assert list(clean_table(older)["value"]) == [0.3]


def test_an_empty_text_is_an_absent_one():
    one = {"run_id": "a", "step": 1, "metric": "kl/all_tokens", "value": 0.1}
    assert len(clean_table(tidy([one, {**one, "texts": "", "value": 0.2}]))) == 1


def test_measurements_are_prepared_once(table, runs):
    data = Measurements.of(table, runs)
    assert Measurements.of(data) is data
    assert data.styles is data.styles
    kl = ["kl/all_tokens", "kl/answer_tokens"]
    pd.testing.assert_frame_equal(data.rows(*kl), data.table[data.table["metric"].isin(kl)])
    pd.testing.assert_frame_equal(data.rows(*kl), data.rows(start="kl/"))
    assert set(data.checkpoints("eval/in/add/greedy")["step"]) == {100, 200, 300}
    assert not len(data.rows("kl/js"))


def norms(data, run_id):
    """One matrix of a run over its checkpoints."""
    rows = data.rows("weights/update_rms")
    rows = rows[rows["run_id"] == run_id]
    return rows[(rows["layer"] == 0) & (rows["matrix"] == "q_proj")].sort_values("step")


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ("step", [100, 200, 300]),
        ("fraction", [1 / 3, 2 / 3, 1]),
        ("tokens", [5e5, 1e6, 1.5e6]),
        ("flops", [2e15, 4e15, 6e15]),
        ("hours", [300 / 3600, 600 / 3600, 900 / 3600]),
    ],
)
def test_places(table, runs, x, expected):
    data = Measurements.of(table, runs)
    found = place(data, norms(data, "aaaa1111"), x)
    assert list(found.rows["x"]) == pytest.approx(expected)
    assert (found.note, found.empty) == ("", "")


def test_the_base_stands_at_zero_and_a_missing_cost_has_its_reason(table):
    table = table[~((table["metric"] == "cost/flops") & (table["run_id"] == "aaaa1111"))]
    table = table[~((table["metric"] == "cost/flops") & (table["step"] == 200))]
    data = Measurements.of(table)
    found = place(data, data.rows("eval/in/add/greedy"), "flops")
    rows = found.rows
    assert (rows.loc[rows["step"] == 0, "x"] == 0).all()
    assert rows.loc[(rows["run_id"] == "aaaa1111") & (rows["step"] > 0), "x"].isna().all()
    assert "grpo aaaa11: no cost/flops in the table;" in found.note
    assert "sft bbbb22: no cost/flops in the table at some of its steps" in found.note


def test_a_base_without_a_run_stands_at_zero(table, runs):
    rows = clean_table(table[table["step"] == 0].assign(run_id=None))
    assert set(place(Measurements.of(table, runs), rows, "fraction").rows["x"]) == {0.0}


@pytest.mark.parametrize(
    ("at", "label"), [(1, "100 %"), (0.996, "99.6 %"), (1 / 3, "33 %"), (0.05, "5 %")]
)
def test_labels_of_the_slider_are_plain_numbers(at, label):
    assert label_of(at, "fraction") == label


def test_a_run_that_went_on_is_not_longer_than_one(table, runs):
    runs["steps"] = "150"
    data = Measurements.of(table, runs)
    assert max(place(data, norms(data, "aaaa1111"), "fraction").rows["x"]) == 1


def test_another_x_is_refused(table):
    data = Measurements.of(table)
    with pytest.raises(ValueError, match="x is 'epoch': pass one of 'step', 'fraction'"):
        place(data, data.table, "epoch")
