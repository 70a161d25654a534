"""How the tables of several runs become one."""

from __future__ import annotations

from mlflow_scalpel.comparison.run_queries import joined
from mlflow_scalpel.comparison.table import tidy


def test_models_without_a_run_are_kept_apart():
    one = {"model_id": "a", "metric": "kl/all_tokens", "value": 0.1}
    table = tidy([one, {**one, "model_id": "b", "value": 0.2}])
    whole = joined([table, tidy([{**one, "value": 0.3}])])
    assert list(whole["model_id"]) == ["a", "b"]
    assert list(whole["value"]) == [0.1, 0.2]


def test_what_two_tables_measured_of_one_run_stays_once():
    one = {"model_id": "a", "run_id": "r", "step": 5, "metric": "kl/all_tokens", "value": 0.1}
    other = {**one, "model_id": "the same by another name", "value": 0.3}
    whole = joined([tidy([one]), tidy([other])])
    assert list(whole["value"]) == [0.1]


def test_scores_of_the_base_that_two_runs_hold_stay_once():
    one = {"model_id": "a", "step": 0, "metric": "eval/in/sums/sampled", "value": 0.1}
    other = {**one, "model_id": "the same by another name", "value": 0.3}
    assert list(joined([tidy([one]), tidy([other])])["value"]) == [0.1]
