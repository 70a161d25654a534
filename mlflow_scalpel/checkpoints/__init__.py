"""Checkpoints: a training step as an MLflow LoggedModel and a registered version.

The package is also what it holds: `mlflow_scalpel.checkpoints(run_id=...)` lists them, as a table.
"""

import sys
from types import ModuleType
from typing import Any

from mlflow_scalpel.checkpoints.listing import checkpoints
from mlflow_scalpel.checkpoints.log import log_base, log_checkpoint
from mlflow_scalpel.checkpoints.pull import pull
from mlflow_scalpel.checkpoints.resolve import expand, model_id_of, resolve
from mlflow_scalpel.checkpoints.search import Checkpoint, checkpoints_of_run

__all__ = [
    "Checkpoint",
    "checkpoints",
    "checkpoints_of_run",
    "expand",
    "log_base",
    "log_checkpoint",
    "model_id_of",
    "pull",
    "resolve",
]


class _Listing(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return checkpoints(*arguments, **options)


sys.modules[__name__].__class__ = _Listing
