"""What addresses of models mean, and how they are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelInput

from mlflow_scalpel.checkpoints.artifact_store import open_store
from mlflow_scalpel.checkpoints.reading.addresses import expand, model_id_of
from mlflow_scalpel.checkpoints.reading.pull import resolve
from mlflow_scalpel.errors import ScalpelError


@pytest.fixture
def make(tracking: str) -> Callable[..., LoggedModel]:
    """A LoggedModel as a checkpoint's is, with few or no files."""
    client = MlflowClient()
    experiment = mlflow.get_experiment_by_name("tests").experiment_id

    def make(
        step: int, run_id: str | None = None, status: str = "READY", files: Path | None = None
    ) -> LoggedModel:
        model = client.create_logged_model(
            experiment,
            name=f"step-{step}",
            source_run_id=run_id,
            params={"step": str(step)},
            model_type="checkpoint",
        )
        if files is not None:
            open_store(model.artifact_location).put({f.name: f for f in files.iterdir()})
        return client.finalize_logged_model(model.model_id, status) if status else model

    return make


@pytest.fixture
def run_id(tracking: str) -> str:
    with mlflow.start_run() as run:
        return str(run.info.run_id)


def register(name: str, model: LoggedModel) -> None:
    client = MlflowClient()
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    client.create_model_version(name, source=f"models:/{model.model_id}", model_id=model.model_id)


def test_the_latest_version_is_the_one_with_the_largest_number(make):
    first, second = make(1), make(2)
    for model in (first, second):
        register("tiny", model)
    MlflowClient().set_registered_model_alias("tiny", "best", "1")
    # The first is the one that was changed last.
    MlflowClient().update_model_version("tiny", "1", description="good")
    assert model_id_of("models:/tiny/latest") == second.model_id
    assert model_id_of("models:/tiny/1") == first.model_id
    assert model_id_of("models:/tiny@best") == first.model_id
    assert model_id_of(f"models:/{first.model_id}") == first.model_id
    assert model_id_of(first.model_id) == first.model_id
    assert model_id_of("org/name") is None


def test_a_version_of_something_else(make, tmp_path):
    MlflowClient().create_registered_model("other")
    MlflowClient().create_model_version("other", source=tmp_path.as_uri())
    with pytest.raises(ScalpelError, match=r"points to .*, which is not a LoggedModel"):
        model_id_of("models:/other/1")


def test_checkpoints_of_a_run(make, run_id):
    base = make(0)
    MlflowClient().log_inputs(run_id, models=[LoggedModelInput(base.model_id)])
    by_step = {step: make(step, run_id) for step in (200, 30, 100)}
    again = make(100, run_id)
    make(300, run_id, status="FAILED")
    make(400, run_id, status="")
    pruned = make(500, run_id)
    MlflowClient().set_logged_model_tags(pruned.model_id, {"scalpel.pruned": "2026-01-02T03:04"})
    make(50)  # of no run
    ids = {step: model.model_id for step, model in by_step.items()}

    assert model_id_of(f"runs:/{run_id}#last") == ids[200]
    assert model_id_of(f"runs:/{run_id}#step=30") == ids[30]
    assert model_id_of(f"runs:/{run_id}#step=100") == again.model_id
    assert model_id_of(f"runs:/{run_id}#step=0") == base.model_id
    steps = [ids[30], ids[100], again.model_id, ids[200]]
    assert expand(f"runs:/{run_id}") == [f"models:/{model_id}" for model_id in steps]
    for source in ("models:/x/1", "org/name", f"runs:/{run_id}#last"):
        assert expand(source) == [source]

    said = "can be read: 30, 100, 100, 200; FAILED: 300; PENDING: 400; PRUNED: 500"
    for step in (40, 300, 500):
        with pytest.raises(ScalpelError, match=said):
            model_id_of(f"runs:/{run_id}#step={step}")
    with pytest.raises(ScalpelError, match="was pruned at 2026-01-02T03:04"):
        resolve(pruned.model_id)


def test_more_checkpoints_than_a_page(make, run_id):
    for step in range(1, 102):
        make(step, run_id)
    assert len(expand(f"runs:/{run_id}")) == 101
    assert MlflowClient().get_logged_model(model_id_of(f"runs:/{run_id}#last")).params == {
        "step": "101"
    }


def test_addresses_that_name_nothing(run_id):
    for source, said in (
        ("runs:/RUN", r"names all checkpoints .* write runs:/RUN#last or runs:/RUN#step=N"),
        ("runs:/RUN/model", "no model of that name, and no such folder among its artifacts"),
        ("runs:/RUN#step=first", "is not the address of a checkpoint"),
        ("runs:/RUN#last", "has logged no checkpoint"),
        ("runs:/RUN#step=0", "has logged no checkpoint"),
        ("runs:/0123#last", "run 0123: there is no such run at sqlite"),
        ("m-" + "0" * 32, "is it there that the model was logged"),
    ):
        with pytest.raises(ScalpelError, match=said.replace("RUN", run_id)):
            resolve(source.replace("RUN", run_id))
    with pytest.raises(ScalpelError, match="has logged no checkpoint"):
        expand(f"runs:/{run_id}")


def test_a_local_store_is_read_in_place(make, first_model, run_id):
    model = make(7, run_id, files=first_model)
    directory = open_store(model.artifact_location).local
    assert resolve(f"runs:/{run_id}#last") == directory
    shutil.rmtree(directory)
    with pytest.raises(ScalpelError, match="this machine has no such directory"):
        resolve(model.model_id)


def test_two_requests_however_many_checkpoints(faulty, track_at):
    experiment = track_at(faulty.uri)
    client = MlflowClient()
    run = client.create_run(experiment).info.run_id
    for step in range(1, 6):
        model = client.create_logged_model(
            experiment, f"step-{step}", source_run_id=run, params={"step": str(step)}
        )
        client.finalize_logged_model(model.model_id, "READY")
    for ask, expected in ((expand, 5), (lambda source: [model_id_of(f"{source}#last")], 1)):
        faulty.forget()
        assert len(ask(f"runs:/{run}")) == expected
        assert len(faulty.exchanges()) == 2
