"""Results without anything to compare: all right, all wrong, not graded, one problem, one model.

Each goes the whole way: gold answers, what is kept of a model, capabilities, ledger, every view,
the report and its figures.
"""

from __future__ import annotations

import inspect
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import yaml

from mlflow_scalpel import views
from mlflow_scalpel.comparison.capabilities import capability_table, ledger
from mlflow_scalpel.comparison.measured_models import MeasuredModel
from mlflow_scalpel.comparison.table import tidy
from mlflow_scalpel.evaluation.gold import score_gold_answers
from mlflow_scalpel.evaluation.harness import SAMPLE_COLUMNS, Evaluation, Score
from mlflow_scalpel.evaluation.record import SUITE, Plan, log_suite, rows_of, score_table
from mlflow_scalpel.evaluation.results import (
    Result,
    crowded_words,
    keep_warnings,
    unfinished_words,
    warnings_of_results,
)
from mlflow_scalpel.evaluation.suite import Suite, load_suite
from mlflow_scalpel.metrics.capabilities.intervals import clustered_mean
from mlflow_scalpel.run_warnings import warnings_of

BASE = MeasuredModel(Path("base"), "m-base", "sha256:b", 0)
AFTER = [
    MeasuredModel(Path("after"), f"m-{step}", f"sha256:{step}", step, "run", "grpo")
    for step in (20, 40)
]
NAN = math.nan
OF_FILES = ("write_figures", "write_report")
#: what -> scores of base and checkpoint: domain -> a list of samples for each problem
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all right": ({"in": [[1, 1]] * 3, "out": [[1]] * 3}, {"in": [[1, 1]] * 3, "out": [[1]] * 3}),
    "all wrong": ({"in": [[0, 0]] * 3, "out": [[0]] * 3}, {"in": [[0, 0]] * 3, "out": [[0]] * 3}),
    "all gained": ({"in": [[0, 0]] * 3, "out": [[0]] * 3}, {"in": [[1, 1]] * 3, "out": [[1]] * 3}),
    "all lost": ({"in": [[1, 1]] * 3, "out": [[1]] * 3}, {"in": [[0, 0]] * 3, "out": [[0]] * 3}),
    "one problem": ({"in": [[1]]}, {"in": [[1]]}),
    "one problem lost": ({"out": [[1, 0]]}, {"out": [[0, 0]]}),
    "nothing graded": ({"in": [[NAN]] * 3, "out": [[NAN]]}, {"in": [[NAN]] * 3, "out": [[NAN]]}),
    "one graded": ({"in": [[NAN], [1]]}, {"in": [[NAN], [1]]}),
    "no common problem": ({"in": [[1]] * 2}, {"out": [[1]] * 2}),
    "no problem": ({}, {}),
}


class FakeEvaluator:
    """What gold.py asks of an evaluator: it has generated for every problem."""

    def __init__(self, samples: pd.DataFrame) -> None:
        keys = samples[["label", "kind", "problem_id"]].itertuples(index=False, name=None)
        self.prompts = {key: f"{key[2]}=" for key in keys}

    def loglikelihoods(self, pairs: list[tuple[str, str]]) -> list[float]:
        return [-1.0] * len(pairs)


def evaluated(scores: dict[str, Any]) -> Evaluation:
    rows, found = [], []
    for domain, problems in scores.items():
        for number, samples in enumerate(problems):
            for sample, score in enumerate(samples):
                about = {"domain": domain, "label": f"{domain}-add", "kind": "sampled"}
                said = {"problem_id": f"p{number}", "problem": f"{number}?", "gold": "4"}
                answer = {"completion": r"\boxed{4}", "tokens": 3, "finished": True}
                rows.append({**about, **said, **answer, "sample": sample, "score": score})
        graded = [samples for samples in problems if samples[0] == samples[0]]
        value, stderr = clustered_mean(graded)
        ungraded = len(problems) - len(graded)
        found.append(
            Score(f"eval/{domain}/{domain}-add/sampled", value, stderr, len(graded), 1, ungraded)
        )
    return Evaluation(found, pd.DataFrame(rows, columns=SAMPLE_COLUMNS))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("checkpoints", [2, 0])
def test_the_whole_way(case: str, checkpoints: int, tmp_path: Path) -> None:
    before, after = CASES[case]
    models = [BASE, *AFTER[:checkpoints]]
    base, samples, tables = None, [], []
    for model in models:
        made = evaluated(before if base is None else after)
        scored = score_gold_answers(FakeEvaluator(made.samples), made.samples, base)
        base = scored if base is None else base
        lost = scored["gold_loglik"].notna()
        if model is BASE:
            assert (lost == ((scored["sample"] == 0) & (scored["score"] == 1))).all()
        else:
            assert lost.any() == (case in ("all lost", "one problem lost"))
        path = tmp_path / f"{model.model_id}.parquet"
        Result(Evaluation(made.scores, scored), 5).write(path)
        kept = Result.read(path).evaluation  # as a run that is resumed reads it
        assert [s.metric for s in kept.scores] == [s.metric for s in made.scores]
        samples.append(rows_of(kept, model))
        tables.append(score_table(kept, model, Plan(BASE, None), "float32"))
    rows = pd.concat(samples, ignore_index=True)
    if not len(rows):
        return
    capabilities = capability_table(rows, BASE, AFTER[:checkpoints])
    problems = ledger(rows, BASE, AFTER[:checkpoints])
    known = capabilities[capabilities["value"].notna()]
    assert (known["status"] == "ok").all()
    table = tidy(pd.concat([*tables, capabilities], ignore_index=True).to_dict("records"))
    runs = pd.DataFrame({"name": ["one"], "algorithm": ["grpo"]}, index=["run"])
    for name in dir(views):
        view = getattr(views, name)
        takes = list(inspect.signature(view).parameters)
        if takes[:2] == ["table", "runs"] and name not in OF_FILES:
            needed = {"layer": 0, "matrix": "q_proj"} if "layer" in takes else {}
            view(table, runs, **needed)
    views.problem_table(problems)
    words = " ".join(views.findings(table, runs)).casefold()
    assert "nan" not in words
    assert "inf " not in words
    views.write_report(table, runs, tmp_path / "r.html", title="t", ledgers={"run": problems})
    if case == "nothing graded":  # what is slow, once
        assert views.write_figures(table, runs, tmp_path / "figures")


SUITES = Path(__file__).parents[2] / "projects" / "evaluate" / "suites"


def test_settings_prompt_and_versions_stand_beside_the_scores(tracking, tmp_path):
    suite = load_suite("paper", SUITES, samples=4)
    plan = Plan(MeasuredModel(tmp_path, "m-1", "", 0), system_prompt="Think first.")
    with mlflow.start_run() as run:
        log_suite(suite, plan)
    kept = yaml.safe_load(mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/{SUITE}"))
    assert kept["system_prompt"] == "Think first."
    assert kept["versions"]["math-verify"] == version("math-verify")
    (gsm8k,) = (task for task in kept["tasks"] if task["label"] == "GSM8K")
    assert (gsm8k["shots"], gsm8k["samples"], gsm8k["grader"]) == (5, 4, "math_verify_or_number")
    assert gsm8k["generation"]["max_new_tokens"] == 4096
    assert kept["engine"] == "hf"


def rows(label: str, step: int, finished: list[bool | None]) -> pd.DataFrame:
    return pd.DataFrame({"label": label, "kind": "greedy", "step": step, "finished": finished})


def test_tasks_whose_completions_do_not_end_are_named_with_their_numbers():
    good = rows("sums", 0, [True, True, True, False])
    asked = rows("choice", 0, [None, None])  # compares likelihoods
    assert unfinished_words(pd.concat([good, asked])) is None
    assert unfinished_words(asked) is None
    none, half = rows("sums", 5, [False] * 4), rows("words", 5, [True, False])
    said = unfinished_words(pd.concat([good, none, half, asked]))
    assert said is not None
    assert "sums (greedy) at step 5: 0 of 4; words (greedy) at step 5: 1 of 2." in said
    assert "sums (greedy) at step 0" not in said
    assert "In some, none did" in said


def test_prompts_that_leave_too_little_of_the_context_are_counted():
    def score(crowded: int) -> Score:
        return Score("eval/in/sums/greedy", 1.0, 0.0, 9, 1, ungraded=1, crowded=crowded)

    assert crowded_words([(0, score(0))]) is None
    said = crowded_words([(0, score(3)), (5, score(3))])
    assert said is not None
    assert said.count("in/sums/greedy: 3 of 10 problems") == 1


START = MeasuredModel(Path("base"), "m-base", "sha256:b", 0)


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
    plan = Plan(START, None, run=trained)
    runs = []
    for name, said in (("one", "first"), ("other", "of others"), ("one", None)):
        with mlflow.start_run() as run:
            runs.append(run.info.run_id)
        keep_warnings({"unfinished": said}, suite(name), plan, run.info.run_id)
    assert tags_of(trained.info.run_id) == ["of others"]
    assert [tags_of(run_id) for run_id in runs] == [["first"], ["of others"], []]


def test_unreadable_golds_are_said_once():
    found = [(scored("x", 7, unreadable=3, too_long=0), START)]
    assert "3 of 10 problems" in str(warnings_of_results(found, {})["left_out"])
    assert warnings_of_results(found, {"eval/in/x/greedy": 3})["left_out"] is None
    more = warnings_of_results(found, {"eval/in/x/greedy": 2})["left_out"]
    assert "3 of 10 problems" in str(more)  # one more than was known before


def test_a_score_of_nothing_says_of_how_many_problems():
    none = scored("x", 0, unreadable=2, too_long=3)
    table = score_table(none, START, Plan(START, None), "float32")
    assert table["reason"].tolist() == ["none of the 5 problems was graded"]
    said = warnings_of_results([(none, START)], {"eval/in/x/greedy": 2})["left_out"]
    assert "3 of 5 problems have an answer that takes too long" in str(said)
    assert "cannot be read" not in str(said)
