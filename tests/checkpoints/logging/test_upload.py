"""Uploads to servers that fail, are away or come back, and what a killed process left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_scalpel.checkpoints.artifact_store import open_store
from mlflow_scalpel.checkpoints.logging import log
from mlflow_scalpel.checkpoints.logging.log import log_base, log_checkpoint
from mlflow_scalpel.checkpoints.logging.spool import find_spools
from mlflow_scalpel.checkpoints.logging.uploader import UploadPending
from mlflow_scalpel.checkpoints.logging.uploads import close_uploaders
from mlflow_scalpel.cli import main
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.training.journal import Journal
from mlflow_scalpel.training.resume_point import keep_newest
from tests.checkpoints.logging.in_mlflow import models_of

WEIGHTS = "model.safetensors"


pytestmark = pytest.mark.usefixtures("short_requests", "one_attempt")


# Servers


def test_through_a_server_each_byte_goes_once(faulty, track_at, checkpoint):
    track_at(faulty.uri)
    with mlflow.start_run() as run:
        model = log_checkpoint(checkpoint, step=7, register_as=f"m-{run.info.run_id}").wait()
    sent = {e.path.rsplit("/", 1)[1]: e.sent for e in faulty.exchanges("PUT .*/artifacts/")}
    sizes = {file.name: file.stat().st_size for file in checkpoint.iterdir()}
    assert {name: sent[name] for name in sizes} == sizes
    assert len(faulty.exchanges(f"PUT .*/{WEIGHTS}")) == 1
    assert str(model.status) == "READY"


def test_on_every_backend_store(any_server, track_at, checkpoint, first_model):
    track_at(any_server.uri)
    with mlflow.start_run() as run:
        base = log_base(str(first_model))
        name = f"m-{run.info.run_id}"
        uploads = [
            log_checkpoint(checkpoint, step=step, base=base.model_id, register_as=name)
            for step in (10, 20, 30)
        ]
        models = [upload.wait() for upload in uploads]
        Journal(uploads[0].uploader).metrics({"kl": 0.5}, 30, uploads[2])
        uploads[0].uploader.drain()
    outputs = MlflowClient().get_run(run.info.run_id).outputs.model_outputs
    assert {(o.model_id, o.step) for o in outputs} == {
        (model.model_id, step) for model, step in zip(models, (10, 20, 30), strict=True)
    }
    assert len(MlflowClient().search_model_versions(f"name = '{name}'")) == 3
    for model in models:  # what the model's page in the UI shows, each once
        (shown,) = json.loads(model.tags["mlflow.modelVersions"])
        assert shown["name"] == name
    last = MlflowClient().get_model_version_by_alias(name, f"last-{run.info.run_id}")
    assert last.source == f"models:/{models[2].model_id}"
    newest = MlflowClient().get_logged_model(models[2].model_id)
    assert [(m.key, m.value, m.step) for m in newest.metrics] == [("kl", 0.5, 30)]


def test_a_server_that_answers_500_is_asked_again(faulty, track_at, checkpoint, capfd):
    track_at(faulty.uri)
    with mlflow.start_run() as run:
        faulty.answer(500, "POST .*/logged-models", times=1)
        faulty.answer(500, f"PUT .*/{WEIGHTS}", times=2)
        faulty.answer(500, "POST .*/model-versions/create", times=1)
        log_checkpoint(checkpoint, step=7, register_as=f"m-{run.info.run_id}").wait()
    (model,) = models_of(run.info.run_id)
    assert str(model.status) == "READY"
    assert len(MlflowClient().search_model_versions(f"name = 'm-{run.info.run_id}'")) == 1
    told = capfd.readouterr().err
    assert "does not take what is sent" in told
    assert "takes what is sent again" in told


def test_an_answer_that_is_lost_makes_no_second_model(faulty, track_at, checkpoint):
    track_at(faulty.uri)
    with mlflow.start_run() as run:
        faulty.cut("POST .*/logged-models$", after=0, times=1)
        faulty.cut("POST .*/model-versions/create", after=0, times=1)
        log_checkpoint(checkpoint, step=7, register_as=f"m-{run.info.run_id}").wait()
    (model,) = models_of(run.info.run_id)
    outputs = MlflowClient().get_run(run.info.run_id).outputs.model_outputs
    assert [(o.model_id, o.step) for o in outputs] == [(model.model_id, 7)]
    assert len(MlflowClient().search_model_versions(f"name = 'm-{run.info.run_id}'")) == 1


@pytest.mark.parametrize("fault", ["refuse", "hang"])
def test_training_goes_on_while_the_server_is_away(faulty, track_at, checkpoint, fault):
    track_at(faulty.uri)
    with mlflow.start_run() as run:
        getattr(faulty, fault)()
        began = time.monotonic()
        upload = log_checkpoint(checkpoint, step=7)
        journal = Journal(upload.uploader)
        journal.metrics({"loss": 1.5}, 7, upload)
        assert time.monotonic() - began < 1
        before = (checkpoint / WEIGHTS).read_bytes()
        shutil.rmtree(checkpoint)  # as save_total_limit does
        time.sleep(0.5)
        faulty.clear()
        model = upload.wait()
        upload.uploader.drain()
    # through the server, the file is under its artifacts' destination
    assert open_store(model.artifact_location).sizes()[WEIGHTS] == len(before)
    (point,) = MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert (point.value, point.step) == (1.5, 7)
    assert [m.key for m in MlflowClient().get_logged_model(model.model_id).metrics] == ["loss"]


def test_what_a_killed_process_left_is_uploaded_later(restartable_server, track_at, checkpoint):
    """The server goes away, the process is killed, the server is back: nothing is lost."""
    server = restartable_server
    track_at(server.uri)
    with mlflow.start_run() as run:
        pass
    script = f"""
import os, signal, time
from mlflow_scalpel.checkpoints.logging.log import log_checkpoint
from mlflow_scalpel.training.journal import Journal
print("ready", flush=True); input()
run_id = {run.info.run_id!r}
upload = log_checkpoint({str(checkpoint)!r}, step=7, run_id=run_id, register_as="late")
Journal(upload.uploader).metrics({{"loss": 2.0}}, 7, upload)
time.sleep(1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = dict(os.environ, MLFLOW_TRACKING_URI=server.uri)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=environment, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    server.stop()
    process.communicate("\n")
    assert process.returncode == -signal.SIGKILL
    (spool,) = find_spools(checkpoint.parent)
    shutil.rmtree(checkpoint)
    server.start()
    assert main(["upload", str(spool)]) == 0
    (model,) = models_of(run.info.run_id)
    assert str(model.status) == "READY"
    assert [(m.key, m.value) for m in model.metrics] == [("loss", 2.0)]
    assert not spool.exists()
    with pytest.raises(ScalpelError, match="holds no spool"):
        find_spools(checkpoint.parent)


def test_an_end_without_the_server_says_how_to_send_the_rest(
    faulty, track_at, checkpoint, monkeypatch, capsys
):
    track_at(faulty.uri)
    with mlflow.start_run():
        faulty.refuse()
        monkeypatch.setenv("SCALPEL_PATIENCE", "1")
        log_checkpoint(checkpoint, step=7)
        with pytest.raises(UploadPending, match="mlflow-scalpel upload") as caught:
            close_uploaders()
        command = str(caught.value).rsplit("mlflow-scalpel ", 1)[1].split()
        assert main(command) == 2  # still away
        assert "mlflow-scalpel upload" in capsys.readouterr().err
        faulty.clear()
        assert main(command) == 0


def test_what_the_server_will_never_take_is_set_aside_and_told(
    faulty, track_at, checkpoint, monkeypatch, capsys
):
    track_at(faulty.uri)
    with mlflow.start_run():
        faulty.refuse()
        upload = log_checkpoint(checkpoint, step=7)
        Journal(upload.uploader).metrics({"loss": 1.0}, 7)
        with pytest.raises(UploadPending):
            close_uploaders(limit=0)
        faulty.clear()
        faulty.answer(400, "POST .*/runs/log-batch", json=True)
        assert main(["upload", str(checkpoint.parent)]) == 1
        told = capsys.readouterr()
        assert "sent 1 of 2 entries" in told.out
        assert "MLflow refused what is kept in" in told.err
        assert len(list(checkpoint.parent.glob(".scalpel/*/refused/*.json"))) == 1
        # still refused: nothing of what waits was sent, and that is no success
        assert main(["upload", str(checkpoint.parent)]) == 1
        assert "sent 0 of 1 entries" in capsys.readouterr().out
        faulty.clear()  # the cause is fixed
        assert main(["upload", str(checkpoint.parent)]) == 0
        assert not (checkpoint.parent / ".scalpel").exists()


def test_an_outage_of_any_length_loses_no_checkpoint(faulty, track_at, checkpoint):
    """However many wait, each has its files, so that the trainer may remove its own."""
    track_at(faulty.uri)
    with mlflow.start_run() as run:
        faulty.answer(503)
        uploads = []
        for step in range(11, 25):
            directory = checkpoint.with_name(f"checkpoint-{step}")
            shutil.copytree(checkpoint, directory)
            uploads.append(log_checkpoint(directory, step=step))
            shutil.rmtree(directory)
        faulty.clear()
        assert [str(d.wait().status) for d in uploads] == ["READY"] * 14
    assert len(models_of(run.info.run_id)) == 14


def test_without_room_for_copies_the_trainers_own_files_are_kept(
    faulty, track_at, checkpoint, monkeypatch
):
    """On another file system nothing can be linked, and its disk is nearly full."""
    track_at(faulty.uri)
    monkeypatch.setattr(log, "can_link", lambda source, directory: False)
    monkeypatch.setattr(log, "ROOM_SECONDS", 0.1)
    monkeypatch.setattr(log.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    with mlflow.start_run():
        faulty.refuse()
        uploads = []
        for step in (1, 2, 3):
            directory = checkpoint.with_name(f"checkpoint-{step}")
            shutil.copytree(checkpoint, directory)
            uploads.append(log_checkpoint(directory, step=step))
        waiting = uploads[0].uploader.waiting_checkpoints()
        assert not any(entry.snapshot for entry in waiting)
        shutil.rmtree(checkpoint)
        keep_newest(checkpoint.parent, 1, [Path(entry.source) for entry in waiting])
        faulty.clear()
        assert [str(d.wait().status) for d in uploads] == ["READY"] * 3
        keep_newest(checkpoint.parent, 1)
        assert [d.name for d in checkpoint.parent.glob("checkpoint-*")] == ["checkpoint-3"]


def test_the_best_version_of_each_run_has_an_alias_of_its_own(tracking, checkpoint):
    losses = {"first": {1: 3.0, 2: 1.0, 3: 2.0}, "second": {1: 5.0, 2: 6.0, 3: 4.0}}
    runs = {}
    for name, values in losses.items():
        with mlflow.start_run(run_name=name) as run:
            runs[name] = run.info.run_id
            for step, loss in values.items():
                upload = log_checkpoint(checkpoint, step=step, register_as="both")
                journal = Journal(upload.uploader)
                journal.metrics({"loss": loss}, step, upload)
                journal.best("loss", "min")
            upload.uploader.drain()
    for name, best in (("first", 2), ("second", 3)):
        version = MlflowClient().get_model_version_by_alias("both", f"best-{runs[name]}")
        assert version.tags == {"run_id": runs[name], "step": str(best)}
        last = MlflowClient().get_model_version_by_alias("both", f"last-{runs[name]}")
        assert last.tags["step"] == "3"
