"""Checkpoints: a training step as an MLflow LoggedModel and a registered version."""

from mlflow_scalpel.checkpoints.find import Checkpoint, checkpoints_of_run
from mlflow_scalpel.checkpoints.log import log_base, log_checkpoint
from mlflow_scalpel.checkpoints.resolve import model_id_of, resolve

__all__ = [
    "Checkpoint",
    "checkpoints_of_run",
    "log_base",
    "log_checkpoint",
    "model_id_of",
    "resolve",
]
