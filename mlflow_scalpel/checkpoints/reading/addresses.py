"""From what a user calls a model (models:/ or runs:/ URI, model ID) to its LoggedModel."""

from __future__ import annotations

import re

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException

from mlflow_scalpel.checkpoints.artifact_store import Store, open_store
from mlflow_scalpel.checkpoints.search import PRUNED_TAG, made_by, models_of_run, state_of, step_of
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.run_warnings import FAILURE_TAG
from mlflow_scalpel.server_errors import check_answered

_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")
_RUN = re.compile(r"runs:/(?P<run>[\w-]+)(?:#(?P<which>last|step=\d+))?")
_ARTIFACT = re.compile(r"runs:/(?P<run>[0-9a-f]{32})/(?P<path>[^#]+)")


def is_model_id(source: str) -> bool:
    """Whether the text is a LoggedModel's ID."""
    return _MODEL_ID.fullmatch(source) is not None


def model_id_of(source: str) -> str | None:
    """The LoggedModel ID behind `source`; None for a directory, a hub name or a run's artifacts.

    Understood are `m-...`, `models:/m-...`, `models:/NAME/VERSION`, `models:/NAME/latest`,
    `models:/NAME@ALIAS`, `runs:/RUN/NAME` (a model of that run), `runs:/RUN#step=N` (0 is the run's
    base) and `runs:/RUN#last` (the READY checkpoint of the largest step). Raises ScalpelError where
    there is no such model or version.
    """
    if _MODEL_ID.fullmatch(source):
        return source
    artifact = split_artifact(source)
    if artifact is not None:
        return _model_of_artifact(*artifact)
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
            f"{version.source}, which is not a LoggedModel; log it with MLflow 3 and register that"
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


def store_of(model: LoggedModel) -> Store:
    """The store of the model's files; raises ScalpelError where this machine cannot reach it."""
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


def _model_of_run(source: str) -> str:
    named = _RUN.fullmatch(source)
    if named is None or named["which"] is None:
        what = "names all checkpoints of the run" if named else "is not the address of a checkpoint"
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
    """The steps of a run, for an error."""
    steps: dict[str, list[str]] = {}
    for model in found:
        steps.setdefault(state_of(model), []).append(str(step_of(model)))
    ready = ", ".join(steps.pop("READY", [])) or "none"
    others = "".join(f"; {state}: {', '.join(numbers)}" for state, numbers in steps.items())
    return f"the run has no such checkpoint to read; the steps that can be read: {ready}{others}"


def split_artifact(source: str) -> tuple[str, str] | None:
    """Run ID and path of `runs:/RUN/path`; None for any other address."""
    named = _ARTIFACT.fullmatch(source)
    return (named["run"], named["path"].rstrip("/")) if named else None


def _model_of_artifact(run_id: str, path: str) -> str | None:
    """ID of the LoggedModel that the run logged under that name, which MLflow 3 addresses so."""
    client = MlflowClient()
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        check_answered(error)
        raise ScalpelError(
            f"model = runs:/{run_id}/{path}: there is no such run at "
            f"{mlflow.get_tracking_uri()} ({error}); copy the ID from the UI's run page"
        ) from error
    named = [model for model in made_by(client, run) if model.name == path]
    newest = max(named, key=lambda model: model.creation_timestamp, default=None)
    return str(newest.model_id) if newest else None
