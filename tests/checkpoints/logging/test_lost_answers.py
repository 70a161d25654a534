"""Lost answers, servers that hang or refuse, names of files: nothing is lost, nothing twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import Counter
from pathlib import Path

import mlflow
import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from PIL import Image

from mlflow_scalpel.checkpoints.artifact_store import check_travels, open_store
from mlflow_scalpel.checkpoints.logging.log import log_checkpoint
from mlflow_scalpel.checkpoints.logging.spool import EndEntry, ImageEntry
from mlflow_scalpel.checkpoints.logging.uploads import close_uploaders
from mlflow_scalpel.checkpoints.search import made_by, step_of
from mlflow_scalpel.cli import main
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.server_errors import is_final
from mlflow_scalpel.training.journal import Journal
from tests.checkpoints.logging.in_mlflow import states
from tests.proxy import Exchange

WEIGHTS = "model.safetensors"
CHANGES = "^(POST (?!.*search)|PATCH|PUT|DELETE)"


pytestmark = pytest.mark.usefixtures("short_requests")


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
        upload = log_checkpoint(
            checkpoint, step=step, base=str(base), run_id=run_id, register_as=name
        )
        journal = Journal(upload.uploader)
        journal.metrics({"loss": loss}, step, upload)
        journal.best("loss", "min")
    picture = Image.new("RGB", (4, 4))
    upload.uploader.add(
        ImageEntry(key="weights/change", step=7, timestamp=1_700_000_000_000),
        lambda folder: picture.save(folder / "image.png"),
    )
    journal.tags({"told": "yes"})
    upload.uploader.add(EndEntry(status="FINISHED"))
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
    close_uploaders()
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
        close_uploaders()
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
        for upload in [log_checkpoint(checkpoint, step=step) for step in (2, 3)]:
            upload.wait()
        assert states(run.info.run_id) == {(1, "PENDING"): 1, (2, "READY"): 1, (3, "READY"): 1}
        faulty.clear()
    close_uploaders()
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
