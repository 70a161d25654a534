"""Saves that are cut off, processes that are killed, and what is logged again: nothing twice."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_scalpel.checkpoints.logging import mlflow_writes
from mlflow_scalpel.checkpoints.logging.log import log_base, log_checkpoint
from mlflow_scalpel.checkpoints.logging.spool import find_spools
from mlflow_scalpel.checkpoints.logging.uploads import close_uploaders, uploader_for
from mlflow_scalpel.cli import main
from mlflow_scalpel.training.journal import Journal
from tests.checkpoints.logging.in_mlflow import states

WEIGHTS = "model.safetensors"


pytestmark = pytest.mark.usefixtures("short_requests")


# Killed, and run again


def save_shards(make_model, directory: Path) -> None:
    shutil.copytree(make_model(9, shard="9KB"), directory)
    assert len(list(directory.glob("model-*-of-*.safetensors"))) > 2


@pytest.mark.parametrize(
    "lost", ["model.safetensors.index.json", "model-00002*", "model-0000[2-9]*"]
)
def test_a_save_that_was_cut_off_is_not_taken_for_whole(
    tracking, make_model, tmp_path, lost, capsys
):
    directory = tmp_path / "out" / "checkpoint-10"
    save_shards(make_model, directory)
    if not lost.endswith("json"):
        (directory / "model.safetensors.index.json").unlink()
    for file in directory.glob(lost):
        file.unlink()
    assert main(["log", "out", "--experiment", "tests"]) == 1
    assert "was cut off" in capsys.readouterr().err
    assert main(["watch", "out", "--interval", "0.1", "--until-idle", "0.5"]) == 1
    shutil.rmtree(directory)  # the trainer goes on, and writes it whole
    save_shards(make_model, directory)
    assert main(["log", "out", "--experiment", "tests"]) == 0
    (run,) = MlflowClient().search_runs([mlflow.get_experiment_by_name("tests").experiment_id])
    assert states(run.info.run_id) == {(10, "FAILED"): 1, (10, "READY"): 1}


def test_content_that_changed_is_logged_anew_and_no_other(tracking, make_model, tmp_path, capsys):
    directory = tmp_path / "out" / "checkpoint-10"
    shutil.copytree(make_model(1), directory)
    logged = ["log", "out", "--experiment", "tests", "--register-as", "mine"]
    assert main(logged) == 0
    assert main(logged) == 0
    for file in directory.iterdir():  # touched, and the same
        os.utime(file, (1, 1))
    assert main(logged) == 0
    (directory / "optimizer.pt").write_bytes(b"state")
    assert main(logged) == 0
    assert main([*logged, "--trainer-state"]) == 0
    assert len(MlflowClient().search_model_versions("name = 'mine'")) == 1
    shutil.rmtree(directory)
    shutil.copytree(make_model(2), directory)
    assert main(logged) == 0
    assert len(MlflowClient().search_model_versions("name = 'mine'")) == 2


def test_the_same_checkpoint_logged_again_is_the_same_model(tracking, checkpoint, make_model):
    """Nobody asks before: run, step and content say it, also of what is still on its way."""
    with mlflow.start_run() as run:
        first = log_checkpoint(checkpoint, step=7, register_as="mine")
        again = log_checkpoint(checkpoint, step=7, register_as="mine")
        Journal(again.uploader).metrics({"loss": 1.0}, 7, again)
        assert again.wait().model_id == first.wait().model_id
        close_uploaders()
        later = log_checkpoint(checkpoint, step=7, register_as="mine")
        other = log_checkpoint(make_model(2), step=7, register_as="mine")
        assert later.wait().model_id == first.model_id
        assert other.wait().model_id != first.model_id
    assert states(run.info.run_id) == {(7, "READY"): 2}
    assert len(MlflowClient().search_model_versions("name = 'mine'")) == 2
    assert [m.value for m in MlflowClient().get_logged_model(first.model_id).metrics] == [1.0]


KILLED = """
import os, signal, sys
from mlflow import MlflowClient
import mlflow_scalpel
from mlflow_scalpel.checkpoints.logging import mlflow_writes, spool
run_id, directory, base, where, count = sys.argv[1:]
left = int(count)

def deadly(function, after):
    def call(*arguments, **keywords):
        global left
        left -= 1
        if left == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **keywords)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

name, moment = where.split()
owner = spool.Spool if name in ("write", "add", "remove") else MlflowClient
setattr(owner, name, deadly(getattr(owner, name), moment == "after"))
for step in (1, 2):
    mlflow_scalpel.log_checkpoint(
        f"{directory}/checkpoint-{step}", step=step, run_id=run_id, base=base, register_as="killed"
    )
from mlflow_scalpel.checkpoints.logging.uploads import close_uploaders
close_uploaders()
print("survived")
"""

POINTS = [
    ("add", 1), ("add", 2), ("write", 1), ("write", 3), ("write", 5), ("remove", 1),
    ("create_logged_model", 1), ("create_logged_model", 2), ("create_logged_model", 3),
    ("log_outputs", 1), ("log_model_params", 1), ("log_inputs", 1), ("finalize_logged_model", 1),
    ("finalize_logged_model", 2), ("create_registered_model", 1), ("create_model_version", 1),
    ("set_registered_model_alias", 1), ("set_logged_model_tags", 1),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(("call", "count"), POINTS)
def test_a_process_may_be_killed_at_any_point(
    tracking, python, make_model, tmp_path, call, count, moment
):
    for step in (1, 2):
        shutil.copytree(make_model(step), tmp_path / "out" / f"checkpoint-{step}")
    base = make_model(5)
    client = MlflowClient()
    experiment = mlflow.get_experiment_by_name("tests").experiment_id
    run_id = client.create_run(experiment).info.run_id
    arguments = [run_id, str(tmp_path / "out"), str(base), f"{call} {moment}", str(count)]
    done = python.run(["-c", KILLED, *arguments])
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    again = ["log", "out", "--run-id", run_id, "--base", str(base), "--register-as", "killed"]
    assert main(again) == 0
    assert states(run_id) == {(0, "READY"): 1, (1, "READY"): 1, (2, "READY"): 1}
    versions = client.search_model_versions("name = 'killed'")
    assert Counter(v.tags["step"] for v in versions) == {"1": 1, "2": 1}
    assert main(["verify", run_id]) == 0
    assert not (tmp_path / "out" / ".scalpel").exists()


def test_a_base_that_a_killed_process_left_pending_is_finished(tracking, first_model, monkeypatch):
    with mlflow.start_run() as run:
        monkeypatch.setattr(mlflow_writes.MlflowClient, "finalize_logged_model", None)
        with pytest.raises(TypeError):
            log_base(str(first_model))
        monkeypatch.undo()
        monkeypatch.chdir(Path(tracking.removeprefix("sqlite:///")).parent)
        model = log_base(str(first_model))
    assert states(run.info.run_id) == {(0, "READY"): 1}
    assert str(model.status) == "READY"


def test_two_processes_do_not_send_from_one_spool(tracking, python, checkpoint):
    with mlflow.start_run() as run:
        uploader = uploader_for(run.info.run_id, checkpoint.parent)
        words = ["-m", "mlflow_scalpel.cli", "log", "outputs", "--run-id", run.info.run_id]
        done = python.run(words)
        assert done.returncode == 2
        assert "another process is sending from it" in done.stderr
        uploader.drain()


def test_what_waits_is_nobody_elses(faulty, track_at, checkpoint, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    track_at(faulty.uri)
    with mlflow.start_run():
        faulty.refuse()
        log_checkpoint(checkpoint, step=7)
        (spool,) = find_spools(checkpoint.parent)
        assert spool.stat().st_mode & 0o077 == 0
        written = [file for file in spool.iterdir() if file.is_file()]
        assert {file.stat().st_mode & 0o777 for file in written} == {0o600}
        faulty.clear()
        close_uploaders()
