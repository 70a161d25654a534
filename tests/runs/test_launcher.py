"""What is said when one of several processes fails or dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_scalpel.runs.lifecycle import launch_options
from mlflow_scalpel.runs.resume import FAILURE_TAG

SCRIPT = """
import os, sys, time
rank = os.environ["RANK"]
{body}
time.sleep(60)
"""


@pytest.fixture
def launch(tracking, tmp_path):
    """Starts two processes of a script; what they ended with, what was said, and their run."""

    def launch(body: str):
        (tmp_path / "script.py").write_text(SCRIPT.format(body=body))
        experiment = mlflow.get_experiment_by_name("tests").experiment_id
        run_id = MlflowClient().create_run(experiment).info.run_id
        words = launch_options(2, None, False, tmp_path)
        done = subprocess.run(
            [sys.executable, "-m", "mlflow_scalpel.runs.launcher", *words, "script.py"],
            env={**os.environ, "MLFLOW_RUN_ID": run_id},
            capture_output=True,
            text=True,
            timeout=60,
        )
        run = MlflowClient().get_run(run_id)
        said = [line for line in done.stderr.splitlines() if line]
        return done.returncode, said, (run.info.status, run.data.tags.get(FAILURE_TAG))

    return launch


def test_a_process_that_fails_has_said_it_itself(launch):
    body = 'if rank == "0": print("no such thing; do that", file=sys.stderr); sys.exit(1)'
    code, said, run = launch(body)
    assert (code, said) == (1, ["no such thing; do that"])
    assert run == ("RUNNING", None)  # which is for the stage to end


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_dies_without_a_word_is_named(launch, rank):
    code, said, run = launch(f'if rank == "{rank}": os.kill(os.getpid(), {int(signal.SIGKILL)})')
    assert code == 1
    (line,) = said
    assert line.startswith(f"process {rank} was ended by SIGKILL, ")
    assert "-P resume=" in line
    assert run == ("FAILED", line)
