"""One checkpoint on its way into MLflow: created PENDING, stored, checked, READY, registered.

Every step may be taken again after a failure or a crash, and then leaves what is there already.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelInput

from mlflow_scalpel.checkpoints.artifact_store import open_store
from mlflow_scalpel.checkpoints.differences import compare_with_base
from mlflow_scalpel.checkpoints.external.layouts import model_in
from mlflow_scalpel.checkpoints.files import MANIFEST, check_complete, checkpoint_files
from mlflow_scalpel.checkpoints.logging.mlflow_writes import (
    by_state,
    fail,
    find_created,
    fingerprint_tag,
    link_output,
    log_params,
    make,
    models_of_step,
    register,
    search,
    store_files,
)
from mlflow_scalpel.checkpoints.logging.spool import CheckpointEntry, Pulse
from mlflow_scalpel.checkpoints.manifest import Manifest, make_manifest, parse_manifest
from mlflow_scalpel.checkpoints.reading.addresses import model_id_of, split_artifact
from mlflow_scalpel.checkpoints.reading.formats import files_of, hub_snapshot
from mlflow_scalpel.checkpoints.search import JOB_TAG, NOTE_TAG, state_of
from mlflow_scalpel.credentials import shortened
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.run_warnings import (
    FAILURE_TAG,
    TAG_LIMIT,
    failure_text,
    print_warning,
    warning_tag,
)
from mlflow_scalpel.server_errors import is_final, is_passing
from mlflow_scalpel.tensors.files import is_adapter
from mlflow_scalpel.tensors.names import wrapping

_bases: dict[tuple[int, str, str], str] = {}  # what each base turned out to be


def create(client: MlflowClient, entry: CheckpointEntry, run_id: str) -> LoggedModel | None:
    """The PENDING LoggedModel of the entry, linked to the run's step; made if it is not there.

    None where the run has models of this step already: whether one of them is this checkpoint
    depends on its content, which `store` compares.
    """
    run = client.get_run(run_id)
    model = find_created(client, entry.job, run.info.experiment_id) if entry.tried else None
    if model is None:
        if entry.step > 0 and models_of_step(client, run, entry.step):
            return None
        model = make(client, entry, run)
    link_output(client, run_id, model.model_id, entry.step)
    return model


def store(
    client: MlflowClient,
    entry: CheckpointEntry,
    folder: Path,
    run_id: str,
    *,
    keep: Callable[[CheckpointEntry], object] = lambda entry: None,
    waiting: Collection[str] = (),
    pulse: Pulse | None = None,
) -> LoggedModel:
    """Store the files of the entry's model and check them; then it is READY, and registered.

    Args:
        folder: the entry's own directory, where a snapshot of the files lies.
        run_id: run that the checkpoint belongs to.
        keep: called with the entry once its model is known, to write it down.
        waiting: jobs of other entries, whose models are theirs.
        pulse: notes what the server takes, and what is done on this machine.

    Raises:
        ScalpelError: the checkpoint is damaged, or shares no weights with its base; its model is
            FAILED by then.
        Exception: what may work when it is tried again.
    """
    pulse = pulse or Pulse()
    model = None if entry.model_id is None else client.get_logged_model(entry.model_id)
    directory, manifest, problem = folder, None, entry.problem
    if problem is None and (model is None or str(model.status) != "READY"):
        directory, manifest, problem = _read_entry(entry, folder, pulse)
    if model is None:
        model = _identified(client, entry, run_id, manifest, problem, waiting)
        entry = entry.model_copy(update={"tried": True, "model_id": model.model_id})
        keep(entry)
    if str(model.status) != "READY":
        if manifest is not None:
            model, problem = _with_base(client, entry, model, run_id, manifest, directory, pulse)
        if manifest is None or problem is not None:
            problem = problem or "the reason is not known"
            fail(client, model, run_id, problem)
            raise ScalpelError(problem)
        model = store_files(client, entry, model, directory, run_id, manifest, pulse)
        # What the server was asked for again and again may have been done late.
        find_created(client, entry.job, model.experiment_id)
    if entry.register_as is not None:
        register(client, entry.register_as, model, run_id, entry.step)
        model = client.get_logged_model(model.model_id)
    return model


def _read_entry(
    entry: CheckpointEntry, folder: Path, pulse: Pulse
) -> tuple[Path, Manifest | None, str | None]:
    """Directory and manifest of an entry's files, and what is wrong with them.

    Whatever a file contains, or is called, concerns this entry alone.
    """
    directory = folder
    try:
        with pulse.busy():
            directory = folder if entry.snapshot else _directory(entry)
            check_complete(directory)
            files = [directory / name for name in entry.files]
            return directory, make_manifest(files, directory), None
    except Exception as error:
        if is_passing(error):
            raise
        if isinstance(error, ScalpelError):
            problem = str(error)
        elif isinstance(error, FileNotFoundError):
            problem = (
                f"{error.filename}: is not there any more; it was removed before it could be "
                "stored: save the checkpoint again, and log it"
            )
        else:
            problem = (
                f"{entry.source}: cannot be read as a checkpoint ({type(error).__name__}: "
                f"{shortened(error, 500)}); save it again, and log it"
            )
        return directory, None, problem.replace(str(directory), entry.source)


def _identified(
    client: MlflowClient,
    entry: CheckpointEntry,
    run_id: str,
    manifest: Manifest | None,
    problem: str | None,
    waiting: Collection[str],
) -> LoggedModel:
    """The run's model of the entry's step and content, made where there is none.

    A checkpoint is what it is by run, step and content. One that an earlier process left PENDING,
    and that no entry will finish, is taken over.
    """
    run = client.get_run(run_id)
    own = find_created(client, entry.job, run.info.experiment_id) if entry.tried else None
    if own is not None:
        link_output(client, run_id, own.model_id, entry.step)
        return own
    digest = None if manifest is None else manifest.digest
    for model in sorted(models_of_step(client, run, entry.step), key=by_state):
        state, known = state_of(model), model.params.get("digest")
        taken = model.tags.get(JOB_TAG) in waiting
        same_content = problem is None and known == digest
        if (
            (state == "READY" and same_content)
            or (state == "PENDING" and (same_content or known is None) and not taken)
            or (
                state == "FAILED"
                and problem
                and model.tags.get(FAILURE_TAG) == failure_text(problem)
            )
        ):
            tags = {JOB_TAG: entry.job, **fingerprint_tag(entry)}
            client.set_logged_model_tags(model.model_id, tags)
            link_output(client, run_id, model.model_id, entry.step)
            return client.get_logged_model(model.model_id)
    model = make(client, entry, run)
    link_output(client, run_id, model.model_id, entry.step)
    return model


def _with_base(
    client: MlflowClient,
    entry: CheckpointEntry,
    model: LoggedModel,
    run_id: str,
    manifest: Manifest,
    directory: Path,
    pulse: Pulse,
) -> tuple[LoggedModel, str | None]:
    """The model with its base among its params, and why it cannot be of that base.

    A base that is gone by now costs no checkpoint: it is stored without, and the run says so.
    """
    notes = list(entry.notes)
    if not is_adapter(directory) and (wrapped := wrapping(manifest.tensors)) is not None:
        notes.append(
            f"tensors are named with what wrapped the model ({wrapped}), and from_pretrained does "
            "not know them: rename them before you load it"
        )
    if entry.base is None:
        _note(client, model, notes)
        return model, None
    try:
        base = model.params.get("base") or base_id(client, entry.base, run_id, pulse)
    except ScalpelError as error:
        text = f"step {entry.step} is stored without its base: {error}"
        print_warning("base", text, run_id)
        for key, value in warning_tag("base", text).items():
            client.set_tag(run_id, key, value)
        return model, None
    if "base" not in model.params:
        model = log_params(client, model, {"base": base})
    if not is_adapter(directory):
        try:
            known = base_manifest(client, base)
            notes += compare_with_base(client, manifest, known, entry, directory, run_id)
        except ScalpelError as error:
            return model, str(error)
    _note(client, model, notes)
    return model, None


def _note(client: MlflowClient, model: LoggedModel, notes: Sequence[str]) -> None:
    if notes:
        client.set_logged_model_tags(model.model_id, {NOTE_TAG: "; ".join(notes)[:TAG_LIMIT]})


def _directory(entry: CheckpointEntry) -> Path:
    if entry.revision is None:
        return Path(entry.source)
    return hub_snapshot(entry.source, entry.revision)


def base_id(client: MlflowClient, base: str, run_id: str, pulse: Pulse) -> str:
    """ID of the model that `base` names, an input of the run from now on.

    Raises ScalpelError where there is none, and what MLflow raises where that is not known yet.
    """
    key = (id(client), base, run_id)
    if key not in _bases:
        try:
            known = model_id_of(base)
        except ScalpelError as error:
            if error.__cause__ is not None and not is_final(error.__cause__):
                raise error.__cause__ from None
            raise
        if known is None:
            known = ensure_base(client, base, run_id, pulse=pulse).model_id
        client.log_inputs(run_id, models=[LoggedModelInput(known)])  # twice is once
        _bases[key] = known
    return _bases[key]


def ensure_base(
    client: MlflowClient,
    source: str,
    run_id: str,
    *,
    register_as: str | None = None,
    pulse: Pulse | None = None,
) -> LoggedModel:
    """The READY model of a base, stored once for each content.

    `source` is a directory, a hub name, or a folder of a run's artifacts (`runs:/RUN/path`).

    What a process that was killed left PENDING is finished. Raises ScalpelError where it is not a
    complete model.
    """
    pulse = pulse or Pulse()
    artifact = split_artifact(source) is not None
    local = artifact or Path(source).is_dir()
    with pulse.busy():
        if artifact:
            directory = files_of(source)
        else:
            directory = model_in(Path(source)) if local else hub_snapshot(source)
        check_complete(directory)
        manifest = make_manifest(checkpoint_files(directory), directory)
    digest = manifest.digest
    experiment_id = client.get_run(run_id).info.experiment_id
    found = search(client, experiment_id, f"params.digest = '{digest}' AND params.step = '0'")
    kind = "pointer" if not local else "adapter" if is_adapter(directory) else "model"
    hub_name, _, revision = source.partition("@")
    shown = hub_name if revision in ("", directory.name) else f"{hub_name}-{revision}"
    shown = Path(source).name if artifact else directory.name if local else shown.replace("/", "-")
    entry = CheckpointEntry(
        # The same for everybody who stores this base in this experiment.
        job=f"base-{digest.removeprefix('sha256:')[:32]}",
        name=f"{shown}-step-000000",
        step=0,
        params={"step": "0", "digest": digest, "kind": kind},
        base=None,
        source=str(directory) if local else hub_name,
        revision=None if local else directory.name,
        files=list(manifest.files),
        register_as=register_as,
        tried=True,
    )
    ready = next((model for model in found if str(model.status) == "READY"), None)
    # Also where one is READY: a twin of it, of a lost answer, may be left.
    begun = find_created(client, entry.job, experiment_id) if len(found) != bool(ready) else None
    model = ready or begun
    if model is None:
        model = make(client, entry, client.get_run(run_id))
    if ready is None:
        model = store_files(client, entry, model, directory, run_id, manifest, pulse)
    if register_as is not None:
        register(client, register_as, model, run_id, 0)
    return model


@functools.lru_cache(maxsize=8)  # every checkpoint of a run asks for the same one
def base_manifest(client: MlflowClient, model_id: str) -> Manifest | None:
    """The manifest stored with a model; None where MLflow itself logged it, without one."""
    location = open_store(client.get_logged_model(model_id).artifact_location)
    if MANIFEST not in location.sizes():
        return None
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / MANIFEST
        location.fetch(MANIFEST, target)
        return parse_manifest(target.read_bytes(), f"{MANIFEST} of {model_id}")
