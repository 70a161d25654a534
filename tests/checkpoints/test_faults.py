"""Lost answers, servers that hang, processes that are killed: nothing is lost, nothing twice."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import mlflow
import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from PIL import Image

from mlflow_scalpel.checkpoints import log_base, log_checkpoint, once
from mlflow_scalpel.checkpoints.artifact_store import check_travels, open_store
from mlflow_scalpel.checkpoints.log import close_couriers, courier_for
from mlflow_scalpel.checkpoints.search import made_by, state_of, step_of
from mlflow_scalpel.checkpoints.spool import EndEntry, find_spools
from mlflow_scalpel.checkpoints.uploader import UploadPending
from mlflow_scalpel.cli import main
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.server_errors import is_final
from mlflow_scalpel.training.journal import Journal
from tests.proxy import Exchange

WEIGHTS = "model.safetensors"
CHANGES = "^(POST (?!.*search)|PATCH|PUT|DELETE)"


@pytest.fixture(autouse=True)
def end_of_couriers(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    monkeypatch.setenv("SCALPEL_PATIENCE", "60")
    yield
    monkeypatch.setenv("SCALPEL_PATIENCE", "0")
    with contextlib.suppress(UploadPending):
        close_couriers(limit=0)


@pytest.fixture
def checkpoint(first_model, tmp_path) -> Path:
    directory = tmp_path / "outputs" / "checkpoint-7"
    shutil.copytree(first_model, directory)
    return directory


def states(run_id: str) -> Counter[tuple[int, str]]:
    client = MlflowClient()
    return Counter((step_of(m), state_of(m)) for m in made_by(client, client.get_run(run_id)))


def check_once(run_id: str, name: str) -> None:
    """Whatever was lost on the way, everything is there, and once, as the server itself says."""
    client = MlflowClient()
    run = client.get_run(run_id)
    assert states(run_id) == {(0, "READY"): 1, (7, "READY"): 1, (8, "READY"): 1}
    models = {step_of(m): m for m in made_by(client, run)}
    assert {model.params["base"] for step, model in models.items() if step} == {models[0].model_id}
    assert [i.model_id for i in run.inputs.model_inputs] == [models[0].model_id]
    outputs = Counter((o.model_id, o.step) for o in run.outputs.model_outputs)
    assert outputs == {(models[7].model_id, 7): 1, (models[8].model_id, 8): 1}
    versions = client.search_model_versions(f"name = '{name}'")
    assert Counter(v.tags["step"] for v in versions) == {"7": 1, "8": 1}
    for step in (7, 8):
        (shown,) = json.loads(models[step].tags["mlflow.modelVersions"])
        assert str(shown["version"]) == client.get_model_version(name, shown["version"]).version
    for alias in ("last", "best"):
        version = client.get_model_version_by_alias(name, f"{alias}-{run_id}")
        assert version.source == f"models:/{models[8].model_id}"
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "loss")] == [
        (7, 2.0),
        (8, 1.0),
    ]
    assert [(m.key, m.value) for m in models[8].metrics] == [("loss", 1.0)]
    assert len(client.list_artifacts(run_id, "images")) == 2  # one picture, and its small copy
    assert run.data.tags["told"] == "yes"
    assert run.info.status == "FINISHED"
    for model in models.values():
        sizes = open_store(model.artifact_location).sizes()
        assert sizes[WEIGHTS] > 0


def log_all(checkpoint: Path, base: Path) -> tuple[str, str]:
    """Everything that a training tells MLflow; run and registered model."""
    client = MlflowClient()
    experiment = mlflow.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
    run_id = client.create_run(experiment.experiment_id).info.run_id
    name = f"m-{run_id}"
    for step, loss in ((7, 2.0), (8, 1.0)):
        delivery = log_checkpoint(
            checkpoint, step=step, base=str(base), run_id=run_id, register_as=name
        )
        journal = Journal(delivery.uploader)
        journal.metrics({"loss": loss}, step, delivery)
        journal.best("loss", "min")
    journal.image(Image.new("RGB", (4, 4)), "weights/change", 7)
    journal.tags({"told": "yes"})
    delivery.uploader.add(EndEntry(status="FINISHED"))
    return run_id, name


@pytest.mark.parametrize("retries", [0, None])
@pytest.mark.parametrize(
    "kinds",
    [
        ["POST .*/logged-models$", "PATCH .*/logged-models/m-[^/]*$", "POST .*/runs/log-inputs"],
        ["POST .*/logged-models/.*/params", "POST .*/runs/outputs", "PUT .*/artifacts/.*"],
        ["POST .*/model-versions/create", "POST .*/registered-models/create", "POST .*alias"],
        ["POST .*/runs/set-tag", "POST .*/runs/log-batch", "POST .*/runs/update"],
    ],
)
def test_an_answer_of_each_kind_may_be_lost(
    faulty, track_at, checkpoint, make_model, monkeypatch, kinds, retries
):
    """With MLflow's own retries, which send a request again by themselves, and without."""
    track_at(faulty.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", mlflow.get_experiment(
        mlflow.tracking.fluent._get_experiment_id()).name)  # fmt: skip
    if retries is not None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(retries))
    for kind in kinds:
        faulty.lose(kind)
    run_id, name = log_all(checkpoint, make_model(3))
    close_couriers()
    for kind in kinds:
        lost = [e for e in faulty.exchanges(kind) if e.status is None]
        assert len(lost) == 1, f"{kind} was lost {len(lost)} times"
    check_once(run_id, name)


@pytest.mark.slow
@pytest.mark.parametrize("retries", [0, None])
def test_an_answer_may_be_lost_in_every_position(
    faulty, track_at, checkpoint, make_model, monkeypatch, retries
):
    """One of six requests of each kind in each of six sessions, until each one was lost."""
    if retries is not None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(retries))
    base, sent, lost = make_model(4), Counter(), Counter()
    for session in (None, *range(6)):
        experiment = track_at(faulty.uri)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", mlflow.get_experiment(experiment).name)
        MlflowClient().search_experiments()
        faulty.clear()
        faulty.forget()
        if session is not None:
            for number, (kind, times) in enumerate(sent.items()):
                faulty.lose(kind, times=-(-times // 6), skip=(session + number) % 6, every=6)
        run_id, name = log_all(checkpoint, base)
        close_couriers()
        check_once(run_id, name)
        for exchange in faulty.exchanges(f"{CHANGES}.*(?<!runs/create)$"):
            if session is None:
                sent[kind_of(exchange)] += 1
            elif exchange.status is None:
                lost[kind_of(exchange)] += 1
    assert sum(lost.values()) > 25
    # An alias that is set late, after its neighbour's answer was lost, is not set twice.
    assert {kind: n for kind, n in sent.items() if lost[kind] < max(1, n - 1)} == {}


def kind_of(exchange: Exchange) -> str:
    """A pattern of the requests that are like this one in another run."""
    ids = r"(?<=artifacts/)\d+|[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{13}"
    path = re.escape(re.sub(ids, "ID", exchange.path)).replace("ID", "[^/]+")
    return f"^{exchange.method} {path}$"


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no run"}), True),
        (RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}), True),
        (RestException({"message": "no Route matched with those values"}), False),
        (RestException({"error_code": "TEMPORARILY_UNAVAILABLE"}), False),
        (MlflowException("API request to endpoint /x failed with error code 404 != 200", 5), False),
        (MlflowException("Invalid metric name", 1000), True),
        (requests.ConnectionError("cut"), False),
        (ScalpelError("damaged"), True),
    ],
)
def test_only_mlflows_own_refusal_is_final(error, final):
    assert is_final(error) is final


@pytest.mark.parametrize("status", [404, 400, 403, 502])
def test_the_page_of_a_proxy_is_not_final(faulty, track_at, checkpoint, monkeypatch, status):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    track_at(faulty.uri)
    with mlflow.start_run() as run:
        faulty.answer(status, times=4)
        assert str(log_checkpoint(checkpoint, step=7).wait().status) == "READY"
    assert states(run.info.run_id) == {(7, "READY"): 1}


def test_what_the_server_fails_at_holds_up_no_other(faulty, track_at, checkpoint, monkeypatch):
    """One file is answered 500 for ever: the checkpoints behind it go first, and are READY."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    track_at(faulty.uri)
    (checkpoint / "odd.json").write_text("{}")
    faulty.answer(500, "PUT .*/odd.json")
    with mlflow.start_run() as run:
        log_checkpoint(checkpoint, step=1)
        (checkpoint / "odd.json").unlink()
        for delivery in [log_checkpoint(checkpoint, step=step) for step in (2, 3)]:
            delivery.wait()
        assert states(run.info.run_id) == {(1, "PENDING"): 1, (2, "READY"): 1, (3, "READY"): 1}
        faulty.clear()
    close_couriers()
    assert states(run.info.run_id)[1, "READY"] == 1


HUNG = """
import sys, time
import mlflow_scalpel
run_id, directory, base = sys.argv[1:]
for step in range(1, 11):
    began = time.monotonic()
    mlflow_scalpel.log_checkpoint(directory, step=step, run_id=run_id, base=base)
    print(f"took {time.monotonic() - began:.1f}", flush=True)
print("done", flush=True)
"""


def test_a_server_that_never_answers_holds_up_nobody(
    faulty, track_at, python, checkpoint, first_model
):
    """With MLflow's own timeout of 120 seconds and seven retries."""
    track_at(faulty.uri)
    with mlflow.start_run() as run:
        pass
    faulty.hang()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_HTTP")}
    environment["SCALPEL_PATIENCE"] = "4"
    began = time.monotonic()
    words = ["-c", HUNG, run.info.run_id, checkpoint, first_model]
    done = python.run(words, env=environment, timeout=100)
    assert time.monotonic() - began < 60
    took = [float(line.split()[1]) for line in done.stdout.splitlines() if line[:4] == "took"]
    assert len(took) == 10
    assert max(took) < 5
    assert done.returncode != 0  # ten checkpoints were not sent, and that is no success
    assert "mlflow-scalpel upload" in done.stderr
    assert "no answer for" in done.stderr
    assert "Traceback" not in done.stderr
    faulty.clear()
    assert main(["upload", str(checkpoint.parent)]) == 0
    found = states(run.info.run_id)
    assert dict(list(found)) == dict.fromkeys(range(11), "READY")
    assert set(found.values()) == {1}


# Names of files


@pytest.mark.parametrize(
    "name", ["read me.md", "ä€😀.md", "100%.md", "..a.md", "what?.md", "a+b&c=d.md"]
)
def test_names_that_http_writes_otherwise_come_back_as_they_were(
    mlflow_server, track_at, checkpoint, tmp_path, name
):
    track_at(mlflow_server.uri)
    (checkpoint / name).write_text(name)
    with mlflow.start_run():
        model = log_checkpoint(checkpoint, step=7).wait()
    store = open_store(model.artifact_location)
    assert name in store.sizes()
    store.fetch(name, tmp_path / "back")
    assert (tmp_path / "back").read_text() == name
    assert main(["verify", model.model_id]) == 0
    assert main(["pull", model.model_id, "--dst", str(tmp_path / "pulled")]) == 0
    assert (tmp_path / "pulled" / name).read_text() == name


@pytest.mark.parametrize("name", ["notes #1.md", "50%25.md", "a\nb.md", "a\\b.md"])
def test_names_that_the_server_refuses_fail_that_checkpoint_alone(
    mlflow_server, track_at, checkpoint, name
):
    track_at(mlflow_server.uri)
    good = checkpoint.with_name("checkpoint-8")
    shutil.copytree(checkpoint, good)
    (checkpoint / name).write_text("x")
    with mlflow.start_run() as run:
        bad = log_checkpoint(checkpoint, step=7)
        assert str(log_checkpoint(good, step=8).wait().status) == "READY"
        with pytest.raises(ScalpelError, match=r"name.*rename"):
            bad.wait()
    assert states(run.info.run_id) == {(7, "FAILED"): 1, (8, "READY"): 1}
    assert (
        "is FAILED"
        in MlflowClient().get_run(run.info.run_id).data.tags["scalpel.warning.checkpoint_7"]
    )


def test_a_name_is_as_the_server_decodes_it():
    for name in ("a%2Fb", "%2e%2e", "x%00y", "tab\there"):
        with pytest.raises(ScalpelError):
            check_travels(name)


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
        close_couriers()
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
from mlflow_scalpel.checkpoints import once, spool
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
from mlflow_scalpel.checkpoints.log import close_couriers
close_couriers()
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
        monkeypatch.setattr(once.MlflowClient, "finalize_logged_model", None)
        with pytest.raises(TypeError):
            log_base(str(first_model))
        monkeypatch.undo()
        monkeypatch.chdir(Path(tracking.removeprefix("sqlite:///")).parent)
        model = log_base(str(first_model))
    assert states(run.info.run_id) == {(0, "READY"): 1}
    assert str(model.status) == "READY"


def test_two_processes_do_not_send_from_one_spool(tracking, python, checkpoint):
    with mlflow.start_run() as run:
        uploader = courier_for(run.info.run_id, checkpoint.parent)
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
        close_couriers()
