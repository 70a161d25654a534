"""Logs a checkpoint as the LoggedModel of a step of a run: the one way in, for every trainer."""

from __future__ import annotations

import functools
import shutil
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelInput
from mlflow.exceptions import MlflowException

from mlflow_scalpel.checkpoints.artifact_store import Link, can_link, checked_link, place
from mlflow_scalpel.checkpoints.external.history import params_of
from mlflow_scalpel.checkpoints.external.layouts import model_in, run_directory
from mlflow_scalpel.checkpoints.files import (
    check_complete,
    checkpoint_files,
    fingerprint,
    left_out,
    name_in,
)
from mlflow_scalpel.checkpoints.logging.spool import CheckpointEntry
from mlflow_scalpel.checkpoints.logging.upload import ensure_base
from mlflow_scalpel.checkpoints.logging.uploader import Uploader
from mlflow_scalpel.checkpoints.logging.uploads import Upload, uploader_for
from mlflow_scalpel.checkpoints.reading.addresses import is_model_id, model_id_of
from mlflow_scalpel.checkpoints.reading.formats import hub_snapshot
from mlflow_scalpel.checkpoints.search import checked_name, checked_step
from mlflow_scalpel.errors import DiskFull, ScalpelError
from mlflow_scalpel.run_warnings import print_warning
from mlflow_scalpel.server_errors import is_final, is_passing
from mlflow_scalpel.tensors.files import WEIGHTS, is_adapter
from mlflow_scalpel.tensors.steps import step_of_path
from mlflow_scalpel.units import readable_bytes

ROOM_SECONDS = 60.0  # for which a checkpoint waits at most for room on a disk that is nearly full
_SMALL_FILE = 100_000  # bytes up to which a config or the like is copied and not linked
_RESERVE = 4  # times its size is what a checkpoint leaves free: for the next one, and its state
_LOOKUP_SECONDS = 10.0  # in which the server may answer that there is no such base


def log_checkpoint(
    path_or_hub_revision: str | Path,
    *,
    step: int,
    base: str | None = None,
    run_id: str | None = None,
    params: Mapping[str, Any] | None = None,
    name: str | None = None,
    register_as: str | None = None,
    link: Link | None = None,
    trainer_state: bool = False,
) -> Upload:
    """Log a checkpoint as the model of `step` of a run, in the background.

    Returns as soon as the files are safe from what the trainer does next (hard links, or copies
    where the file system has none), and waits for no server. The model is PENDING until its files
    are stored and checked, then READY, and only then registered; what is damaged is FAILED with the
    reason in its tag `scalpel.failure`. A checkpoint that the run has already, of this step and
    content, is not stored again. What the tracking server does not take now is sent when it is
    back. The process waits for all that at its end; `Upload.wait` waits for this checkpoint.

    Args:
        path_or_hub_revision: directory as Transformers or PEFT write it, with safetensors weights;
            or `org/name@revision` on the hub, of which a pointer is stored and no bytes.
        step: training step, shown in the model's name and params, and linked to the run's charts.
        base: the model that training began with: model ID, models:/ URI, directory or hub name
            (the last two are logged, once for each content, before the first checkpoint).
        run_id: run that the checkpoint belongs to; the active run unless given.
        params: more params of the model (algorithm, recipe, learning_rate, max_steps ...).
        name: name of the LoggedModel; `step-<step>` unless given.
        register_as: name of the registered model; None registers nothing. Its alias `last-<run ID>`
            follows the run's newest version.
        link: how files get into a local artifact store: `reflink`, `hard` or `copy`; the first
            that works unless given.
        trainer_state: store optimizer, scheduler and RNG state too.

    Raises:
        ScalpelError: no run is active, `step` or `link` cannot be right, what is to be logged is
            not there, or `base` is not a complete model or (if the server answers in time) is
            not there.
    """
    run_id, step = run_id or _active_run_id(), checked_step(step)
    directory = Path(path_or_hub_revision)
    entry = CheckpointEntry(
        job=uuid.uuid4().hex,
        name=_text(name or f"step-{step:06d}"),
        step=step,
        params={"step": str(step)} | {_text(k): _text(str(v)) for k, v in (params or {}).items()},
        base=base and _checked_base(base, mlflow.get_tracking_uri()),
        source=_text(str(path_or_hub_revision)),
        register_as=checked_name(register_as),
        link=checked_link(link),
    )
    if entry.base is not None and is_model_id(entry.base):
        entry.params["base"] = entry.base
    if not directory.is_dir():
        snapshot = hub_snapshot(str(path_or_hub_revision))
        entry.source = str(path_or_hub_revision).partition("@")[0]
        entry.revision = snapshot.name  # the hub cache names a snapshot by its commit
        entry.files = [name_in(snapshot, file) for file in checkpoint_files(snapshot)]
        entry.params["kind"] = "pointer"
        uploader = uploader_for(run_id, Path("outputs"))
        uploader.add(entry)
        return Upload(uploader, entry.job)

    named = step_of_path(directory) is not None
    uploader = uploader_for(
        run_id, run_directory(directory) if named else directory.resolve().parent
    )
    try:
        directory = model_in(directory)
        entry.source = _text(str(directory))
        entry.notes = _add_trainer_params(entry, directory)
        files = checkpoint_files(directory, trainer_state=trainer_state)
        entry.files = [_plain_name(name_in(directory, file)) for file in files]
        entry.fingerprint = fingerprint(files, directory)
        entry.notes += left_out(directory)
    except (ScalpelError, OSError) as error:  # of this checkpoint alone
        entry.files, entry.problem = [], _text(str(error))
    entry.params["kind"] = "adapter" if is_adapter(directory) else "model"
    if entry.problem is not None or not _add_with_files(uploader, entry, directory, files):
        uploader.add(entry)  # its files are read where they are
    return Upload(uploader, entry.job)


def log_base(
    source: str, *, run_id: str | None = None, register_as: str | None = None
) -> LoggedModel:
    """The LoggedModel of a base model, logged once for each content, linked as the run's input.

    A local directory is stored; a hub name (`org/name` or `org/name@revision`) is stored as a
    pointer (repository, commit, digests), since its bytes are kept there; a models:/ URI is only
    linked. Returns when the model is READY.
    """
    run_id = run_id or _active_run_id()
    client = MlflowClient()
    known_id = model_id_of(source)
    if known_id is not None:
        model = client.get_logged_model(known_id)
    else:
        model = ensure_base(client, source, run_id, register_as=register_as)
    client.log_inputs(run_id, models=[LoggedModelInput(model.model_id)])
    return model


def _add_with_files(
    uploader: Uploader, entry: CheckpointEntry, directory: Path, files: Sequence[Path]
) -> bool:
    """Put the entry into the spool with its files; False where there is no room for copies of them.

    Links take no bytes as long as the trainer keeps its own files, and then those that it would
    have freed: a disk that is nearly full gets a minute in which other checkpoints may be sent.
    """
    spool, needed = uploader.spool.directory, sum(file.stat().st_size for file in files)

    def free() -> int:
        return shutil.disk_usage(spool).free

    def full() -> bool:
        return bool(uploader.waiting_checkpoints()) and free() < _RESERVE * needed

    uploader.wait_for_room(full, ROOM_SECONDS)
    linked = can_link(max(files, key=lambda file: file.stat().st_size), spool)
    if full():
        waiting = len(uploader.waiting_checkpoints())
        print_warning(
            "disk",
            f"{spool}: {waiting} checkpoints wait there for the tracking server, and the disk "
            f"has {readable_bytes(free())} free; training fails once it is full. Free some, or "
            "bring the server back",
            uploader.spool.run_id,
        )
    if not linked and free() < 2 * needed:
        return False
    entry.snapshot = True
    try:
        uploader.add(entry, lambda folder: _snapshot(directory, files, folder))
    except DiskFull:
        entry.snapshot = False
    except OSError as error:  # a file that cannot be read, or is gone again: this one's own affair
        if is_passing(error):
            raise
        entry.snapshot, entry.files, entry.problem = False, [], _text(str(error))
        return False
    return entry.snapshot


def _snapshot(directory: Path, files: Sequence[Path], folder: Path) -> None:
    """Keep the files as they are now, whatever the trainer does with its own."""
    for file in files:
        # Weights are written anew and renamed, or so at least is Transformers' habit; a config is
        # written over, which a link would follow.
        written_over = file.suffix != WEIGHTS and file.stat().st_size <= _SMALL_FILE
        target = folder / name_in(directory, file)
        target.parent.mkdir(parents=True, exist_ok=True)
        place(file, target, "copy" if written_over else None)


@functools.lru_cache(maxsize=256)
def _checked_base(base: str, tracking_uri: str) -> str:
    """The base's ID where it is known now, else its directory, hub name and commit, or URI.

    Raises ScalpelError where it is not a complete model, or where the server has none.
    """
    known = base.removeprefix("models:/")
    if is_model_id(known):
        return known
    if base.startswith(("models:", "runs:")):
        return _looked_up(base) or base
    local = Path(base).is_dir()
    directory = model_in(Path(base)).resolve() if local else hub_snapshot(base)
    check_complete(directory)
    return str(directory) if local else f"{base.partition('@')[0]}@{directory.name}"


def _looked_up(base: str) -> str | None:
    """The ID of the model that a URI names; None where the server does not answer in time."""
    answers: list[str | ScalpelError | None] = []

    def ask() -> None:
        try:
            answers.append(model_id_of(base))
        except ScalpelError as error:
            away = error.__cause__ is not None and not is_final(error.__cause__)
            answers.append(None if away else error)
        except MlflowException:
            answers.append(None)

    asking = threading.Thread(target=ask, name="scalpel-base", daemon=True)
    asking.start()
    asking.join(_LOOKUP_SECONDS)
    answer = answers[0] if answers else None
    if isinstance(answer, ScalpelError):
        raise answer
    return answer


def _add_trainer_params(entry: CheckpointEntry, directory: Path) -> list[str]:
    """Add params from the trainer's state beside the checkpoint where none are given; notes."""
    try:
        known = params_of([directory], entry.step)
    except ScalpelError as error:  # of no importance for the checkpoint itself
        return [_text(str(error))]
    entry.params = {**{_text(k): _text(v) for k, v in known.items()}, **entry.params}
    return []


def _plain_name(name: str) -> str:
    """The file's name; raises ScalpelError where no store takes it."""
    if name != _text(name):
        raise ScalpelError(
            f"{_text(name)}: its name is not UTF-8, and no store takes it; rename or remove it"
        )
    return name


def _text(name: str) -> str:
    """A text that can be written: bytes of a file name that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def _active_run_id() -> str:
    run = mlflow.active_run()
    if run is None:
        raise ScalpelError(
            "no MLflow run is active, and a checkpoint belongs to one; pass run_id, "
            "or log within `with mlflow.start_run():`"
        )
    return run.info.run_id
