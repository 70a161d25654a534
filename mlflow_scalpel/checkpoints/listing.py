"""A table of checkpoints of many runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME
from mlflow.exceptions import MlflowException

from mlflow_scalpel.checkpoints.search import (
    NOTE_TAG,
    Registration,
    all_experiments,
    by_step,
    check_run_id,
    find_experiment,
    metrics_of,
    registrations,
    runs_of,
    search_models,
    state_of,
    step_of,
    wanted_runs,
)
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.run_warnings import FAILURE_TAG

# What each column of the table holds. (`object` columns hold text, or None where it is not known.)
COLUMNS = {
    "algorithm": "object",
    "recipe": "object",
    "step": "int64",
    "fraction": "float64",
    "learning_rate": "float64",
    "dtype": "object",
    "state": "object",
    "reason": "object",
    "note": "object",
    "bytes": "Int64",
    "kind": "object",
    "uri": "object",
    "name": "object",
    "version": "Int64",
    "aliases": "object",
    "run_id": "object",
    "run_name": "object",
    "model_id": "object",
    "base": "object",
    "digest": "object",
    "created": "datetime64[ms, UTC]",
}


def list_checkpoints(
    experiment: str | None = None,
    run_id: str | Sequence[str] | None = None,
    model: str | None = None,
) -> pd.DataFrame:
    """A table of checkpoints: one row per checkpoint, sorted by run (start time), then step.

    The base that a run began with (step 0) is not among them. With no argument: those of the active
    experiment, which is the one that `mlflow.set_experiment` chose, else that of the environment
    (MLFLOW_EXPERIMENT_NAME, MLFLOW_EXPERIMENT_ID), else MLflow's "Default".

    Columns: `algorithm`, `recipe`, `step`, `fraction` (of the run's max_steps; where nobody logged
    these, of the largest step that was found of the run), `learning_rate`, `dtype`, `state` (READY,
    PENDING, FAILED or PRUNED), `reason` (of FAILED), `note` (how it differs from its base, and what
    of its directory is not stored), `bytes` (as logged; PRUNED ones hold none any more),
    `kind` (model, adapter or pointer), `uri`, `name` and `version` (of the newest registered
    version), `aliases` (of all its versions, joined by ", "), `run_id`, `run_name`, `model_id`,
    `base` (model ID), `digest`, `created` (UTC), then one column per metric that was logged with
    the model: the latest value at the model's step, or the latest at all where there is none at its
    step. A metric that is called as a column is has `metrics.` before its name.

    The number of requests does not depend on that of the checkpoints, but for a page per 500.

    Args:
        experiment: name or ID.
        run_id: one run or several.
        model: name of a registered model; `version` and `aliases` then are of this one.

    Raises:
        ScalpelError: there is no such experiment, run or registered model.
    """
    client = MlflowClient()
    wanted = None if run_id is None else [run_id] if isinstance(run_id, str) else list(run_id)
    for given in wanted or []:
        check_run_id(given)
    if experiment is not None:
        experiment_ids = [find_experiment(client, experiment).experiment_id]
    elif wanted is not None or model is not None:
        experiment_ids = [known.experiment_id for known in all_experiments(client)]
    else:
        experiment_ids = [_active_experiment_id(client)]

    runs = {} if wanted is None else wanted_runs(client, experiment_ids, wanted)
    # The registry is read while the server's answer about models, the largest, is taken apart.
    with ThreadPoolExecutor(1) as pool:
        registry = pool.submit(registrations, client, model)
        if wanted is not None:
            found = search_models(client, experiment_ids, "source_run_id", wanted)
        elif model is not None:
            found = search_models(client, experiment_ids, "model_id", list(registry.result()))
        else:
            found = search_models(client, experiment_ids)
        if wanted is None:
            runs = runs_of(client, found)
        registered = registry.result()
    if model is not None:
        found = [known for known in found if known.model_id in registered]
    return _table(found, runs, registered)


def _active_experiment_id(client: MlflowClient) -> str:
    from mlflow.tracking import fluent

    name = MLFLOW_EXPERIMENT_NAME.get()
    if name and not fluent._active_experiment_id:
        # MLflow would create what is not there.
        return str(find_experiment(client, name).experiment_id)
    try:
        return str(fluent._get_experiment_id())
    except MlflowException as error:
        raise ScalpelError(f"the active experiment cannot be had: {error.message}") from error


def _table(
    models: Sequence[LoggedModel],
    runs: Mapping[str, Run],
    registered: Mapping[str, Registration],
) -> pd.DataFrame:
    largest: dict[str | None, int] = defaultdict(int)
    for model in models:
        largest[model.source_run_id] = max(largest[model.source_run_id], step_of(model))

    def order(model: LoggedModel) -> tuple[Any, ...]:
        run = runs.get(str(model.source_run_id))
        return (
            run.info.start_time if run else math.inf,
            model.source_run_id or "",
            *by_step(model),
        )

    known, measured = [], []
    for model in sorted(models, key=order):
        run = runs.get(str(model.source_run_id))
        known.append(_row(model, run, registered.get(model.model_id), largest[model.source_run_id]))
        measured.append(metrics_of(model))
    columns = {
        column: pd.Series([row[column] for row in known], dtype=dtype)
        for column, dtype in COLUMNS.items()
    }
    for metric in sorted({key for values in measured for key in values}):
        name = f"metrics.{metric}" if metric in COLUMNS else metric
        columns[name] = pd.Series([row.get(metric, math.nan) for row in measured], dtype="float64")
    return pd.DataFrame(columns)


def _row(
    model: LoggedModel, run: Run | None, registered: Registration | None, largest: int
) -> dict[str, Any]:
    params = model.params
    run_params = run.data.params if run else {}
    step = step_of(model)
    # Transformers' default of max_steps is -1: as many as the epochs have.
    steps = [_number(params.get("max_steps")), _number(run_params.get("max_steps"))]
    length = next((count for count in steps if count > 0), float(largest))
    version = registered.newest if registered else None
    return {
        "algorithm": params.get("algorithm", run_params.get("algorithm")),
        "recipe": params.get("recipe", run_params.get("recipe")),
        "step": step,
        "fraction": step / length,
        "learning_rate": _number(params.get("learning_rate")),
        "dtype": params.get("dtype", run_params.get("weights_dtype")),
        "state": state_of(model),
        "reason": model.tags.get(FAILURE_TAG) if str(model.status) == "FAILED" else None,
        "note": model.tags.get(NOTE_TAG),
        "bytes": int(size) if (size := params.get("bytes", "")).isdecimal() else None,
        "kind": params.get("kind"),
        "uri": f"models:/{model.model_id}",
        "name": version.name if version else None,
        "version": int(version.version) if version else None,
        "aliases": ", ".join(sorted(registered.aliases)) if registered else "",
        "run_id": model.source_run_id,
        "run_name": run.info.run_name if run else None,
        "model_id": model.model_id,
        "base": params.get("base"),
        "digest": params.get("digest"),
        "created": pd.Timestamp(model.creation_timestamp, unit="ms", tz="UTC"),
    }


def _number(text: str | None) -> float:
    """The number that a param says; NaN for none."""
    try:
        return math.nan if text is None else float(text)
    except ValueError:
        return math.nan
