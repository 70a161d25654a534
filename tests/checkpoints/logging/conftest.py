"""A checkpoint as a trainer leaves it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def checkpoint(first_model, tmp_path) -> Path:
    directory = tmp_path / "outputs" / "checkpoint-7"
    shutil.copytree(first_model, directory)
    return directory
