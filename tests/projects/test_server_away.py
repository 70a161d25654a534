"""Training while the tracking server is down: it goes on, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_scalpel.checkpoints.search import checkpoints_of_run
from mlflow_scalpel.cli import main
from mlflow_scalpel.comparison.run_store import stored_table
from tests.interpreters import Child, Interpreter
from tests.projects.test_resume import SHORT, TINY

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def start(
    python: Interpreter, home: Path, stage: str, settings: str, uri: str, **more: str
) -> Child:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return python.start(
        [f"projects/{stage}/{stage}.py", "--set", settings],
        cwd=home,
        env=kept
        | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1"}
        | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "PYTHONUNBUFFERED": "1"}
        | more,
        stderr=subprocess.STDOUT,
    )


def read_until(process: Child, beginning: str) -> str:
    lines = ""
    for line in process.stdout:
        lines += line
        if line.startswith(beginning):
            return lines
    raise AssertionError(lines)


@pytest.fixture(scope="module")
def home(tmp_path_factory, training_python) -> Path:
    folder = tmp_path_factory.mktemp("away")
    shutil.copytree(ROOT / "projects", folder / "projects")
    process = start(training_python, folder, "base", TINY, f"sqlite:///{folder}/mlflow.db")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    (base,) = folder.glob("outputs/*/tiny")
    base.rename(folder / "base-model")
    return folder


def whole(run_id: str) -> None:
    run = MlflowClient().get_run(run_id)
    assert run.info.status == "FINISHED"
    _, found = checkpoints_of_run(run_id)
    assert [(c.step, c.status) for c in found] == [(step, "READY") for step in (2, 4, 6, 8)]
    losses = MlflowClient().get_metric_history(run_id, "loss")
    assert [point.step for point in losses] == list(range(1, 9))
    norms = MlflowClient().get_metric_history(run_id, "weights/relative_frobenius/mean")
    assert [point.step for point in norms] == [0, 2, 4, 6, 8]
    assert set(stored_table(run_id)["step"]) == {0, 2, 4, 6, 8}
    assert main(["verify", run_id]) == 0


def run_of(uri: str) -> str:
    mlflow.set_tracking_uri(uri)
    return MlflowClient().search_runs(["0"])[0].info.run_id


@pytest.fixture(autouse=True)
def no_uri():
    yield
    mlflow.set_tracking_uri(None)


def test_a_server_that_comes_back_gets_everything(home, training_python, restartable_server):
    server = restartable_server
    process = start(training_python, home, "sft", f"model={home}/base-model {SHORT}", server.uri)
    output = read_until(process, "step 2/8")
    server.stop()
    output += read_until(process, "step 6/8")
    server.start()
    rest, _ = process.communicate()
    assert process.returncode == 0, output + rest
    assert "training continues" in output
    assert "takes what is sent again" in output + rest
    whole(run_of(server.uri))


def test_a_server_that_stays_away_gets_it_later(home, training_python, restartable_server, capsys):
    server = restartable_server
    settings = f"model={home}/base-model {SHORT}"
    process = start(training_python, home, "sft", settings, server.uri, SCALPEL_PATIENCE="3")
    output = read_until(process, "step 4/8")
    server.stop()
    rest, _ = process.communicate()
    assert process.returncode == 75, output + rest
    command = rest.rsplit("mlflow-scalpel ", 1)[1].split()[:2]
    server.start()
    run_id = run_of(server.uri)
    assert MlflowClient().get_run(run_id).info.status == "RUNNING"
    assert main(command) == 0
    whole(run_id)
