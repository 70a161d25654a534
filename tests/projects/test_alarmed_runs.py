"""Real GRPO runs in which things go wrong: named on the run, and stopped where it is asked."""

from __future__ import annotations

import re

import pytest
from mlflow import MlflowClient

from mlflow_scalpel.checkpoints.search import checkpoints_of_run
from mlflow_scalpel.run_warnings import FAILURE_TAG
from tests.projects.test_resume import SHORT, environment, home, newest_run, stage  # noqa: F401

pytestmark = pytest.mark.slow

BASE = f"model=models:/tiny-base/latest {SHORT} alarms.window=2"


def test_a_base_that_solves_nothing_is_named(home, training_python):  # noqa: F811
    # After 4 steps of pre-training it babbles to the limit, and every completion earns 0.
    run_id = stage(training_python, home, "grpo", BASE)
    run = MlflowClient().get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["scalpel.alarm.no_reward_variance"].startswith("step 2: in 100%")
    assert run.data.tags["scalpel.alarm.truncation"].startswith("step 2: ")
    assert "scalpel.alarm.not_finite" not in run.data.tags
    history = MlflowClient().get_metric_history(run_id, "alarms/no_reward_variance")
    assert [point.step for point in history] == list(range(2, 9))


def fail(python, home, settings: str, *before: str):  # noqa: F811
    """Run GRPO, which is to fail; its run."""
    words = [*before, "projects/grpo/grpo.py", "--set", f"{BASE} {settings}"]
    done = python.run(words, cwd=home, env=environment(home))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    run = newest_run()
    assert run.info.status == "FAILED"
    return run


def test_a_run_stops_where_the_recipe_says_so_with_what_was_saved_before(
    home,  # noqa: F811
    training_python,
):
    # Weight decay at this rate takes the weights to the far side of 0 and beyond within steps.
    settings = "train.learning_rate=3 train.weight_decay=1 alarms.stop=[kl_runaway]"
    run = fail(training_python, home, settings + " alarms.kl_runaway=0.5")
    said = re.search(
        r"kl_runaway at step (\d+): KL from .* of step (\d+)$", run.data.tags[FAILURE_TAG]
    )
    assert said is not None, run.data.tags[FAILURE_TAG]
    step, before = int(said[1]), int(said[2])
    assert before == step - 2
    assert run.data.metrics["alarms/kl_runaway"] > 1
    assert "scalpel.alarm.kl_runaway" in run.data.tags
    _, found = checkpoints_of_run(run.info.run_id)
    assert [(c.step, c.status) for c in found] == [(s, "READY") for s in range(2, step + 1, 2)]


def test_a_loss_of_nan_stops_the_run_before_it_is_saved(home, training_python):  # noqa: F811
    (home / "breaker.py").write_text(BREAKER)
    run = fail(training_python, home, "alarms.stop=[not_finite]", "breaker.py")
    assert "not_finite at step 4: loss is nan" in run.data.tags[FAILURE_TAG]
    assert "the last checkpoint before it is that of step 2" in run.data.tags[FAILURE_TAG]
    _, found = checkpoints_of_run(run.info.run_id)
    assert [(c.step, c.status) for c in found] == [(2, "READY")]


# The loss of step 4 is none, as after an overflow.
BREAKER = """
import runpy, sys
import trl

real = trl.GRPOTrainer.compute_loss

def compute_loss(self, *arguments, **options):
    loss = real(self, *arguments, **options)
    return loss * float("nan") if self.state.global_step == 3 else loss

trl.GRPOTrainer.compute_loss = compute_loss
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
