"""A stage's run ends as what it was, whatever happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import psutil
import pytest
from mlflow import MlflowClient

from mlflow_scalpel.run_warnings import FAILURE_TAG

RECIPE = "stage: compare\nruns: [a, b]\n"
SCRIPT = """
import sys, time
from pathlib import Path
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.runs.lifecycle import open_stage

with open_stage("compare", Path("recipes")) as stage:
    print("open", stage.run_id, flush=True)
    {body}
"""


@pytest.fixture
def start(tracking, python, tmp_path):
    """Starts a stage with the given body, as `mlflow run` would, or on its own."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.yaml").write_text(RECIPE)

    def start(body: str, *arguments: str, waiting_run: bool = True):
        (tmp_path / "stage.py").write_text(SCRIPT.format(body=body))
        environment = dict(os.environ, MLFLOW_EXPERIMENT_NAME="tests")
        run_id = None
        if waiting_run:
            experiment = mlflow.get_experiment_by_name("tests").experiment_id
            run_id = MlflowClient().create_run(experiment).info.run_id
            environment["MLFLOW_RUN_ID"] = run_id
        return python.start(["stage.py", *arguments], env=environment), run_id

    return start


def ended(run_id: str):
    run = MlflowClient().get_run(run_id)
    return run.info.status, run.data.tags.get(FAILURE_TAG)


def test_finished(start):
    process, run_id = start("pass")
    assert process.wait() == 0
    assert ended(run_id) == ("FINISHED", None)
    assert MlflowClient().get_run(run_id).info.run_name == "tiny-compare"
    assert "recipe.yaml" in {file.path for file in MlflowClient().list_artifacts(run_id)}


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ("raise ScalpelError('no such thing; do that')", 1, "no such thing; do that"),
        ("raise ValueError('broken')", 1, "ValueError: broken"),
        ("sys.exit(3)", 3, "SystemExit: 3"),
    ],
)
def test_failed_with_the_reason(start, body, status, reason):
    process, run_id = start(body)
    _, errors = process.communicate()
    assert process.returncode == status
    assert ended(run_id) == ("FAILED", reason)
    assert ("Traceback" in errors) == ("ValueError" in reason)


@pytest.mark.parametrize(
    "error",
    [
        "OSError(28, 'No space left on device')",
        "ValueError('Error while serializing: I/O error: No space left on device (os error 28)')",
    ],
)
def test_a_full_disk_is_named_with_what_to_do(start, error):
    process, run_id = start(f"raise {error}")
    _, errors = process.communicate()
    assert process.returncode == 1
    status, reason = ended(run_id)
    assert status == "FAILED"
    assert reason.startswith(f"outputs/{run_id}: its disk is full (")
    assert f"-P resume={run_id}" in reason
    assert errors.strip() == reason


def test_an_output_directory_that_cannot_be_is_told(start, tmp_path):
    (tmp_path / "outputs").write_text("a file")
    process, run_id = start("pass")
    _, errors = process.communicate()
    assert process.returncode == 1
    assert ended(run_id) == ("FAILED", errors.strip())
    assert errors.strip().startswith(f"outputs/{run_id}: cannot be written")
    assert "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_killed_by_a_signal_even_by_two(start, number):
    process, run_id = start("time.sleep(60)")
    assert process.stdout.readline().startswith("open")
    process.send_signal(number)
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # `mlflow run` sends one after its own Ctrl-C
    assert process.wait(20) == 130
    assert ended(run_id)[0] == "KILLED"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "titel=x"], "Did you mean title"),
        (["--recipe", "tinny"], "Did you mean tiny"),
        (
            ["--learning_rate", "1e-5"],
            'learning_rate is not a parameter.*-P set="train.learning_rate',
        ),
        (["--max_steps=5"], r"max_steps is not a parameter.*train\.max_steps"),
    ],
)
def test_a_refused_recipe_fails_the_waiting_run_with_the_same_words(start, arguments, said):
    process, run_id = start("pass", *arguments)
    _, errors = process.communicate()
    assert process.returncode == 2
    status, reason = ended(run_id)
    assert status == "FAILED"
    assert reason in errors
    import re

    assert re.search(said, reason)


def test_a_refused_recipe_on_its_own_makes_no_run(start, tmp_path: Path):
    process, _ = start("pass", "--set", "titel=x", waiting_run=False)
    assert process.wait() == 2
    experiment = mlflow.get_experiment_by_name("tests").experiment_id
    assert MlflowClient().search_runs([experiment]) == []


def test_a_run_of_its_own_is_named_after_the_recipe(start):
    process, _ = start("pass", waiting_run=False)
    assert process.wait() == 0
    experiment = mlflow.get_experiment_by_name("tests").experiment_id
    (run,) = MlflowClient().search_runs([experiment])
    assert (run.info.run_name, run.info.status) == ("tiny-compare", "FINISHED")


@pytest.mark.slow
def test_an_interrupt_that_a_destructor_swallows_is_raised_again(start):
    body = """
    class Deaf:
        def __del__(self):
            time.sleep(3)  # what is raised here is printed, and goes on to nobody

    Deaf()
    print("lost", flush=True)
    time.sleep(60)
"""
    process, run_id = start(body.lstrip())
    assert process.stdout.readline().startswith("open")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "lost\n"
    assert process.wait(30) == 130
    assert ended(run_id) == ("KILLED", "interrupted (SIGINT or SIGTERM)")


def test_the_death_of_mlflow_run_ends_the_stage_too(start, tracking, tmp_path):
    process, run_id = start("time.sleep(60)")
    process.kill()  # not the one we look at: only to have the script written
    process.wait()
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            "child = subprocess.Popen([sys.executable, 'stage.py'])\n"
            "time.sleep(60)\n",
        ],
        env=dict(os.environ, MLFLOW_RUN_ID=run_id),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout.readline().startswith("open")
    parent.kill()
    deadline = time.monotonic() + 20
    while ended(run_id)[0] == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ended(run_id)[0] == "KILLED"


def test_killed_survives_that_mlflow_run_says_failed_afterwards(start, tracking):
    """What `mlflow run` does on Ctrl-C: wait for its child, then mark the run FAILED."""
    process, run_id = start("time.sleep(60)")
    process.kill()  # only to have the script written
    process.wait()
    MlflowClient().update_run(run_id, status="RUNNING")
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            "from mlflow import MlflowClient\n"
            "child = subprocess.Popen([sys.executable, 'stage.py'])\n"
            "child.wait()\n"
            "MlflowClient().set_terminated(sys.argv[1], 'FAILED')\n",
            run_id,
        ],
        env=dict(os.environ, MLFLOW_RUN_ID=run_id),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout.readline().startswith("open")
    psutil.Process(parent.pid).children()[0].send_signal(signal.SIGINT)
    parent.wait(30)
    deadline = time.monotonic() + 20
    while ended(run_id)[0] != "KILLED" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ended(run_id)[0] == "KILLED"
