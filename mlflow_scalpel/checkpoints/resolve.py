"""From what a user calls a model (directory, hub name, models:/ URI) to a directory of files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_scalpel.checkpoints.layout import POINTER, checkpoint_files
from mlflow_scalpel.errors import ScalpelError

_SAFE_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]


def model_id_of(source: str) -> str | None:
    """The LoggedModel ID behind `m-...` or any models:/ URI; None for a directory or hub name.

    Raises ScalpelError where the registry has no such model or version.
    """
    if re.fullmatch(r"m-[0-9a-f]{32}", source):
        return source
    if not source.startswith("models:/"):
        return None
    rest = source.removeprefix("models:/")
    if re.fullmatch(r"m-[0-9a-f]{32}", rest):
        return rest
    client = MlflowClient()
    try:
        if "@" in rest:
            version = client.get_model_version_by_alias(*rest.rsplit("@", 1))
        else:
            name, number = rest.rsplit("/", 1)
            if number == "latest":
                versions = client.search_model_versions(f"name = '{name}'", max_results=1)
                if not versions:
                    raise ScalpelError(
                        f"model = {source}: no version of {name} is registered at "
                        f"{mlflow.get_tracking_uri()}; make one first "
                        "(the embedded base: `mlflow run . -e base`), or name another model"
                    )
                version = versions[0]
            else:
                version = client.get_model_version(name, number)
    except (MlflowException, ValueError) as error:
        raise ScalpelError(
            f"model = {source}: {error}; write models:/NAME/VERSION, models:/NAME@ALIAS, "
            "models:/NAME/latest or models:/m-..."
        ) from error
    # A version's model_id is not filled in by every store, but its source always names the model.
    return version.model_id or str(version.source).removeprefix("models:/").rstrip("/")


def resolve(source: str) -> Path:
    """A local directory with the files of the model `source`, for reading only.

    A local artifact store is read in place; a remote one is downloaded to a temporary directory.
    Raises ScalpelError where the model does not exist or is not READY.
    """
    model_id = model_id_of(source)
    if model_id is not None:
        return _logged_directory(model_id)
    directory = Path(source)
    if directory.is_dir():
        checkpoint_files(directory)
        return directory
    return hub_snapshot(source)


def hub_snapshot(name: str, revision: str | None = None) -> Path:
    """The hub model's files in the local hub cache, downloaded where they are missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_SAFE_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ScalpelError(
            f"model = {name}: is neither a local directory nor a model that could be had from the "
            f"hub ({type(error).__name__}: {error}); check the name, the network, and HF_TOKEN "
            "where the model is gated"
        ) from error


def _logged_directory(model_id: str) -> Path:
    model = MlflowClient().get_logged_model(model_id)
    if model.status != "READY":
        reason = model.tags.get("scalpel.failure", "its upload has not ended")
        raise ScalpelError(f"model {model_id} ({model.name}) is {model.status}: {reason}")
    directory = Path(mlflow.artifacts.download_artifacts(f"models:/{model_id}"))
    pointer = directory / POINTER
    if pointer.is_file():
        where = json.loads(pointer.read_text())
        return hub_snapshot(where["repository"], where["revision"])
    return directory
