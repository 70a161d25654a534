"""Checkpoints as LoggedModels, on a real tracking store."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM

from mlflow_scalpel.checkpoints.logging.log import log_base, log_checkpoint
from mlflow_scalpel.checkpoints.reading.addresses import model_id_of
from mlflow_scalpel.checkpoints.reading.pull import resolve
from mlflow_scalpel.checkpoints.search import checkpoints_of_run
from mlflow_scalpel.errors import ScalpelError


@pytest.fixture
def checkpoint(first_model: Path, tmp_path: Path) -> Path:
    """A directory as a trainer leaves it, optimizer state and pickles among its files."""
    directory = tmp_path / "checkpoint-7"
    shutil.copytree(first_model, directory)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (directory / name).write_bytes(b"pickled")
    (directory / "trainer_state.json").write_text("{}")
    return directory


def test_a_checkpoint_is_ready_registered_and_linked_at_its_step(tracking, checkpoint, first_model):
    with mlflow.start_run() as run:
        base = log_base(str(first_model), register_as="the-base")
        model = log_checkpoint(
            checkpoint,
            step=7,
            base=base.model_id,
            params={"learning_rate": 1e-4},
            name="tiny: step/7",
            register_as="tiny-sft",
        ).wait()
    assert str(model.status) == "READY"
    assert model.name == "tiny_ step_7"
    assert model.params["step"] == "7"
    assert model.params["base"] == base.model_id
    run = MlflowClient().get_run(run.info.run_id)
    assert [(o.model_id, o.step) for o in run.outputs.model_outputs] == [(model.model_id, 7)]
    assert [i.model_id for i in run.inputs.model_inputs] == [base.model_id]
    (version,) = MlflowClient().search_model_versions("name = 'tiny-sft'")
    assert version.source == f"models:/{model.model_id}"
    assert version.tags == {"run_id": run.info.run_id, "step": "7"}
    assert model.tags["mlflow.modelVersions"] == '[{"name": "tiny-sft", "version": 1}]'
    assert model_id_of("models:/tiny-sft/latest") == model.model_id
    assert model_id_of("models:/the-base/1") == base.model_id


def test_what_is_stored_is_the_model_and_nothing_pickled(tracking, checkpoint):
    with mlflow.start_run():
        model = log_checkpoint(checkpoint, step=7).wait()
    stored = resolve(f"models:/{model.model_id}")
    suffixes = {file.suffix for file in stored.iterdir()}
    assert not suffixes & {".pt", ".pth", ".bin"}
    assert "trainer_state.json" not in {file.name for file in stored.iterdir()}
    opened = AutoModelForCausalLM.from_pretrained(stored).state_dict()
    before = AutoModelForCausalLM.from_pretrained(checkpoint).state_dict()
    assert all(torch.equal(opened[name], before[name]) for name in before)


def test_a_base_is_logged_once_for_each_content(tracking, first_model, make_model, tmp_path):
    copied = tmp_path / "another-path"
    shutil.copytree(first_model, copied)
    with mlflow.start_run():
        first = log_base(str(first_model))
    with mlflow.start_run() as second_run:
        again = log_base(str(copied))
        other = log_base(str(make_model(2)))
    assert again.model_id == first.model_id != other.model_id
    inputs = MlflowClient().get_run(second_run.info.run_id).inputs.model_inputs
    assert {entry.model_id for entry in inputs} == {first.model_id, other.model_id}


def test_checkpoints_of_a_run_in_order_of_step(tracking, checkpoint, first_model):
    with mlflow.start_run() as run:
        base = log_base(str(first_model))
        for step in (20, 10):
            log_checkpoint(
                checkpoint, step=step, base=base.model_id, params={"learning_rate_sum": step / 2}
            ).wait()
    found_base, found = checkpoints_of_run(run.info.run_id)
    assert found_base is not None
    assert found_base.model_id == base.model_id
    assert [(c.step, c.learning_rate_sum, c.status) for c in found] == [
        (10, 5.0, "READY"),
        (20, 10.0, "READY"),
    ]


def test_a_base_that_only_the_checkpoints_name_is_found(tracking, checkpoint, first_model):
    with mlflow.start_run():
        base = log_base(str(first_model))
    with mlflow.start_run() as run:
        log_checkpoint(checkpoint, step=7, base=f"models:/{base.model_id}").wait()
    found, _ = checkpoints_of_run(run.info.run_id)
    assert found is not None
    assert found.model_id == base.model_id


def test_a_run_without_checkpoints_says_so(tracking):
    with mlflow.start_run() as run:
        pass
    with pytest.raises(ScalpelError, match="has logged no checkpoint"):
        checkpoints_of_run(run.info.run_id)


def test_what_is_no_checkpoint_at_all(tracking, tmp_path):
    with mlflow.start_run():
        with pytest.raises(ScalpelError, match="none: is neither a local directory nor a model"):
            log_checkpoint(tmp_path / "none", step=1)
        with pytest.raises(ScalpelError, match="models:/none/1"):
            log_checkpoint(tmp_path, step=1, base="models:/none/1")
    with pytest.raises(ScalpelError, match="no MLflow run is active"):
        log_checkpoint(tmp_path, step=1)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("models:/none/latest", "no version of none is registered.*mlflow run . -e base"),
        ("models:/none/3", "models:/none/3: .*write models:/NAME/VERSION"),
        ("models:/none@best", "models:/none@best: "),
        ("models:/none", "write models:/NAME/VERSION"),
    ],
)
def test_a_model_that_is_not_there(tracking, source, said):
    with pytest.raises(ScalpelError, match=said):
        resolve(source)
