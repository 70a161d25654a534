"""Warnings of an evaluation: on both runs, and only what the newest evaluation of a suite found."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pandas as pd

from mlflow_scalpel.comparison.measured_models import MeasuredModel
from mlflow_scalpel.evaluation.harness import SAMPLE_COLUMNS, Evaluation, Score
from mlflow_scalpel.evaluation.record import Plan, score_table
from mlflow_scalpel.evaluation.results import keep_warnings, warnings_of_results
from mlflow_scalpel.evaluation.suite import Suite
from mlflow_scalpel.run_warnings import warnings_of

BASE = MeasuredModel(Path("base"), "m-base", "sha256:b", 0)


def suite(name: str) -> Suite:
    task = {"task": "t", "label": "l", "kind": "greedy", "domain": "in", "metric": "exact_match"}
    return Suite.model_validate({"name": name, "tasks": [task]})


def scored(name: str, n: int, *, unreadable: int, too_long: int) -> Evaluation:
    score = Score(f"eval/in/{name}/greedy", 0.5, 0.1, n, 1, unreadable, too_long)
    return Evaluation([score], pd.DataFrame([], columns=list(SAMPLE_COLUMNS)))


def tags_of(run_id: str) -> list[str]:
    return warnings_of(mlflow.get_run(run_id).data.tags)


def test_an_evaluation_replaces_what_the_one_before_said(tracking):
    with mlflow.start_run() as trained:
        pass
    plan = Plan(BASE, None, run=trained)
    runs = []
    for name, said in (("one", "first"), ("other", "of others"), ("one", None)):
        with mlflow.start_run() as run:
            runs.append(run.info.run_id)
        keep_warnings({"unfinished": said}, suite(name), plan, run.info.run_id)
    assert tags_of(trained.info.run_id) == ["of others"]
    assert [tags_of(run_id) for run_id in runs] == [["first"], ["of others"], []]


def test_unreadable_golds_are_said_once():
    found = [(scored("x", 7, unreadable=3, too_long=0), BASE)]
    assert "3 of 10 problems" in str(warnings_of_results(found, {})["left_out"])
    assert warnings_of_results(found, {"eval/in/x/greedy": 3})["left_out"] is None
    more = warnings_of_results(found, {"eval/in/x/greedy": 2})["left_out"]
    assert "3 of 10 problems" in str(more)  # one more than was known before


def test_a_score_of_nothing_says_of_how_many_problems():
    none = scored("x", 0, unreadable=2, too_long=3)
    table = score_table(none, BASE, Plan(BASE, None), "float32")
    assert table["reason"].tolist() == ["none of the 5 problems was graded"]
    said = warnings_of_results([(none, BASE)], {"eval/in/x/greedy": 2})["left_out"]
    assert "3 of 5 problems have an answer that takes too long" in str(said)
    assert "cannot be read" not in str(said)
