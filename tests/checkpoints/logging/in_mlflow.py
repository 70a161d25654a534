"""What MLflow has of the checkpoints of a run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mlflow import MlflowClient

from mlflow_scalpel.checkpoints.artifact_store import local_directory
from mlflow_scalpel.checkpoints.search import made_by, state_of, step_of


def models_of(run_id: str):
    experiment = MlflowClient().get_run(run_id).info.experiment_id
    return MlflowClient().search_logged_models([experiment], f"source_run_id = '{run_id}'")


def stored(model) -> Path:
    directory = local_directory(model.artifact_location)
    assert directory is not None
    return directory


def states(run_id: str) -> Counter[tuple[int, str]]:
    client = MlflowClient()
    return Counter((step_of(m), state_of(m)) for m in made_by(client, client.get_run(run_id)))
