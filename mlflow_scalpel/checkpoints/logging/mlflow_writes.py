"""Requests that write to MLflow, each of which does its work once, however often it is sent.

An answer can be lost after the server has done the work, and MLflow's own client then sends the
request again. So each of these looks at the server's state: before the request, where sending it
twice would do harm, and after.
"""

from __future__ import annotations

import json
import platform
import tempfile
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.tracking.multimedia import compress_image_size
from mlflow.types import ColSpec, DataType, Schema
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES, MLFLOW_MODEL_VERSIONS

from mlflow_scalpel.checkpoints.artifact_store import open_store
from mlflow_scalpel.checkpoints.files import MANIFEST, MLMODEL, POINTER
from mlflow_scalpel.checkpoints.logging.spool import (
    ArtifactEntry,
    CheckpointEntry,
    ImageEntry,
    MetricsEntry,
    Pulse,
    TagsEntry,
)
from mlflow_scalpel.checkpoints.manifest import Manifest
from mlflow_scalpel.checkpoints.search import (
    FINGERPRINT_TAG,
    JOB_TAG,
    MODEL_TYPE,
    every,
    made_by,
    metrics_of,
    state_of,
    step_of,
)
from mlflow_scalpel.credentials import without_credentials
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.links import DESCRIPTION_TAG, checkpoint_note
from mlflow_scalpel.run_warnings import FAILURE_TAG, failure_text, warning_tag
from mlflow_scalpel.server_errors import is_passing


def find_created(client: MlflowClient, job: str, experiment_id: str) -> LoggedModel | None:
    """The one LoggedModel that was created for an upload; None where none was.

    A request whose answer was lost is sent again, by MLflow's own client too, and then has been
    done twice: the younger twins, which nobody knows of, are removed.
    """
    found = search(client, experiment_id, f"tags.`{JOB_TAG}` = '{job}'")
    usable = sorted((m for m in found if str(m.status) != "FAILED" or m.params.get("step") != "0"),
                    key=by_state)  # fmt: skip
    for twin in usable[1:]:
        if str(twin.status) == "PENDING":
            client.delete_logged_model(twin.model_id)
    return usable[0] if usable else None


def make(client: MlflowClient, entry: CheckpointEntry, run: Run) -> LoggedModel:
    """Create the LoggedModel of an entry, once."""
    run_id = run.info.run_id
    note = {DESCRIPTION_TAG: checkpoint_note(run_id, entry.step)} if entry.step > 0 else {}
    made = client.create_logged_model(
        run.info.experiment_id,
        # `/ : . % " '` are refused in names
        name="".join("_" if char in "/:.%\"'" else char for char in entry.name),
        source_run_id=run_id,
        params=entry.params,
        tags={JOB_TAG: entry.job, **fingerprint_tag(entry), **note},
        model_type=MODEL_TYPE,
    )
    return find_created(client, entry.job, run.info.experiment_id) or made


def fingerprint_tag(entry: CheckpointEntry) -> dict[str, str]:
    return {} if entry.fingerprint is None else {FINGERPRINT_TAG: entry.fingerprint}


def search(client: MlflowClient, experiment_id: str, where: str) -> list[LoggedModel]:
    return every(
        lambda token: client.search_logged_models(
            [experiment_id], filter_string=where, page_token=token
        )
    )


def models_of_step(client: MlflowClient, run: Run, step: int) -> list[LoggedModel]:
    """The run's models of a step."""
    where = f"source_run_id = '{run.info.run_id}' AND params.step = '{step}'"
    return search(client, run.info.experiment_id, where)


def by_state(model: LoggedModel) -> tuple[bool, bool, int]:
    state = state_of(model)
    return state != "READY", state != "PENDING", model.creation_timestamp


def link_output(client: MlflowClient, run_id: str, model_id: str, step: int) -> None:
    """Have the run's page list a model at its step; a base is an input, and nothing it made."""

    def linked() -> bool:
        outputs = client.get_run(run_id).outputs
        known = outputs.model_outputs if outputs else []
        return model_id in {output.model_id for output in known}

    if step == 0 or linked():
        return
    try:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])
    except MlflowException:  # also where it was done, and asked for again
        if not linked():
            raise


def log_params(client: MlflowClient, model: LoggedModel, params: dict[str, str]) -> LoggedModel:
    """Params of a model that it does not have yet; they cannot be written over."""
    missing = {key: value for key, value in params.items() if key not in model.params}
    if missing:
        try:
            client.log_model_params(model.model_id, missing)
        except MlflowException:  # also where it was done, and asked for again
            known = client.get_logged_model(model.model_id).params
            if not missing.keys() <= known.keys():
                raise
        model = client.get_logged_model(model.model_id)
    return model


def fail(client: MlflowClient, model: LoggedModel, run_id: str, reason: str) -> None:
    """Mark a model FAILED, with the reason where the user sees it, on the run too."""
    client.set_logged_model_tags(model.model_id, {FAILURE_TAG: failure_text(reason)})
    client.finalize_logged_model(model.model_id, "FAILED")
    step = step_of(model)
    code = f"checkpoint_{step}" if step else "base"
    for key, value in warning_tag(code, f"step {step} is FAILED: {reason}").items():
        client.set_tag(run_id, key, value)


def register(client: MlflowClient, name: str, model: LoggedModel, run_id: str, step: int) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{model.model_id}"

    def find() -> tuple[list[Any], Any]:
        versions: list[Any] = client.search_model_versions(
            f"name = '{name}' AND run_id = '{run_id}'"
        )
        kept: dict[str, Any] = {}
        for known in sorted(versions, key=lambda known: int(known.version)):
            first = kept.setdefault(str(known.source).rstrip("/"), known)
            # Of a request that was sent again; what somebody registered by hand has no such tags.
            if first is not known and known.tags == first.tags == tags_of(known):
                client.delete_model_version(name, known.version)
        return versions, kept.get(source)

    def tags_of(known: Any) -> dict[str, str]:
        return {"run_id": run_id, "step": known.tags.get("step", "")}

    versions, version = find()
    if version is None:
        tags = {"run_id": run_id, "step": str(step)}
        made = client.create_model_version(
            name, source=source, run_id=run_id, tags=tags, model_id=model.model_id
        )
        version = find()[1] or made
    _show_version(client, model.model_id, name, version.version)
    newest = max((int(known.tags.get("step", 0)) for known in versions), default=0)
    if step > 0 and step >= newest:
        client.set_registered_model_alias(name, f"last-{run_id}", version.version)


def _show_version(client: MlflowClient, model_id: str, name: str, version: str | int) -> None:
    """Have the model's page in the UI show the version, which only a server does by itself."""
    shown = json.loads(client.get_logged_model(model_id).tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    mine = [known for known in shown if known["name"] == name]
    if [str(known["version"]) for known in mine] != [str(version)]:
        others = [known for known in shown if known["name"] != name]
        versions = json.dumps([*others, {"name": name, "version": version}])
        client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: versions})


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


def send(client: MlflowClient, entry: Any, run_id: str, folder: Path, model_id: str | None) -> None:
    """Send an entry that is not a checkpoint; sending it twice does no harm.

    Args:
        folder: the entry's own directory.
        model_id: model that metrics belong to, too.
    """
    if isinstance(entry, MetricsEntry):
        # MLflow keeps one of two that are alike in key, value, step and time.
        metrics = [
            Metric(**value.model_dump(), model_id=model_id, run_id=run_id)
            for value in entry.metrics
        ]
        client.log_batch(run_id, metrics=metrics)
    elif isinstance(entry, ArtifactEntry):
        for file in folder.iterdir():
            client.log_artifact(run_id, str(file), entry.folder)
    elif isinstance(entry, ImageEntry):
        _send_image(client, entry, run_id, folder / "image.png")
    elif isinstance(entry, TagsEntry):
        tags = [RunTag(key, value) for key, value in entry.tags.items() if value is not None]
        client.log_batch(run_id, tags=tags)
        gone = {key for key, value in entry.tags.items() if value is None}
        for key in gone.intersection(client.get_run(run_id).data.tags if gone else ()):
            client.delete_tag(run_id, key)
    else:
        raise AssertionError(f"{entry.kind} is sent elsewhere")


def _send_image(client: MlflowClient, entry: ImageEntry, run_id: str, file: Path) -> None:
    """As MLflow's `log_image`, which draws a new name each time: an image would be there twice."""
    from PIL import Image

    name = f"{run_id} {entry.key} {entry.step} {entry.timestamp}"
    key = entry.key.replace("/", "~")
    stem = f"{key}+step+{entry.step}+timestamp+{entry.timestamp}+{uuid5(NAMESPACE_OID, name)}"
    with tempfile.TemporaryDirectory() as scratch, Image.open(file) as image:
        full, small = Path(scratch) / f"{stem}.png", Path(scratch) / f"{stem}+compressed.webp"
        image.save(full)
        compress_image_size(image).save(small)
        for made in (full, small):
            client.log_artifact(run_id, str(made), "images")
    client.set_tag(run_id, MLFLOW_LOGGED_IMAGES, "True")


def store_files(
    client: MlflowClient,
    entry: CheckpointEntry,
    model: LoggedModel,
    directory: Path,
    run_id: str,
    manifest: Manifest,
    pulse: Pulse,
) -> LoggedModel:
    details = {"digest": manifest.digest, "bytes": str(manifest.bytes)}
    model = log_params(client, model, details)
    if model.params["digest"] != manifest.digest:
        reason = (
            f"{entry.source}: has changed while it was being stored; what is there now is not what "
            "was logged: log it again"
        )
        fail(client, model, run_id, reason)
        raise ScalpelError(reason)
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
        try:
            if location.local is None:
                location.put(files, entry.link, pulse.beat)
            else:
                with pulse.busy():
                    location.put(files, entry.link, pulse.beat)
        except ScalpelError as error:
            if is_passing(error):
                raise
            fail(client, model, run_id, str(error))
            raise
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


def _mlmodel(folder: Path, model: LoggedModel, run_id: str) -> Path:
    prompts = Schema([ColSpec(DataType.string, "prompt")])
    completions = Schema([ColSpec(DataType.string, "completion")])
    described = Model(
        artifact_path=without_credentials(model.artifact_location),
        run_id=run_id,
        model_id=model.model_id,
        signature=ModelSignature(inputs=prompts, outputs=completions),
    )
    described.add_flavor(
        "python_function",
        loader_module="mlflow_scalpel.checkpoints.models.generator",
        python_version=platform.python_version(),
    )
    path = folder / MLMODEL
    described.save(str(path))
    return path
