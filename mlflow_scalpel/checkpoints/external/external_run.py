"""Checkpoints of runs that another tool made, logged to an MLflow run."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException

from mlflow_scalpel.checkpoints.artifact_store import Link
from mlflow_scalpel.checkpoints.atomic import locked
from mlflow_scalpel.checkpoints.external.converters import converted_by
from mlflow_scalpel.checkpoints.external.history import (
    STATE,
    Notes,
    log_notes,
    params_of,
    read_notes,
    read_state,
)
from mlflow_scalpel.checkpoints.external.layouts import (
    StepDirectory,
    find_steps,
    model_in,
    names_in,
    run_directory,
    unnamed_models,
)
from mlflow_scalpel.checkpoints.files import check_complete, checkpoint_files, fingerprint
from mlflow_scalpel.checkpoints.logging.log import log_checkpoint
from mlflow_scalpel.checkpoints.logging.uploader import UploadPending
from mlflow_scalpel.checkpoints.logging.uploads import (
    LOST_WARNING,
    Upload,
    lost_message,
    spool_directory,
    uploader_for,
)
from mlflow_scalpel.checkpoints.manifest import file_manifest
from mlflow_scalpel.checkpoints.reading.addresses import model_id_of
from mlflow_scalpel.checkpoints.search import FINGERPRINT_TAG, made_by, state_of, step_of
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.links import DESCRIPTION_TAG, run_note
from mlflow_scalpel.run_warnings import FAILURE_TAG, warn, withdraw
from mlflow_scalpel.server_errors import check_answered
from mlflow_scalpel.tensors.documents import CONFIG

DIRECTORY_TAG = "scalpel.directory"


@dataclass(frozen=True)
class ExternalRun:
    """The run of another tool that wrote the checkpoints, as far as it is known."""

    base: str | None = None
    run_id: str | None = None
    """MLflow run to log to; None takes the run of that directory, and makes it where none is."""
    register_as: str | None = None
    link: Link | None = None
    trainer_state: bool = False
    params: Mapping[str, str] = field(default_factory=dict)
    step: int | None = None
    """Step of a single directory, whatever its name."""
    trainer_run: str | None = None
    """MLflow run that the trainer itself logged, for its rates and settings."""


def log_directory(directory: Path, external: ExternalRun) -> tuple[str, dict[int, Upload]]:
    """Log every checkpoint of a finished run that its MLflow run does not have yet.

    What an earlier process left waiting is sent first. A checkpoint is the one that the run has
    where step and content are the same: one whose content has changed is logged again.

    Returns the run ID and an upload per step. Raises ScalpelError where no checkpoint is there that
    could be opened, or two are of one step.
    """
    found = find_steps(directory, external.step)
    if not found:
        raise ScalpelError(why_no_step(directory))
    models = {one.step: one for one in found if one.model is not None}
    if not models:
        more = f" ({len(found)} steps alike)" if len(found) > 1 else ""
        raise ScalpelError(f"{found[-1].why}{more}")
    with run_begun(directory, external) as run_id:
        finish_spool(directory, run_id)
        stored = stored_models(run_id)
        if external.base is not None and (other := other_base(external.base, stored)) is not None:
            warn("other_base", other, run_id)
        notes = notes_of(directory, found[-1], external, run_id)
        uploads = {
            one.step: log_step(one, run_id, external, notes)
            for one in found
            if one.model is not None and not is_stored(one.model, stored.get(one.step, []))
        }
    return run_id, uploads


def lost_steps(
    directory: Path,
    external: ExternalRun,
    run_id: str,
    taken: Collection[int],
    gone: Mapping[int, str] | None = None,
) -> dict[int, str]:
    """The reasons why steps that the trainer left, or that were taken, are not stored.

    They are a warning of the run too.

    `gone` are steps of which `watch` saw a model that was removed before it was taken.
    """
    client = MlflowClient()
    found = find_steps(directory, external.step) if directory.is_dir() else []
    looked_at = {*taken, *(one.step for one in found)}
    lost = {
        step_of(model): model.tags.get(FAILURE_TAG, "nobody logged why")
        for model in made_by(client, client.get_run(run_id))
        if state_of(model) == "FAILED" and step_of(model) in looked_at
    }
    for one in found:
        reason = one.why if one.model is None else why_incomplete(one.model)
        if reason is not None:
            lost[one.step] = reason
    lost |= gone or {}
    stored = stored_models(run_id)
    lost = {step: reason for step, reason in sorted(lost.items()) if step not in stored}
    if lost:
        warn(LOST_WARNING, lost_message(lost, len(stored.keys() - {0})), run_id)
    else:
        withdraw(LOST_WARNING, run_id)
    return lost


def models_without_step(directory: Path, external: ExternalRun, run_id: str) -> list[Path]:
    """Models in the directory whose names give no step, and that the run does not have."""
    if external.step is not None or not directory.is_dir():
        return []
    stored = [model for models in stored_models(run_id).values() for model in models]
    found = unnamed_models(directory, find_steps(directory))
    return [path for path in found if not is_stored(path, stored)]


def end_run(run_id: str) -> None:
    """End a run that was begun for its checkpoints: FAILED where it has none of them."""
    stored = stored_models(run_id).keys() - {0}  # the base is not one of its checkpoints
    MlflowClient().set_terminated(run_id, "FINISHED" if stored else "FAILED")


@contextlib.contextmanager
def run_begun(directory: Path, external: ExternalRun) -> Iterator[str]:
    """The run of a directory, which does not stay RUNNING where its checkpoints are refused."""
    run_id = run_of(directory, external)
    try:
        yield run_id
    except UploadPending:  # what waits is sent later
        raise
    except ScalpelError:
        if external.run_id is None:
            with contextlib.suppress(MlflowException):
                end_run(run_id)
        raise


def why_incomplete(directory: Path) -> str | None:
    """The reason why the checkpoint is not complete; None where all of its weights are there."""
    try:
        check_complete(directory)
    except ScalpelError as error:
        return str(error)
    except OSError as error:  # removed again
        return f"{directory}: {error}"
    return None


def why_no_step(directory: Path) -> str:
    """The reason why no step is found in the directory, and what to do."""
    if (directory / CONFIG).is_file() and any(directory.glob("*.safetensors")):
        return (
            f"{directory}: holds a model, and its name gives no step; give it with --step N, or "
            "the directory that holds those of the steps"
        )
    for path in (*sorted(one for one in directory.iterdir() if one.is_dir()), directory):
        if (conversion := converted_by(path)) is not None:
            return f"{path}: {conversion}; log the result with --step N"
    return (
        f"{directory}: holds no directory named after a step, as checkpoint-N, global_step_N, "
        f"step_N, epoch_N, iter_N or N; there is {names_in(directory)}; give the directory that "
        "holds them, or one of them, or --step N with a model's"
    )


def notes_of(directory: Path, newest: StepDirectory, external: ExternalRun, run_id: str) -> Notes:
    """Log the trainer's notes to the run; what cannot be read of them becomes a warning."""
    try:
        home = run_directory(directory)
        folder = newest.place if (newest.place / STATE).is_file() else newest.model
        notes = read_notes(home, folder, external.trainer_run, external.run_id)
        log_notes(run_id, notes)
    except ScalpelError as error:
        if external.trainer_run is not None:
            raise
        warn("history", f"the trainer's own history is not logged: {error}", run_id)
        return Notes()
    return notes


def run_of(directory: Path, external: ExternalRun) -> str:
    """The MLflow run of a directory of checkpoints; begun where there is none."""
    client = MlflowClient()
    if external.run_id is not None:
        try:
            return str(client.get_run(external.run_id).info.run_id)
        except MlflowException as error:
            check_answered(error)
            raise ScalpelError(
                f"run {external.run_id}: there is no such run at {mlflow.get_tracking_uri()} "
                f"({error}); copy the ID from the UI's run page, and check MLFLOW_TRACKING_URI"
            ) from error
    home = run_directory(directory)
    # Another process may begin a run for the same directory at the same moment.
    with locked(home if home.is_dir() else home.parent):
        return _run_of(client, home, external)


def _run_of(client: MlflowClient, home: Path, external: ExternalRun) -> str:
    experiment_id = str(mlflow.tracking.fluent._get_experiment_id())
    quoted = str(home).replace("'", "\\'")
    found = client.search_runs([experiment_id], f"tags.`{DIRECTORY_TAG}` = '{quoted}'")
    if found:
        return str(found[0].info.run_id)
    tags = {DIRECTORY_TAG: str(home), "scalpel.stage": "log"}
    if "algorithm" in external.params:
        tags["scalpel.algorithm"] = external.params["algorithm"]
    run = client.create_run(experiment_id, run_name=home.name, tags=tags)
    client.set_tag(run.info.run_id, DESCRIPTION_TAG, run_note(run.info.run_id))
    for key, value in external.params.items():
        client.log_param(run.info.run_id, key, value)
    return str(run.info.run_id)


def log_step(one: StepDirectory, run_id: str, external: ExternalRun, notes: Notes) -> Upload:
    assert one.model is not None  # asked before
    known: dict[str, str] = {}
    try:
        known = params_of([one.model, one.place], one.step, notes)
    except ScalpelError as error:
        warn("history", f"the trainer's own history is not logged: {error}", run_id)
    _check_step(one, run_id)
    return log_checkpoint(
        one.model,
        step=one.step,
        base=external.base,
        run_id=run_id,
        params={**known, **external.params},
        name=f"{run_directory(one.model).name}-step-{one.step:06d}",
        register_as=external.register_as,
        link=external.link,
        trainer_state=external.trainer_state,
    )


def _check_step(one: StepDirectory, run_id: str) -> None:
    """Warn where the trainer's state beside a model is of another step than its directory."""
    for folder in filter(None, (one.model, one.place)):
        with contextlib.suppress(ScalpelError):  # reported already
            step = read_state(folder).get("global_step")
            if isinstance(step, int) and step != one.step:
                warn(
                    f"step_{one.step}",
                    f"{folder}: is logged as step {one.step}, and its {STATE} is of step {step}; "
                    f"if that is the step of its weights, log it with --step {step}",
                    run_id,
                )
                return


def finish_spool(directory: Path, run_id: str) -> None:
    """Send what an earlier process took of this directory, and was killed before it was sent.

    Raises UploadPending where the server is away: then it is not known what is missing.
    """
    home = run_directory(directory)
    if spool_directory(run_id, home).is_dir():  # an empty one is not put into a trainer's output
        uploader_for(run_id, home).drain()


def stored_models(run_id: str) -> dict[int, list[LoggedModel]]:
    """The run's READY checkpoints by step; of a step that was written anew there are several."""
    client = MlflowClient()
    found: dict[int, list[LoggedModel]] = {}
    for model in made_by(client, client.get_run(run_id)):
        if state_of(model) == "READY":
            found.setdefault(step_of(model), []).append(model)
    return found


def other_base(base: str, stored: Mapping[int, Sequence[LoggedModel]]) -> str | None:
    """The warning where stored checkpoints have another base than the one that is given now.

    None where they have that one, or where it is not known, as of a hub name.
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
        f"models:/{next(iter(others.values()))}, which is not {base}, and will not be changed; "
        f"where {base} is right, log them into another run (--experiment or --run-id), or delete "
        "this one"
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
    except (ScalpelError, OSError):  # which logging it will report
        return False
