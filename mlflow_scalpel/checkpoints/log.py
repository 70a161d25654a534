"""Logs a checkpoint directory as a LoggedModel, and registers it once it is whole."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelInput, LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

from mlflow_scalpel.checkpoints.layout import POINTER, checkpoint_files
from mlflow_scalpel.checkpoints.manifest import content_digest
from mlflow_scalpel.checkpoints.resolve import hub_snapshot, model_id_of
from mlflow_scalpel.errors import ScalpelError

MODEL_TYPE = "checkpoint"


def log_checkpoint(
    path: str | Path,
    *,
    step: int,
    base: str | None = None,
    run_id: str | None = None,
    params: Mapping[str, Any] | None = None,
    name: str | None = None,
    register_as: str | None = None,
) -> LoggedModel:
    """Log the checkpoint in the directory `path` as the model of `step` of a run.

    The model is PENDING until its files are stored, then READY; it is FAILED with the reason in the
    tag `scalpel.failure` where they could not be. Only then is a version registered under
    `register_as`, with run and step as its tags. Optimizer state and pickles stay behind.

    Args:
        path: directory as Transformers writes it, with safetensors weights.
        step: training step, shown in the model's name and params, and linked to the run's charts.
        base: model ID or models:/ URI of the model that training began with.
        run_id: run that the checkpoint belongs to; the active run unless given.
        params: more params of the model (algorithm, recipe, learning rate ...).
        name: name of the LoggedModel; `step-<step>` unless given.
        register_as: name of the registered model; None registers nothing.

    Raises:
        ScalpelError: no run is active, or `path` is no checkpoint.
    """
    directory = Path(path)
    run_id = run_id or _active_run_id()
    checkpoint_files(directory)
    given = {"step": step, "digest": content_digest(directory), **(params or {})}
    if base is not None:
        given["base"] = model_id_of(base) or base
    model = _store(directory, name or f"step-{step:06d}", run_id, given)
    client = MlflowClient()
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    if register_as is not None:
        _register(client, register_as, model, run_id, {"step": step})
    return model


def log_base(
    source: str, *, run_id: str | None = None, register_as: str | None = None
) -> LoggedModel:
    """The LoggedModel of a base model, logged once for each content, linked as the run's input.

    A local directory is stored; a hub name is stored as a pointer (repository and commit), since
    its bytes are kept there; a models:/ URI is only linked.
    """
    run_id = run_id or _active_run_id()
    client = MlflowClient()
    known_id = model_id_of(source)
    if known_id is not None:
        model = client.get_logged_model(known_id)
    elif Path(source).is_dir():
        model = _base_of_directory(client, Path(source), run_id, register_as)
    else:
        model = _base_of_hub(client, source, run_id)
    client.log_inputs(run_id, models=[LoggedModelInput(model.model_id)])
    return model


def _base_of_directory(
    client: MlflowClient, directory: Path, run_id: str, register_as: str | None
) -> LoggedModel:
    digest = content_digest(directory)
    known = _find_ready(client, run_id, digest)
    if known is not None:
        return known
    model = _store(
        directory, f"{directory.name}-step-000000", run_id, {"step": 0, "digest": digest}
    )
    if register_as is not None:
        _register(client, register_as, model, run_id, {"step": 0})
    return model


def _base_of_hub(client: MlflowClient, name: str, run_id: str) -> LoggedModel:
    snapshot = hub_snapshot(name)
    digest = content_digest(snapshot)
    known = _find_ready(client, run_id, digest)
    if known is not None:
        return known
    revision = snapshot.name  # the hub cache names a snapshot by its commit
    params = {"step": 0, "digest": digest, "repository": name, "revision": revision}
    return _store(None, f"{name.replace('/', '-')}-step-000000", run_id, params)


def _store(
    directory: Path | None, name: str, run_id: str, params: Mapping[str, Any]
) -> LoggedModel:
    """A READY LoggedModel that holds the checkpoint's files and an MLmodel (or a pointer)."""
    client = MlflowClient()
    experiment_id = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(
        experiment_id,
        # `/ : . % " '` are refused in names
        name="".join("_" if character in "/:.%\"'" else character for character in name),
        source_run_id=run_id,
        params={key: str(value) for key, value in params.items()},
        model_type=MODEL_TYPE,
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            staged = Path(folder)
            _write_mlmodel(staged, model, run_id)
            if directory is None:
                pointer = f'{{"repository": "{params["repository"]}", '
                pointer += f'"revision": "{params["revision"]}"}}\n'
                (staged / POINTER).write_text(pointer)
            else:
                for file in checkpoint_files(directory):
                    _link_or_copy(file, staged / file.name)
            client.log_model_artifacts(model.model_id, str(staged))
    except BaseException as error:
        client.set_logged_model_tags(model.model_id, {"scalpel.failure": str(error)[:5000]})
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    return client.finalize_logged_model(model.model_id, "READY")


def _link_or_copy(source: Path, target: Path) -> None:
    """Stage a file without copying its bytes where the file system allows it."""
    try:
        target.hardlink_to(source.resolve())
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _write_mlmodel(folder: Path, model: LoggedModel, run_id: str) -> None:
    text = Schema([ColSpec(DataType.string, "prompt")])
    described = Model(
        artifact_path=model.artifact_location,
        run_id=run_id,
        model_id=model.model_id,
        signature=ModelSignature(
            inputs=text, outputs=Schema([ColSpec(DataType.string, "completion")])
        ),
    )
    described.add_flavor(
        "python_function",
        loader_module="mlflow_scalpel.checkpoints.generator",
        python_version="3.11",
    )
    described.save(str(folder / "MLmodel"))


def _register(
    client: MlflowClient, name: str, model: LoggedModel, run_id: str, tags: Mapping[str, Any]
) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    client.create_model_version(
        name,
        source=f"models:/{model.model_id}",
        run_id=run_id,
        tags={"run_id": run_id, **{key: str(value) for key, value in tags.items()}},
        model_id=model.model_id,
    )


def _find_ready(client: MlflowClient, run_id: str, digest: str) -> LoggedModel | None:
    experiment_id = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models(
        [experiment_id], filter_string=f"params.digest = '{digest}' AND params.step = '0'"
    )
    return next((model for model in found if model.status == "READY"), None)


def _active_run_id() -> str:
    run = mlflow.active_run()
    if run is None:
        raise ScalpelError(
            "no MLflow run is active, and a checkpoint belongs to one; pass run_id, "
            "or log within `with mlflow.start_run():`"
        )
    return run.info.run_id
