"""What post-training did to a language model, as MLflow runs, checkpoints and comparisons.

Importing this package imports neither torch nor any other heavy library: names are looked up where
they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_scalpel import checkpoints
    from mlflow_scalpel.checkpoints import (
        checkpoints_of_run,
        log_base,
        log_checkpoint,
        pull,
        resolve,
    )
    from mlflow_scalpel.comparison.compare import compare, top_tokens
    from mlflow_scalpel.comparison.gather import gather
    from mlflow_scalpel.comparison.run_store import describe_runs, stored_ledger

__version__ = "0.1.0"

_HOMES = {
    "checkpoints_of_run": "mlflow_scalpel.checkpoints",
    "log_base": "mlflow_scalpel.checkpoints",
    "log_checkpoint": "mlflow_scalpel.checkpoints",
    "pull": "mlflow_scalpel.checkpoints",
    "resolve": "mlflow_scalpel.checkpoints",
    "compare": "mlflow_scalpel.comparison.compare",
    "top_tokens": "mlflow_scalpel.comparison.compare",
    "describe_runs": "mlflow_scalpel.comparison.run_store",
    "gather": "mlflow_scalpel.comparison.run_store",
    "stored_ledger": "mlflow_scalpel.comparison.run_store",
}

__all__ = [
    "__version__",
    "checkpoints",
    "checkpoints_of_run",
    "compare",
    "describe_runs",
    "gather",
    "log_base",
    "log_checkpoint",
    "pull",
    "resolve",
    "stored_ledger",
    "top_tokens",
]


def __getattr__(name: str) -> Any:
    if name == "checkpoints":  # the package, which is callable
        return importlib.import_module("mlflow_scalpel.checkpoints")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
