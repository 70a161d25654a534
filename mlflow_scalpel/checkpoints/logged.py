"""Which checkpoints of a directory a run has already: the same step with the same content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel

from mlflow_scalpel.checkpoints.find import made_by, state_of, step_of
from mlflow_scalpel.checkpoints.layout import checkpoint_files
from mlflow_scalpel.checkpoints.layouts import run_directory
from mlflow_scalpel.checkpoints.log import courier_for, fingerprint, spool_directory
from mlflow_scalpel.checkpoints.manifest import file_manifest
from mlflow_scalpel.checkpoints.once import FINGERPRINT_TAG
from mlflow_scalpel.errors import ScalpelError


def finish_spool(directory: Path, run_id: str) -> None:
    """Send what an earlier process took of this directory, and was killed before it was sent.

    Raises Undelivered where the server is away: what waits cannot be told from what is missing.
    """
    home = run_directory(directory)
    if spool_directory(run_id, home).is_dir():  # an empty one is not put into a trainer's output
        courier_for(run_id, home).drain()


def stored_models(run_id: str) -> dict[int, list[LoggedModel]]:
    """The run's READY checkpoints by step; of a step that was written anew there are several."""
    client = MlflowClient()
    found: dict[int, list[LoggedModel]] = {}
    for model in made_by(client, client.get_run(run_id)):
        if state_of(model) == "READY":
            found.setdefault(step_of(model), []).append(model)
    return found


def is_stored(directory: Path, models: Sequence[LoggedModel]) -> bool:
    """Whether one of the models is the checkpoint in `directory`, down to its content.

    Files that were not touched since they were logged are not read again.
    """
    if not models:
        return False
    try:
        for trainer_state in (False, True):
            files = checkpoint_files(directory, trainer_state=trainer_state)
            seen = fingerprint(files, directory)
            if any(model.tags.get(FINGERPRINT_TAG) == seen for model in models):
                return True
        digests = {model.params.get("digest") for model in models}
        return any(
            file_manifest(checkpoint_files(directory, trainer_state=state), directory).digest
            in digests
            for state in (False, True)
        )
    except (ScalpelError, OSError):  # which logging it will say
        return False
