"""What an evaluation run keeps beside its scores."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import mlflow
import yaml

from mlflow_scalpel.comparison.measured_models import MeasuredModel
from mlflow_scalpel.evaluation.record import SUITE, Plan, log_suite
from mlflow_scalpel.evaluation.suite import load_suite

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
