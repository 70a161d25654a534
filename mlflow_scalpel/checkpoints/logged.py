"""Which checkpoints of a directory a run has already: the same step with the same content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel

from mlflow_scalpel.checkpoints.layout import checkpoint_files
from mlflow_scalpel.checkpoints.layouts import model_in, run_directory
from mlflow_scalpel.checkpoints.log import courier_for, fingerprint, spool_directory
from mlflow_scalpel.checkpoints.manifest import file_manifest
from mlflow_scalpel.checkpoints.once import FINGERPRINT_TAG
from mlflow_scalpel.checkpoints.resolve import model_id_of
from mlflow_scalpel.checkpoints.search import made_by, state_of, step_of
from mlflow_scalpel.errors import ScalpelError


def finish_spool(directory: Path, run_id: str) -> None:
    """Send what an earlier process took of this directory, and was killed before it was sent.

    Raises UploadPending where the server is away: what waits cannot be told from what is missing.
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


def other_base(base: str, stored: Mapping[int, Sequence[LoggedModel]]) -> str | None:
    """What to say where stored checkpoints have another base than the one that is given now.

    None where they have that one, or where it cannot be told, as of a hub name.
    """
    theirs = {
        step: known
        for step, models in stored.items()
        for known in (models[-1].params.get("base"),)
        if step > 0 and known is not None
    }
    given = _digest_of(base) if theirs else None
    if given is None:
        return None
    client = MlflowClient()
    digests = {
        known: client.get_logged_model(known).params.get("digest") for known in theirs.values()
    }
    others = {step: known for step, known in sorted(theirs.items()) if digests[known] != given}
    if not others:
        return None
    return (
        f"the run's checkpoints of step {', '.join(map(str, others))} are stored with the base "
        f"models:/{next(iter(others.values()))}, which is not {base}, and stay so; where {base} is "
        "right, log them into another run (--experiment or --run-id), or delete this one"
    )


def _digest_of(base: str) -> str | None:
    """Digest of a base's content, as its LoggedModel has it; None where it is not here."""
    known = model_id_of(base)
    if known is not None:
        return MlflowClient().get_logged_model(known).params.get("digest")
    if not Path(base).is_dir():
        return None
    directory = model_in(Path(base))
    return file_manifest(checkpoint_files(directory), directory).digest


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
