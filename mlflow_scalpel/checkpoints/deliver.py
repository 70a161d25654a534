"""One checkpoint on its way into MLflow: created PENDING, stored, checked, READY, registered.

Every step may be taken again after a failure or a crash, and then leaves what is there already.
"""

from __future__ import annotations

import functools
import json
import platform
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from mlflow_scalpel.checkpoints.differences import Differences, canonical, differences, some
from mlflow_scalpel.checkpoints.expected import expected_shapes, ties_head
from mlflow_scalpel.checkpoints.find import made_by, metrics_of, state_of
from mlflow_scalpel.checkpoints.layout import (
    FAILURE_TAG,
    MANIFEST,
    MLMODEL,
    MODEL_TYPE,
    NOTE_TAG,
    POINTER,
    check_whole,
)
from mlflow_scalpel.checkpoints.manifest import Manifest, make_manifest, parse_manifest
from mlflow_scalpel.checkpoints.spool import CheckpointEntry
from mlflow_scalpel.checkpoints.stores import open_store
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.links import DESCRIPTION_TAG, checkpoint_note
from mlflow_scalpel.run_warnings import print_warning, warning_tag
from mlflow_scalpel.tensors.files import is_adapter

_JOB_TAG = "scalpel.job"
_TAG_LIMIT = 5000  # characters; MLflow's stores refuse tags above 8000


def create(client: MlflowClient, entry: CheckpointEntry, run_id: str) -> LoggedModel:
    """The PENDING LoggedModel of the entry, linked to the run's step; made if it is not there."""
    run = client.get_run(run_id)
    model = made_before(client, entry.job, run_id) if entry.tried else None
    if model is None:
        note = {DESCRIPTION_TAG: checkpoint_note(run_id, entry.step)} if entry.step > 0 else {}
        model = client.create_logged_model(
            run.info.experiment_id,
            # `/ : . % " '` are refused in names
            name="".join("_" if char in "/:.%\"'" else char for char in entry.name),
            source_run_id=run_id,
            params=entry.params,
            tags={_JOB_TAG: entry.job, **note},
            model_type=MODEL_TYPE,
        )
    linked = run.outputs.model_outputs if run.outputs else []
    # A base is an input of runs, and nothing that they made.
    if entry.step > 0 and model.model_id not in {output.model_id for output in linked}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, entry.step)])
    return model


def store(
    client: MlflowClient,
    entry: CheckpointEntry,
    folder: Path,
    run_id: str,
    manifest: Manifest | None = None,
) -> LoggedModel:
    """Store the files of a PENDING model and check them; then it is READY, and registered.

    Args:
        folder: the entry's own directory, where a snapshot of the files lies.
        run_id: run that the checkpoint belongs to.
        manifest: the files' manifest, where it was made already.

    Raises:
        ScalpelError: the checkpoint is damaged, or shares no weights with its base.
    """
    assert entry.model_id is not None  # created before
    if entry.problem is not None:
        raise ScalpelError(entry.problem)
    model = client.get_logged_model(entry.model_id)
    if str(model.status) != "READY":
        directory = folder if entry.snapshot else _directory(entry)
        try:
            check_whole(directory)
            manifest = manifest or make_manifest(
                [directory / name for name in entry.files], directory
            )
            notes = list(entry.notes)
            if not is_adapter(directory):
                notes += _check_architecture(client, manifest, entry, directory, run_id)
            if notes:
                note = "; ".join(notes)[:_TAG_LIMIT]
                client.set_logged_model_tags(entry.model_id, {NOTE_TAG: note})
            model = _store_files(client, entry, model, directory, run_id, manifest)
        except ScalpelError as error:  # name the file where the user knows it
            raise ScalpelError(str(error).replace(str(directory), entry.source)) from error
    if entry.register_as is not None:
        _register(client, entry.register_as, model, run_id, entry.step)
    return model


def fail(client: MlflowClient, model_id: str, reason: str) -> None:
    """Mark a model FAILED, with the reason where the user sees it."""
    client.set_logged_model_tags(model_id, {FAILURE_TAG: reason[:_TAG_LIMIT]})
    client.finalize_logged_model(model_id, "FAILED")


def give_best(client: MlflowClient, run_id: str, metric: str, *, minimize: bool) -> str | None:
    """Give the alias best-<run> to the run's version with the best value of a models' metric.

    Returns the model ID; None where no registered version of the run has a value.
    """
    values = {
        model.model_id: metrics_of(model)[metric]
        for model in made_by(client, client.get_run(run_id))
        if metric in metrics_of(model) and state_of(model) == "READY"
    }
    versions = {
        str(version.source).removeprefix("models:/").rstrip("/"): version
        for version in client.search_model_versions(f"run_id = '{run_id}'")
    }
    candidates = [model_id for model_id in values if model_id in versions]
    if not candidates:
        return None
    best = (min if minimize else max)(candidates, key=lambda model_id: values[model_id])
    version = versions[best]
    client.set_registered_model_alias(version.name, f"best-{run_id}", version.version)
    return best


def made_before(client: MlflowClient, job: str, run_id: str) -> LoggedModel | None:
    """The LoggedModel that an earlier process created for a delivery; None where it did not."""
    found = made_by(client, client.get_run(run_id))
    return next((model for model in found if model.tags.get(_JOB_TAG) == job), None)


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


def _directory(entry: CheckpointEntry) -> Path:
    if entry.revision is None:
        return Path(entry.source)
    from mlflow_scalpel.checkpoints.resolve import hub_snapshot

    return hub_snapshot(entry.source, entry.revision)


def _store_files(
    client: MlflowClient,
    entry: CheckpointEntry,
    model: LoggedModel,
    directory: Path,
    run_id: str,
    manifest: Manifest,
) -> LoggedModel:
    details = {"digest": manifest.digest, "bytes": str(manifest.bytes)}
    missing = {key: value for key, value in details.items() if key not in model.params}
    if missing:
        client.log_model_params(model.model_id, missing)
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch)
        files = {MANIFEST: manifest.write(staged), MLMODEL: _mlmodel(staged, model, run_id)}
        if entry.revision is not None:
            where = {"repository": entry.source, "revision": entry.revision}
            files[POINTER] = staged / POINTER
            files[POINTER].write_text(json.dumps(where) + "\n", encoding="utf-8")
        else:
            files |= {name: directory / name for name in manifest.files}
        location = open_store(model.artifact_location)
        location.put(files, entry.link)
        _check_stored(files, location.sizes(), model)
    return client.finalize_logged_model(model.model_id, "READY")


def _check_stored(files: dict[str, Path], stored: dict[str, int], model: LoggedModel) -> None:
    for name, file in files.items():
        if stored.get(name) != file.stat().st_size:
            # Not a ScalpelError: sending it again may help.
            raise OSError(
                f"{model.artifact_location}/{name}: has {stored.get(name, 'no')} bytes after "
                f"{file.stat().st_size} were sent"
            )


def _check_architecture(
    client: MlflowClient, manifest: Manifest, entry: CheckpointEntry, directory: Path, run_id: str
) -> list[str]:
    """How the checkpoint differs from its base, for a note; raises ScalpelError if in all.

    Weights of the base that are missing without a reason are warned of on the run; where the
    checkpoint's own configuration asks for them, it is not whole.
    """
    base = base_manifest(client, entry.base) if entry.base is not None else None
    if base is None or not base.tensors:
        return []
    found = differences(base.tensors, manifest.tensors)
    if found.foreign is not None:
        raise ScalpelError(
            f"{entry.source}: shares no weights with the base {entry.base}: {found.foreign}; give "
            "the model that this training began with as the base, or none: then it is stored, and "
            "compared with what you name"
        )
    if found.heads and not ties_head(directory):
        found = replace(found, missing=(*found.missing, *found.heads))
    if found.missing or found.reshaped:
        _check_own_configuration(found, manifest, entry, directory)
    if not found.missing:
        return list(found.notes)
    what = (
        f"{len(found.missing)} of the base's {len(base.tensors)} tensors are missing "
        f"({some(found.missing)})"
    )
    message = (
        f"step {entry.step}: {what}; if the save was cut off, log the whole model again: what is "
        "missing is measured nowhere"
    )
    print_warning("checkpoint_incomplete", message, run_id)
    for key, value in warning_tag("checkpoint_incomplete", message).items():
        client.set_tag(run_id, key, value)
    return [*found.notes, what]


def _check_own_configuration(
    found: Differences, manifest: Manifest, entry: CheckpointEntry, directory: Path
) -> None:
    """Raise ScalpelError where the checkpoint's config.json asks for what its files do not hold.

    Transformers would fill it with random values, or refuse the model.
    """
    wanted = expected_shapes(directory)
    if wanted is None:
        return
    stored = {canonical(name): tensor.shape for name, tensor in manifest.tensors.items()}
    for name in found.missing:
        if canonical(name) in wanted:
            raise ScalpelError(
                f"{entry.source}: tensor {name} of the base is missing, and the checkpoint's own "
                "config.json asks for it, so that it is not whole; save it again, all of it"
            )
    for name in found.reshaped:
        shape = wanted.get(canonical(name))
        if shape is not None and shape != stored[canonical(name)]:
            raise ScalpelError(
                f"{entry.source}: tensor {name} has shape {stored[canonical(name)]}, and the "
                f"checkpoint's own config.json asks for {shape}; save weights and config together"
            )


def _mlmodel(folder: Path, model: LoggedModel, run_id: str) -> Path:
    prompts = Schema([ColSpec(DataType.string, "prompt")])
    completions = Schema([ColSpec(DataType.string, "completion")])
    described = Model(
        artifact_path=model.artifact_location,
        run_id=run_id,
        model_id=model.model_id,
        signature=ModelSignature(inputs=prompts, outputs=completions),
    )
    described.add_flavor(
        "python_function",
        loader_module="mlflow_scalpel.checkpoints.generator",
        python_version=platform.python_version(),
    )
    path = folder / MLMODEL
    described.save(str(path))
    return path


def _register(client: MlflowClient, name: str, model: LoggedModel, run_id: str, step: int) -> None:
    source = f"models:/{model.model_id}"
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions: list[Any] = client.search_model_versions(f"name = '{name}' AND run_id = '{run_id}'")
    version = next((known for known in versions if known.source == source), None)
    if version is None:
        tags = {"run_id": run_id, "step": str(step)}
        version = client.create_model_version(
            name, source=source, run_id=run_id, tags=tags, model_id=model.model_id
        )
    _show_version(client, model.model_id, name, version.version)
    newest = max((int(known.tags.get("step", 0)) for known in versions), default=0)
    if step > 0 and step >= newest:
        client.set_registered_model_alias(name, f"last-{run_id}", version.version)


def _show_version(client: MlflowClient, model_id: str, name: str, version: str | int) -> None:
    """Have the model's page in the UI show the version, which only a server does by itself."""
    shown = json.loads(client.get_logged_model(model_id).tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    if not any(known["name"] == name for known in shown):
        shown.append({"name": name, "version": version})
        client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(shown)})
