"""Where a killed run is resumed: the newest complete checkpoint, and what MLflow has already."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient

from mlflow_scalpel.checkpoints.files import check_complete
from mlflow_scalpel.checkpoints.search import checkpoints_of_run
from mlflow_scalpel.comparison.run_store import stored_table
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.steps import step_of_name
from mlflow_scalpel.training.journal import SUMMARY

_STATE = "trainer_state.json"


@dataclass(frozen=True)
class ResumePoint:
    """The step that training goes on from, and what the run's earlier processes have stored."""

    step: int = 0
    """Step of the checkpoint that training goes on from; 0 begins anew."""
    logged_until: int = 0
    """Last step whose training metrics MLflow has."""
    stored: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    """Model ID and digest of each step whose checkpoint MLflow has."""
    table: pd.DataFrame | None = None
    """The tidy table so far."""
    summary: list[dict[str, Any]] = field(default_factory=list)
    """One row per measured checkpoint."""

    def is_measured(self, step: int) -> bool:
        """Whether the table has the checkpoint of a step."""
        return self.table is not None and step in set(self.table["step"])

    def describe(self) -> str:
        """The point in words, for the run's tag."""
        text = f"from step {self.step}"
        if self.logged_until > self.step:
            text += f"; steps {self.step + 1} to {self.logged_until} were trained twice, and "
            text += "logged once"
        return text


def newest_complete(output: Path, processes: int) -> Path | None:
    """The newest checkpoint directory under `output` that training can go on from."""
    found = [directory for directory in _checkpoints(output) if is_complete(directory, processes)]
    return found[-1] if found else None


def is_complete(directory: Path, processes: int) -> bool:
    """Whether weights, optimizer state, random states and trainer state are all there to the end.

    The main process writes them in this order, so the last one says that the others were begun;
    sizes and endings say that they were finished (which matters after a power cut). The random
    state of another process comes when it comes, without which that one would draw other numbers.
    """
    ranks = [""] if processes == 1 else [f"_{rank}" for rank in range(processes)]
    if not all((directory / f"rng_state{rank}.pth").is_file() for rank in ranks):
        return False
    try:
        check_complete(directory)
        json.loads((directory / _STATE).read_text(encoding="utf-8"))
    except (ScalpelError, OSError, ValueError):
        return False
    # DeepSpeed's are in a folder of their own.
    pickles = [*directory.rglob("*.pt"), *directory.rglob("*.pth")]
    return all(zipfile.is_zipfile(file) for file in pickles)


def remove_incomplete(output: Path, processes: int) -> list[Path]:
    """Remove checkpoints that were cut off while they were written; returns what was removed.

    What is stored may be a hard link to their files, which must not be written into.
    """
    incomplete = [
        directory for directory in _checkpoints(output) if not is_complete(directory, processes)
    ]
    for directory in incomplete:
        shutil.rmtree(directory)
    return incomplete


def keep_newest(output: Path, count: int, needed: Collection[Path] = ()) -> None:
    """Remove all checkpoints but the newest `count`, and those that are `needed` where they are."""
    kept = {path.resolve() for path in needed}
    for directory in _checkpoints(output)[:-count]:
        if directory.resolve() not in kept:
            shutil.rmtree(directory)


def find_resume_point(run_id: str, checkpoint: Path | None) -> ResumePoint:
    """The resume point of a run, once everything that its processes left has been sent.

    `checkpoint` is the one that training goes on from; None begins anew.
    """
    client = MlflowClient()
    losses = client.get_metric_history(run_id, "loss")
    try:
        _, checkpoints = checkpoints_of_run(run_id)
    except ScalpelError:  # none was logged
        checkpoints = []
    files = {file.path for file in client.list_artifacts(run_id, SUMMARY.rsplit("/", 1)[0])}
    logged = mlflow.artifacts.load_dict(f"runs:/{run_id}/{SUMMARY}") if SUMMARY in files else {}
    return ResumePoint(
        step=step_of(checkpoint) if checkpoint else 0,
        logged_until=max((point.step for point in losses), default=0),
        stored={c.step: (c.model_id, c.digest) for c in checkpoints if c.status == "READY"},
        table=stored_table(run_id),
        summary=[dict(zip(logged["columns"], row, strict=True)) for row in logged.get("data", [])],
    )


def step_of(directory: Path) -> int:
    """The step in the name of a checkpoint directory."""
    step = step_of_name(directory.name)
    assert step is not None  # these are the directories that are looked at
    return step


def _checkpoints(output: Path) -> list[Path]:
    """Checkpoint directories in order of step."""
    if not output.is_dir():
        return []
    # As Transformers names them: nothing else that lies there is ours to remove.
    found = [d for d in output.glob("checkpoint-*") if d.is_dir() and step_of_name(d.name)]
    return sorted(found, key=step_of)
