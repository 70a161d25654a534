"""Code that a model brings along is never run: it could do whatever the user can."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow_scalpel.errors import ScalpelError


@contextmanager
def refused(model: str | Path) -> Iterator[None]:
    """Turn what Transformers raises without `trust_remote_code` into an error that says why.

    (Where that is not given, Transformers asks on the terminal, and runs the code after a `y`.)
    """
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ScalpelError(
            f"{model}: its configuration names Python files of its own (auto_map), without which "
            "Transformers cannot open it; no option runs them here. Its weights are measured "
            "without them (`mlflow-scalpel compare --metrics weights`); for all else take a model "
            "whose family Transformers has itself"
        ) from error
