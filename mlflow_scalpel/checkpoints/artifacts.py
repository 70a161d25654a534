"""Checkpoints among a run's artifacts (`runs:/RUN/path`), where somebody logged them as files."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_scalpel.checkpoints import cache
from mlflow_scalpel.checkpoints.artifact_store import open_store
from mlflow_scalpel.checkpoints.layout import is_inner_name
from mlflow_scalpel.checkpoints.search import made_by
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.server_errors import check_answered

_ARTIFACT = re.compile(r"runs:/(?P<run>[0-9a-f]{32})/(?P<path>[^#]+)")


def split(source: str) -> tuple[str, str] | None:
    """Run ID and path of `runs:/RUN/path`; None for any other address."""
    named = _ARTIFACT.fullmatch(source)
    return (named["run"], named["path"].rstrip("/")) if named else None


def model_of(run_id: str, path: str) -> str | None:
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


def artifact_directory(run_id: str, path: str) -> Path:
    """The directory of a run's artifact, in its local store or brought into the cache.

    Raises ScalpelError where there is no such directory, or it cannot be had.
    """
    shown = f"runs:/{run_id}/{path}"
    if not is_inner_name(path):
        raise ScalpelError(f"model = {shown}: leads out of the run's artifacts; name one of them")
    store = open_store(f"{MlflowClient().get_run(run_id).info.artifact_uri}/{path}")
    try:
        sizes = store.sizes()
    except (MlflowException, OSError) as error:
        raise ScalpelError(f"model = {shown}: cannot be read ({error}); check the path") from error
    if not sizes:
        raise ScalpelError(
            f"model = {shown}: the run has no model of that name, and no such folder among its "
            "artifacts; look at the artifacts on the run's page"
        )
    if store.local is not None:
        return store.local

    def fill(partial: Path) -> None:
        for name in sizes:
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            store.fetch(name, target)
        cache.protect(partial)

    seen = hashlib.sha256(repr((shown, sorted(sizes.items()))).encode()).hexdigest()
    try:
        return cache.keep(f"artifacts-{seen}", sum(sizes.values()), fill)
    except (MlflowException, OSError) as error:
        raise ScalpelError(
            f"model = {shown}: could not be fetched ({type(error).__name__}: {error}); try again"
        ) from error
