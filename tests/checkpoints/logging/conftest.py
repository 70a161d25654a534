"""A checkpoint as a trainer leaves it, and how long its upload may take."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_scalpel.checkpoints.logging.uploader import UploadPending
from mlflow_scalpel.checkpoints.logging.uploads import close_uploaders


@pytest.fixture
def checkpoint(first_model, tmp_path) -> Path:
    directory = tmp_path / "outputs" / "checkpoint-7"
    shutil.copytree(first_model, directory)
    return directory


@pytest.fixture
def short_requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Requests that are given up soon, and at the end nothing that is still to be sent."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    monkeypatch.setenv("SCALPEL_PATIENCE", "60")
    yield
    monkeypatch.setenv("SCALPEL_PATIENCE", "0")
    with contextlib.suppress(UploadPending):  # what the test left behind on purpose
        close_uploaders(limit=0)


@pytest.fixture
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """No retry by MLflow's client, so that a server that fails is noticed soon."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
