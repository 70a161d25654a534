"""Which stages an experiment that is resumed begins, goes on with, or leaves as they are."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_PROJECT_ENTRY_POINT

from mlflow_scalpel.run_warnings import FAILURE_TAG
from mlflow_scalpel.runs.experiment import Experiment

STAGE = "import os, sys; print(os.environ['MLFLOW_RUN_ID'], *sys.argv[1:])"


@pytest.fixture
def projects(tmp_path: Path) -> Path:
    """Stages that say only how they were started."""
    for stage in ("base", "sft", "evaluate"):
        folder = tmp_path / "projects" / stage
        folder.mkdir(parents=True)
        (folder / f"{stage}.py").write_text(STAGE)
    return tmp_path / "projects"


def begun(parent, stage: str, *, opened: bool, status: str) -> str:
    """A stage's run as an earlier process of the experiment has left it."""
    tags = {MLFLOW_PARENT_RUN_ID: parent.info.run_id, MLFLOW_PROJECT_ENTRY_POINT: stage}
    if opened:
        tags["scalpel.stage"] = stage
    client = MlflowClient()
    run = client.create_run(parent.info.experiment_id, run_name=f"the {stage}", tags=tags)
    if status != "RUNNING":
        client.set_terminated(run.info.run_id, status)
    return str(run.info.run_id)


@pytest.mark.parametrize(
    ("stage", "opened", "output", "status", "same_run", "words"),
    [
        ("sft", True, True, "FINISHED", True, None),
        ("sft", True, True, "KILLED", True, "--resume"),
        ("sft", True, True, "FAILED", True, "--resume"),
        ("sft", True, True, "RUNNING", True, "--resume"),  # by SIGKILL, or for want of power
        ("sft", True, False, "RUNNING", False, "--recipe"),  # no checkpoint, and none to come
        ("evaluate", True, False, "KILLED", True, "--resume"),
        ("base", True, True, "RUNNING", False, "--recipe"),
        ("base", False, False, "RUNNING", True, "--recipe"),  # killed before it had begun
        ("evaluate", False, False, "KILLED", True, "--recipe"),
    ],
)
def test_what_becomes_of_a_stage(
    tracking, projects, capfd, stage, opened, output, status, same_run, words
):
    with mlflow.start_run() as parent:
        before = begun(parent, stage, opened=opened, status=status)
        if output:
            Path(f"outputs/{before}").mkdir(parents=True)
        with Experiment(projects, resumed=True) as experiment:
            run_id = experiment.run(stage, "tiny", f"the {stage}", {"threads": 1})
    assert (run_id == before) == same_run
    said = capfd.readouterr().out
    if words is None:
        assert f"[the {stage}] has finished before: run {before}" in said
    elif words == "--resume":
        assert f"[the {stage}] {before} --resume {before}\n" in said
    else:
        assert f"[the {stage}] {run_id} --recipe tiny --set threads=1\n" in said
    left = MlflowClient().get_run(before)
    if not same_run:  # what nobody goes on with does not stay RUNNING
        assert left.info.status == "KILLED"
        assert run_id in left.data.tags[FAILURE_TAG]


def test_an_experiment_that_is_begun_takes_up_nothing(tracking, projects):
    with mlflow.start_run() as parent:
        before = begun(parent, "base", opened=True, status="FINISHED")
        with Experiment(projects) as experiment:
            assert experiment.run("base", "tiny", "the base", {}) != before
