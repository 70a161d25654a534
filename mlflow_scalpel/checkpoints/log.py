"""Logs a checkpoint as the LoggedModel of a step of a run: the one way in, for every trainer."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelInput

from mlflow_scalpel.checkpoints import deliver
from mlflow_scalpel.checkpoints.courier import Courier, Undelivered
from mlflow_scalpel.checkpoints.history import params_of
from mlflow_scalpel.checkpoints.layout import check_whole, checkpoint_files, left_out, name_in
from mlflow_scalpel.checkpoints.layouts import model_in, run_directory
from mlflow_scalpel.checkpoints.manifest import make_manifest
from mlflow_scalpel.checkpoints.resolve import hub_snapshot, model_id_of
from mlflow_scalpel.checkpoints.spool import CheckpointEntry, Spool
from mlflow_scalpel.checkpoints.stores import Link, place
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.files import WEIGHTS, is_adapter
from mlflow_scalpel.tensors.steps import step_of_path

QUEUED_CHECKPOINTS = 8  # checkpoints that wait to be stored; the next one waits for room
_SMALL_FILE = 100_000  # bytes up to which a config or the like is copied and not linked
_FREE_SHARE = 0.5  # of the free disk is what their files may take at most

_couriers: dict[tuple[str, str], Courier] = {}


@dataclass(frozen=True)
class Delivery:
    """A checkpoint that is being stored in the background."""

    courier: Courier
    job: str

    @property
    def model_id(self) -> str | None:
        """ID of the LoggedModel; None until the tracking server has created it."""
        return self.courier.outcome(self.job).model_id

    @property
    def digest(self) -> str | None:
        """Digest of the checkpoint's content; None until it is stored."""
        return self.courier.outcome(self.job).digest

    def wait(self) -> LoggedModel:
        """The LoggedModel, once it is READY.

        Raises ScalpelError with the reason where it is FAILED, and Undelivered where the server is
        away for longer than SCALPEL_PATIENCE seconds.
        """
        outcome = self.courier.wait_for(self.job)
        if outcome.status == "FAILED" or outcome.model_id is None:
            raise ScalpelError(outcome.reason or "the checkpoint could not be stored")
        return MlflowClient(self.courier.spool.tracking_uri).get_logged_model(outcome.model_id)


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
) -> Delivery:
    """Log a checkpoint as the model of `step` of a run, in the background.

    Returns as soon as the files are safe from what the trainer does next (hard links, or copies
    where the file system has none). The model is PENDING until its files are stored and checked,
    then READY, and only then registered; what is damaged is FAILED with the reason in its tag
    `scalpel.failure`. What the tracking server does not take now is sent when it is back. The
    process waits for all that at its end; `Delivery.wait` waits for this checkpoint.

    Args:
        path_or_hub_revision: directory as Transformers or PEFT write it, with safetensors weights;
            or `org/name@revision` on the hub, of which a pointer is stored and no bytes.
        step: training step, shown in the model's name and params, and linked to the run's charts.
        base: the model that training began with: model ID, models:/ URI, directory or hub name
            (the last two are logged, once for each content).
        run_id: run that the checkpoint belongs to; the active run unless given.
        params: more params of the model (algorithm, recipe, learning_rate, max_steps ...).
        name: name of the LoggedModel; `step-<step>` unless given.
        register_as: name of the registered model; None registers nothing. Its alias `last-<run ID>`
            follows the run's newest version.
        link: how files get into a local artifact store: `reflink`, `hard` or `copy`; the first
            that works unless given.
        trainer_state: store optimizer, scheduler and RNG state too.

    Raises:
        ScalpelError: no run is active, `path_or_hub_revision` is neither a directory nor a model on
            the hub, or `base` does not exist.
    """
    run_id = run_id or _active_run_id()
    entry = CheckpointEntry(
        job=uuid.uuid4().hex,
        name=name or f"step-{step:06d}",
        step=step,
        params={"step": str(step), **{key: str(value) for key, value in (params or {}).items()}},
        base=base and _base_id(base, run_id),
        source=str(path_or_hub_revision),
        register_as=register_as,
        link=link,
    )
    if entry.base is not None:
        entry.params["base"] = entry.base
    directory = Path(path_or_hub_revision)
    if not directory.is_dir():
        snapshot = _on_hub(str(path_or_hub_revision))
        entry.source = str(path_or_hub_revision).partition("@")[0]
        entry.revision = snapshot.name  # the hub cache names a snapshot by its commit
        entry.files = [name_in(snapshot, file) for file in checkpoint_files(snapshot)]
        entry.params["kind"] = "pointer"
        courier = courier_for(run_id, Path("outputs"))
        courier.add(entry)
        return Delivery(courier, entry.job)

    named = step_of_path(directory) is not None
    courier = courier_for(run_id, run_directory(directory) if named else directory.resolve().parent)
    try:
        directory = model_in(directory)
        entry.source = str(directory)
        entry.notes = _take_over_notes(entry, directory)
        files = checkpoint_files(directory, trainer_state=trainer_state)
        entry.files = [name_in(directory, file) for file in files]
        entry.notes += left_out(directory)
    except ScalpelError as error:
        entry.problem = str(error)
    entry.params["kind"] = "adapter" if is_adapter(directory) else "model"
    if entry.problem is None and _make_room(courier, files):
        entry.snapshot = True
        courier.add(entry, lambda folder: _snapshot(directory, files, folder))
    else:  # its files are read where they are
        courier.add(entry)
    return Delivery(courier, entry.job)


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
        model = _stored_base(client, source, run_id, register_as)
    client.log_inputs(run_id, models=[LoggedModelInput(model.model_id)])
    return model


def courier_for(run_id: str, beside: Path) -> Courier:
    """This process's courier of a run, begun where there is none.

    What an earlier process left in the run's spool is sent first.
    """
    key = (mlflow.get_tracking_uri(), run_id)
    if key not in _couriers:
        _couriers[key] = Courier(Spool(spool_directory(run_id, beside), *key))
    return _couriers[key]


def spool_directory(run_id: str, beside: Path) -> Path:
    """Where a run's spool is: `beside`/.scalpel/<run ID>, or under $SCALPEL_SPOOL.

    `beside` is the directory that holds the checkpoints, whose file system can link them. Where it
    cannot be written (somebody else's checkpoints), it is under the user's state directory.
    """
    folder = Path(os.environ.get("SCALPEL_SPOOL") or beside / ".scalpel")
    if not os.access(_existing(folder.absolute()), os.W_OK):
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        folder = Path(state) / "mlflow-scalpel"
    return folder.resolve() / run_id


def close_couriers(limit: float | None = None) -> None:
    """Send all that is under way, and end the background threads; `limit` is in seconds.

    Raises Undelivered, with the command that sends it later, where something could not be sent.
    """
    problems = []
    while _couriers:
        _, courier = _couriers.popitem()
        try:
            courier.drain(limit)
        except Undelivered as error:
            problems.append(str(error))
        finally:
            courier.close()
    if problems:
        raise Undelivered("\n".join(problems))


@atexit.register
def _close_at_exit() -> None:
    try:
        close_couriers()
    except ScalpelError as error:
        print(f"\n{error}", file=sys.stderr)


def _make_room(courier: Courier, files: list[Path]) -> bool:
    """Wait until the queue has room for the files; False where the server is away and it has not.

    The bound is in number and in bytes, so that what waits cannot fill the disk. (Links take no
    bytes as long as the trainer keeps its own files.)
    """
    directory = courier.spool.directory
    needed = sum(file.stat().st_size for file in files)

    def full() -> bool:
        waiting = courier.pending_checkpoints()
        allowed = _FREE_SHARE * shutil.disk_usage(directory).free
        return waiting >= QUEUED_CHECKPOINTS or (waiting > 0 and (waiting + 1) * needed > allowed)

    return courier.wait_for_room(full)


def _snapshot(directory: Path, files: list[Path], folder: Path) -> None:
    """Keep the files as they are now, whatever the trainer does with its own."""
    for file in files:
        # Weights are written anew and renamed, or so at least is Transformers' habit; a config is
        # written over, which a link would follow.
        written_over = file.suffix != WEIGHTS and file.stat().st_size <= _SMALL_FILE
        target = folder / name_in(directory, file)
        target.parent.mkdir(parents=True, exist_ok=True)
        place(file, target, "copy" if written_over else None)


def _stored_base(
    client: MlflowClient, source: str, run_id: str, register_as: str | None
) -> LoggedModel:
    local = Path(source).is_dir()
    directory = model_in(Path(source)) if local else _on_hub(source)
    check_whole(directory)
    manifest = make_manifest(checkpoint_files(directory), directory)
    digest = manifest.digest
    known = _find_ready(client, run_id, digest)
    if known is not None:
        return known
    kind = "pointer" if not local else "adapter" if is_adapter(directory) else "model"
    shown = directory.name if local else source.replace("/", "-").replace("@", "-")
    entry = CheckpointEntry(
        job=uuid.uuid4().hex,
        name=f"{shown}-step-000000",
        step=0,
        params={"step": "0", "digest": digest, "kind": kind},
        base=None,
        source=str(directory) if local else source.partition("@")[0],
        revision=None if local else directory.name,
        files=list(manifest.files),
        register_as=register_as,
    )
    entry.model_id = deliver.create(client, entry, run_id).model_id
    try:
        return deliver.store(client, entry, directory, run_id, manifest)
    except BaseException as error:
        deliver.fail(client, entry.model_id, str(error) or type(error).__name__)
        raise


def _find_ready(client: MlflowClient, run_id: str, digest: str) -> LoggedModel | None:
    experiment_id = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models(
        [experiment_id], filter_string=f"params.digest = '{digest}' AND params.step = '0'"
    )
    return next((model for model in found if str(model.status) == "READY"), None)


@functools.lru_cache(maxsize=256)
def _base_id(base: str, run_id: str) -> str:
    """Model ID of a base, which is logged where it is a directory or a hub name."""
    return model_id_of(base) or log_base(base, run_id=run_id).model_id


def _take_over_notes(entry: CheckpointEntry, directory: Path) -> list[str]:
    """Params that the trainer's state beside the checkpoint gives, in so far as none are given."""
    try:
        known = params_of([directory], entry.step)
    except ScalpelError as error:  # of no importance for the checkpoint itself
        return [str(error)]
    entry.params = {**known, **entry.params}
    return []


def _on_hub(name: str) -> Path:
    repository, _, revision = name.partition("@")
    return hub_snapshot(repository, revision or None)


def _existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    while not path.exists():
        path = path.parent
    return path


def _active_run_id() -> str:
    run = mlflow.active_run()
    if run is None:
        raise ScalpelError(
            "no MLflow run is active, and a checkpoint belongs to one; pass run_id, "
            "or log within `with mlflow.start_run():`"
        )
    return run.info.run_id
