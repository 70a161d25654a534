"""The stage `evaluate` on a run: scores, ledger, and what `compare` finds of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml

import mlflow_scalpel
from mlflow_scalpel.checkpoints import checkpoints_of_run, log_base, log_checkpoint
from mlflow_scalpel.comparison.store import evaluations_of, get_run, stored_ledger, stored_samples
from mlflow_scalpel.evaluation import load_suite
from mlflow_scalpel.evaluation.harness import Evaluator

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2] / "projects" / "evaluate"


def suite_of(folder: Path, problems: list[dict[str, str]]) -> Path:
    data = folder / "problems.jsonl"
    data.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    task = {
        "task": "tiny_problem",
        "label": "say",
        "domain": "out",
        "kind": "greedy",
        "metric": "exact_match",
        "generation": {"max_new_tokens": 6},
        "data": {"file": str(data)},
    }
    sampled = {
        **task,
        "kind": "sampled",
        "samples": 4,
        "generation": {"do_sample": True, "temperature": 0.5, "max_new_tokens": 6},
    }
    file = folder / "say.yaml"
    file.write_text(
        yaml.safe_dump({"tasks_folder": str(PROJECT / "tasks"), "tasks": [task, sampled]})
    )
    return file


def test_an_evaluation_ends_in_a_ledger(tracking, make_model, tmp_path):
    """The base is right where the gold answers are what it says; another model loses them."""
    base, same, other = make_model(1), make_model(1), make_model(2)
    asked = [{"problem": f"{i}+{i}=?", "answer": "0"} for i in range(12)]
    said = Evaluator(base, load_suite(str(suite_of(tmp_path, asked)), PROJECT)).run().samples
    said = said[said["kind"] == "greedy"]
    golds = dict(zip(said["problem"], said["completion"].str.strip(), strict=True))
    asked = [{**one, "answer": golds[one["problem"]] or "0"} for one in asked[:9]] + asked[9:]
    suite = suite_of(tmp_path, asked)
    with mlflow.start_run() as run:
        logged = log_base(str(base))
        for step, directory in ((5, same), (10, other)):
            log_checkpoint(str(directory), step=step, base=logged.model_id).wait()
    done = subprocess.run(
        [
            sys.executable,
            PROJECT / "evaluate.py",
            "--set",
            f"suite={suite} run={run.info.run_id} checkpoints=all threads=1",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]

    ledger = stored_ledger(run.info.run_id)
    greedy = ledger[ledger["kind"] == "greedy"]
    unchanged, changed = greedy[greedy["step"] == 5], greedy[greedy["step"] == 10]
    assert set(unchanged["status"]) <= {"kept", "never"}
    assert (changed["status"] == "lost").sum() >= 8  # two random models hardly ever agree
    assert len(ledger) == 2 * 2 * 12
    lost = changed[changed["status"] == "lost"]
    assert (lost["gold_loglik"] < lost["gold_loglik_base"]).mean() > 0.5
    assert lost["gold_loglik_after_opening"].notna().all()
    assert unchanged["gold_loglik"].isna().all()
    sampled = ledger[ledger["kind"] == "sampled"]
    assert set(sampled["k"]) == {4}

    rows = stored_samples(evaluations_of(get_run(run.info.run_id))[0].info.run_id)
    draws = {
        step: list(part["completion"])
        for step, part in rows[rows["kind"] == "sampled"].groupby("step")
    }
    assert draws[0] != draws[5]  # the same weights, another seed

    _, (first, second) = checkpoints_of_run(run.info.run_id)
    table = mlflow_scalpel.compare(
        f"models:/{logged.model_id}", f"models:/{second.model_id}", metrics=["capabilities"]
    )
    counts = table[table["metric"] == "capabilities/lost"].set_index("texts")["value"]
    assert counts.index.str.startswith(("out/say/greedy", "out/say/sampled")).all()
    assert counts.iloc[0] == len(lost)
    gathered = mlflow_scalpel.gather([run.info.run_id])
    both = gathered[gathered["metric"] == "capabilities/lost"]
    assert set(both["model_id"]) == {first.model_id, second.model_id}
    pd.testing.assert_series_equal(
        both.loc[both["step"] == 10, "value"].reset_index(drop=True),
        counts.reset_index(drop=True),
        check_names=False,
    )
