"""The base of checkpoints: stored once for each content, however many runs begin with it."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelInput

from mlflow_scalpel.checkpoints import artifacts
from mlflow_scalpel.checkpoints.artifact_store import open_store
from mlflow_scalpel.checkpoints.filing import store_files
from mlflow_scalpel.checkpoints.lanes import Pulse
from mlflow_scalpel.checkpoints.layout import (
    MANIFEST,
    check_whole,
    checkpoint_files,
)
from mlflow_scalpel.checkpoints.layouts import model_in
from mlflow_scalpel.checkpoints.manifest import Manifest, make_manifest, parse_manifest
from mlflow_scalpel.checkpoints.once import (
    made_before,
    make,
    register,
    search,
)
from mlflow_scalpel.checkpoints.resolve import files_of, hub_snapshot, model_id_of
from mlflow_scalpel.checkpoints.spool import CheckpointEntry
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.server_errors import is_final
from mlflow_scalpel.tensors.files import is_adapter

_bases: dict[tuple[int, str, str], str] = {}  # what each base turned out to be


def base_id(client: MlflowClient, base: str, run_id: str, pulse: Pulse) -> str:
    """ID of the model that `base` names, an input of the run from now on.

    Raises ScalpelError where there is none, and what MLflow raises where that cannot be told yet.
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

    What a process that was killed left PENDING is finished. Raises ScalpelError where it is no
    whole model.
    """
    pulse = pulse or Pulse()
    artifact = artifacts.split(source) is not None
    local = artifact or Path(source).is_dir()
    with pulse.busy():
        if artifact:
            directory = files_of(source)
        else:
            directory = model_in(Path(source)) if local else on_hub(source)
        check_whole(directory)
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
    begun = made_before(client, entry.job, experiment_id) if len(found) != bool(ready) else None
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


def on_hub(name: str) -> Path:
    repository, _, revision = name.partition("@")
    return hub_snapshot(repository, revision or None)
