"""From what a user calls a model (directory, hub name, models:/ or runs:/ URI) to its files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException

from mlflow_scalpel.checkpoints import artifacts
from mlflow_scalpel.checkpoints.artifact_store import Store, open_store
from mlflow_scalpel.checkpoints.flavours import opened
from mlflow_scalpel.checkpoints.gguf import unpacked
from mlflow_scalpel.checkpoints.layout import (
    FAILURE_TAG,
    KEPT,
    MANIFEST,
    POINTER,
    PRUNED_TAG,
    checkpoint_files,
)
from mlflow_scalpel.checkpoints.layouts import model_in
from mlflow_scalpel.checkpoints.manifest import read_manifest
from mlflow_scalpel.checkpoints.search import models_of_run, state_of, step_of
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.server_errors import check_answered
from mlflow_scalpel.tensors.files import is_adapter

# Code too, since a snapshot is whole or not; it is run for nobody who does not ask for it.
_SAFE_FILES = (*(f"*{suffix}" for suffix in KEPT), "*.py")
_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")
_RUN = re.compile(r"runs:/(?P<run>[\w-]+)(?:#(?P<which>last|step=\d+))?")


def is_model_id(source: str) -> bool:
    """Whether the text is a LoggedModel's ID."""
    return _MODEL_ID.fullmatch(source) is not None


def model_id_of(source: str) -> str | None:
    """The LoggedModel ID behind `source`; None for a directory, a hub name or a run's artifacts.

    Understood are `m-...`, `models:/m-...`, `models:/NAME/VERSION`, `models:/NAME/latest`,
    `models:/NAME@ALIAS`, `runs:/RUN/NAME` (a model of that run), `runs:/RUN#step=N` (0 is the run's
    base) and `runs:/RUN#last` (the READY
    checkpoint of the largest step). Raises ScalpelError where there is no such model or version.
    """
    if _MODEL_ID.fullmatch(source):
        return source
    artifact = artifacts.split(source)
    if artifact is not None:
        return artifacts.model_of(*artifact)
    if source.startswith("runs:"):
        return _model_of_run(source)
    if not source.startswith("models:/"):
        return None
    rest = source.removeprefix("models:/")
    if _MODEL_ID.fullmatch(rest):
        return rest
    client = MlflowClient()
    try:
        if "@" in rest:
            version = client.get_model_version_by_alias(*rest.rsplit("@", 1))
        else:
            name, number = rest.rsplit("/", 1)
            if number == "latest":
                # By number: the store's own order puts first what was changed last.
                versions = client.search_model_versions(
                    f"name = '{name}'", max_results=1, order_by=["version_number DESC"]
                )
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
        check_answered(error)
        raise ScalpelError(
            f"model = {source}: {error}; write models:/NAME/VERSION, models:/NAME@ALIAS, "
            "models:/NAME/latest or models:/m-..."
        ) from error
    # A version's model_id is not filled in by every store, but its source always names the model.
    found = version.model_id or str(version.source).removeprefix("models:/").rstrip("/")
    if not _MODEL_ID.fullmatch(found):
        raise ScalpelError(
            f"model = {source}: version {version.version} of {version.name} points to "
            f"{version.source}, which is no LoggedModel; log it with MLflow 3 and register that"
        )
    return found


def expand(source: str) -> list[str]:
    """The checkpoints that `source` names: for `runs:/RUN` all that can be read, by step.

    Anything else names one, and is given back as it is. Raises ScalpelError where there is no such
    run, or nothing to read in it.
    """
    named = _RUN.fullmatch(source)
    if named is None or named["which"] is not None:
        return [source]
    _, found = models_of_run(named["run"])
    readable = [f"models:/{model.model_id}" for model in found if state_of(model) == "READY"]
    if not readable:
        raise ScalpelError(f"model = {source}: {_what_there_is(found)}")
    return readable


def resolve(source: str) -> Path:
    """A local directory with the files of the model `source`, for reading only.

    Takes what `stored_files` does. An adapter gives the directory of its base with the adapter
    merged into it, in the base's dtype.

    Raises ScalpelError where the model does not exist, is not READY, was pruned, or is not whole.
    """
    # Here, because it builds on this module.
    from mlflow_scalpel.checkpoints.adapters import merged_with_base

    directory, model = stored_files(source)
    return merged_with_base(directory, model) if is_adapter(directory) else directory


def stored_files(source: str) -> tuple[Path, LoggedModel | None]:
    """A local directory with the files of `source` as they are stored, and its LoggedModel.

    Takes what `model_id_of` does, a directory or GGUF file, a folder of a run's artifacts
    (`runs:/RUN/path`), or a hub name (`org/name`, `org/name@revision`). A local artifact store is
    read in place, a remote one through the cache. An adapter's are the adapter's alone, a GGUF
    file's those of its numbers.

    Raises ScalpelError where the model does not exist, is not READY, was pruned, or is not whole.
    """
    from mlflow_scalpel.checkpoints.pull import cached

    model_id = model_id_of(source)
    if model_id is None:
        directory = files_of(source)
        checkpoint_files(directory)
        return directory, None
    model = readable_model(model_id)
    store = store_of(model)
    directory = cached(model, store) if store.local is None else _in_place(model, store.local)
    pointer = directory / POINTER
    if pointer.is_file():
        directory = snapshot_of(pointer)
    elif not (directory / MANIFEST).is_file():  # MLflow itself stored it
        directory = model_in(opened(directory))
    return directory, model


def files_of(source: str) -> Path:
    """The model's directory where `source` is no LoggedModel: a directory, artifacts, or the hub.

    A directory may be a trainer's, with the model within it, or what an MLflow flavour wrote.
    Raises ScalpelError where there is no such model, or several.
    """
    artifact = artifacts.split(source)
    if artifact is not None:
        return model_in(opened(artifacts.artifact_directory(*artifact)))
    local = unpacked(Path(source))
    return model_in(opened(local)) if local.is_dir() else hub_snapshot(source)


def readable_model(model_id: str) -> LoggedModel:
    """The LoggedModel; raises ScalpelError where it is not there, not READY, or was pruned."""
    try:
        model = MlflowClient().get_logged_model(model_id)
    except MlflowException as error:
        check_answered(error)
        raise ScalpelError(
            f"model {model_id}: {error.message}; the tracking store is "
            f"{mlflow.get_tracking_uri()}: is it there that the model was logged?"
        ) from error
    instead = f", such as runs:/{model.source_run_id}#last" if model.source_run_id else ""
    pruned = model.tags.get(PRUNED_TAG)
    if pruned is not None:
        raise ScalpelError(
            f"model {model_id} ({model.name}) was pruned at {pruned}: its metrics are kept, its "
            f"files are gone; take another checkpoint{instead}"
        )
    if model.status != "READY":
        unknown = {
            "PENDING": "its upload has not ended: wait for it",
            "FAILED": "logging it failed, and nobody noted why: log it again",
        }
        reason = model.tags.get(FAILURE_TAG) or unknown.get(model.status, "it cannot be read yet")
        raise ScalpelError(
            f"model {model_id} ({model.name}) is {model.status}: {reason}; take another checkpoint"
            f"{instead}"
        )
    return model


def hub_snapshot(
    name: str, revision: str | None = None, files: Sequence[str] = _SAFE_FILES
) -> Path:
    """The hub model's files in the local hub cache, downloaded where they are missing.

    Args:
        name: `org/name`, or `org/name@revision`.
        revision: branch, tag or commit, instead of one in the name; the main branch if neither.
        files: names or patterns of what is needed.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, named = name.partition("@")
    revision = revision or named or None
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ScalpelError(
            f"model = {name}: is neither a local directory nor a model that could be had from the "
            f"hub ({type(error).__name__}: {error}); check the name, the network, and HF_TOKEN "
            "where the model is gated"
        ) from error


def snapshot_of(pointer: Path, files: Sequence[str] = _SAFE_FILES) -> Path:
    """The hub snapshot that a stored `pointer.json` names, at the commit that it names."""
    try:
        named = json.loads(pointer.read_bytes())
        repository, revision = str(named["repository"]), str(named["revision"])
    except (ValueError, KeyError, TypeError) as error:
        raise ScalpelError(
            f"{pointer}: names no hub model ({type(error).__name__}: {error}); log the base again"
        ) from error
    return hub_snapshot(repository, revision, files)


def store_of(model: LoggedModel) -> Store:
    """Where the model's files are; raises ScalpelError where this machine cannot reach them."""
    try:
        store = open_store(model.artifact_location)
    except MlflowException as error:
        raise ScalpelError(
            f"model {model.model_id} ({model.name}): its files are at {model.artifact_location}, "
            f"which cannot be read from here: {error.message}"
        ) from error
    if store.local is not None and not store.local.is_dir():
        raise ScalpelError(
            f"model {model.model_id} ({model.name}): its files are at {model.artifact_location}, "
            "and this machine has no such directory; read it where it was logged, or log through "
            "a server that passes files on (`mlflow server --artifacts-destination ...`)"
        )
    return store


def _in_place(model: LoggedModel, directory: Path) -> Path:
    """The model's local store, all there by names and sizes; no file is read."""
    manifest = read_manifest(directory)
    pointed = (directory / POINTER).is_file()
    for name, described in manifest.files.items() if manifest and not pointed else ():
        file = directory / name
        if file.is_symlink():
            raise ScalpelError(f"{file}: is a link, and a stored file never is; it is not read")
        size = file.stat().st_size if file.is_file() else None
        if size != described.bytes:
            has = "is missing" if size is None else f"has {size} bytes, not {described.bytes}"
            raise ScalpelError(
                f"{file}: {has}: model {model.model_id} is damaged; put the file back from a "
                "copy, or log the checkpoint again"
            )
    return directory


def _model_of_run(source: str) -> str:
    named = _RUN.fullmatch(source)
    if named is None or named["which"] is None:
        what = "names all checkpoints of the run" if named else "is no address of a checkpoint"
        run = named["run"] if named else "RUN"
        raise ScalpelError(
            f"model = {source}: {what}, and one is wanted here; write runs:/{run}#last or "
            f"runs:/{run}#step=N (0 is the base)"
        )
    base, found = models_of_run(named["run"])
    wanted = named["which"]
    if wanted == "step=0":
        if base is None:
            raise ScalpelError(
                f"model = {source}: the run names no base; give the base itself "
                "(directory, hub name or models:/ URI)"
            )
        return str(base.model_id)
    readable = [
        model
        for model in found
        if state_of(model) == "READY" and wanted in ("last", f"step={step_of(model)}")
    ]
    if not readable:
        raise ScalpelError(f"model = {source}: {_what_there_is(found)}")
    return str(readable[-1].model_id)


def _what_there_is(found: list[LoggedModel]) -> str:
    """Which steps of a run there are, for an error."""
    steps: dict[str, list[str]] = {}
    for model in found:
        steps.setdefault(state_of(model), []).append(str(step_of(model)))
    ready = ", ".join(steps.pop("READY", [])) or "none"
    others = "".join(f"; {state}: {', '.join(numbers)}" for state, numbers in steps.items())
    return f"the run has no such checkpoint to read; the steps that can be read: {ready}{others}"
