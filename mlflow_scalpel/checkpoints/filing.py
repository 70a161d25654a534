"""The files of a model on their way into its store, and the last look before it is READY."""

from __future__ import annotations

import json
import platform
import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

from mlflow_scalpel.checkpoints.artifact_store import open_store
from mlflow_scalpel.checkpoints.lanes import Pulse
from mlflow_scalpel.checkpoints.layout import (
    MANIFEST,
    MLMODEL,
    POINTER,
)
from mlflow_scalpel.checkpoints.manifest import Manifest
from mlflow_scalpel.checkpoints.once import (
    fail,
    log_params,
)
from mlflow_scalpel.checkpoints.spool import CheckpointEntry
from mlflow_scalpel.credentials import without_credentials
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.server_errors import is_passing


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
        loader_module="mlflow_scalpel.checkpoints.generator",
        python_version=platform.python_version(),
    )
    path = folder / MLMODEL
    described.save(str(path))
    return path
