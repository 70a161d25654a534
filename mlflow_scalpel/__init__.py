"""What post-training did to a language model, as MLflow runs, checkpoints and comparisons.

Importing this package imports neither torch nor any other heavy library: names are looked up where
they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_scalpel.checkpoints.listing import list_checkpoints
    from mlflow_scalpel.checkpoints.logging.log import log_base, log_checkpoint
    from mlflow_scalpel.checkpoints.reading.pull import pull, resolve
    from mlflow_scalpel.checkpoints.search import checkpoints_of_run
    from mlflow_scalpel.comparison.compare import compare, top_tokens
    from mlflow_scalpel.comparison.gather import gather
    from mlflow_scalpel.comparison.run_store import describe_runs, stored_ledger

__version__ = "0.1.0"

_HOMES = {
    "checkpoints_of_run": "checkpoints.search",
    "compare": "comparison.compare",
    "describe_runs": "comparison.run_store",
    "gather": "comparison.gather",
    "list_checkpoints": "checkpoints.listing",
    "log_base": "checkpoints.logging.log",
    "log_checkpoint": "checkpoints.logging.log",
    "pull": "checkpoints.reading.pull",
    "resolve": "checkpoints.reading.pull",
    "stored_ledger": "comparison.run_store",
    "top_tokens": "comparison.compare",
}

_EXTRAS = {"compare": "measure", "top_tokens": "measure"}

__all__ = [
    "__version__",
    "checkpoints_of_run",
    "compare",
    "describe_runs",
    "gather",
    "list_checkpoints",
    "log_base",
    "log_checkpoint",
    "pull",
    "resolve",
    "stored_ledger",
    "top_tokens",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _EXTRAS:
        from mlflow_scalpel.extras import require_extra

        require_extra(_EXTRAS[name], f"{__name__}.{name}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
