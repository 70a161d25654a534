"""Where rows stand on the x axis of training."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_scalpel.views.slider import label_of
from mlflow_scalpel.views.tidy import read
from mlflow_scalpel.views.xaxis import CHOICES, x_of


def norms(clean, run_id):
    """One matrix of a run over its checkpoints."""
    rows = clean[(clean["run_id"] == run_id) & (clean["metric"] == "weights/update_rms")]
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
    clean = read(table)
    found = x_of(clean, norms(clean, "aaaa1111"), x, runs)
    assert list(found.where) == pytest.approx(expected)
    assert found.title == CHOICES[x]
    assert not found.lacking


def test_the_base_stands_at_zero_and_a_missing_cost_has_its_reason(table):
    table = table[~((table["metric"] == "cost/flops") & (table["run_id"] == "aaaa1111"))]
    table = table[~((table["metric"] == "cost/flops") & (table["step"] == 200))]
    clean = read(table)
    rows = clean[clean["metric"] == "eval/in/add/greedy"]
    found = x_of(clean, rows, "flops")
    assert (found.where[rows["step"] == 0] == 0).all()
    assert np.isnan(found.where[(rows["run_id"] == "aaaa1111") & (rows["step"] > 0)]).all()
    assert found.lacking["aaaa1111"] == "no cost/flops in the table"
    assert found.lacking["bbbb2222"] == "no cost/flops in the table at some of its steps"


def test_a_base_without_a_run_stands_at_zero(table, runs):
    rows = read(table[table["step"] == 0].assign(run_id=None))
    assert set(x_of(read(table), rows, "fraction", runs).where) == {0.0}


@pytest.mark.parametrize(
    ("at", "label"), [(1, "100 %"), (0.996, "99.6 %"), (1 / 3, "33 %"), (0.05, "5 %")]
)
def test_labels_of_the_slider_are_plain_numbers(at, label):
    assert label_of(at, "fraction") == label


def test_a_run_that_went_on_is_not_longer_than_one(table, runs):
    runs["steps"] = "150"
    clean = read(table)
    assert max(x_of(clean, norms(clean, "aaaa1111"), "fraction", runs).where) == 1


def test_another_x_is_refused(table):
    clean = read(table)
    with pytest.raises(ValueError, match="x is 'epoch': pass one of 'step', 'fraction'"):
        x_of(clean, clean, "epoch")
