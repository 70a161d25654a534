"""Results without anything to compare: all right, all wrong, not graded, one problem, one model.

Each goes the whole way: gold answers, what is kept of a model, capabilities, ledger, every view,
the report and its figures.
"""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlflow_scalpel import views
from mlflow_scalpel.comparison import MeasuredModel, tidy
from mlflow_scalpel.comparison.capabilities import capability_table, ledger
from mlflow_scalpel.evaluation.gold import score_gold_answers
from mlflow_scalpel.evaluation.harness import SAMPLE_COLUMNS, Evaluation, Score
from mlflow_scalpel.evaluation.record import Plan, rows_of, score_table
from mlflow_scalpel.evaluation.results import Result
from mlflow_scalpel.metrics.capabilities.intervals import clustered_mean

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
    subjects = [BASE, *AFTER[:checkpoints]]
    base, samples, tables = None, [], []
    for subject in subjects:
        made = evaluated(before if base is None else after)
        scored = score_gold_answers(FakeEvaluator(made.samples), made.samples, base)
        base = scored if base is None else base
        lost = scored["gold_loglik"].notna()
        if subject is BASE:
            assert (lost == ((scored["sample"] == 0) & (scored["score"] == 1))).all()
        else:
            assert lost.any() == (case in ("all lost", "one problem lost"))
        path = tmp_path / f"{subject.model_id}.parquet"
        Result(Evaluation(made.scores, scored), 5).write(path)
        kept = Result.read(path).evaluation  # as a run that is taken up reads it
        assert [s.metric for s in kept.scores] == [s.metric for s in made.scores]
        samples.append(rows_of(kept, subject))
        tables.append(score_table(kept, subject, Plan(BASE, None), "float32"))
    rows = pd.concat(samples, ignore_index=True)
    if not len(rows):
        return
    capabilities = capability_table(rows, BASE, AFTER[:checkpoints])
    problems = ledger(rows, BASE, AFTER[:checkpoints])
    known = capabilities[capabilities["value"].notna()]
    assert (known["status"] == "ok").all()
    table = tidy(pd.concat([*tables, capabilities], ignore_index=True).to_dict("records"))
    runs = pd.DataFrame({"name": ["one"], "algorithm": ["grpo"]}, index=["run"])
    for name in views.__all__:
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
