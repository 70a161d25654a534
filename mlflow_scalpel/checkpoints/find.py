"""Finds checkpoints: those of a run in order, and a table of many runs'."""

from __future__ import annotations

import difflib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Experiment, LoggedModel, Metric, Run, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList

from mlflow_scalpel.checkpoints.deliver import MODEL_TYPE
from mlflow_scalpel.checkpoints.resolve import FAILURE, PRUNED
from mlflow_scalpel.errors import ScalpelError

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

_MODELS_A_PAGE = 500  # 2.6 MB with 15 metrics each; larger pages are no faster
_VERSIONS_A_PAGE = 10_000
_OTHERS_A_PAGE = 1000  # the most that a server gives of experiments and registered models
_IDS_A_FILTER = 200  # the server parses a filter in time that grows faster than its length

T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """A logged checkpoint of a run."""

    model_id: str
    step: int
    digest: str
    status: str
    """READY, PENDING, FAILED, or PRUNED once its files were deleted to free their bytes."""
    learning_rate_sum: float | None
    """Sum of the learning rates of all steps up to this one; None where nobody logged it."""
    reason: str | None = None
    """Why it is FAILED, or when it was PRUNED (ISO time); None else."""

    @property
    def uri(self) -> str:
        return f"models:/{self.model_id}"


@dataclass
class Registration:
    """What the registry says of one LoggedModel."""

    versions: list[ModelVersion] = field(default_factory=list)
    aliases: set[str] = field(default_factory=set)
    """Aliases of all its versions."""

    @property
    def newest(self) -> ModelVersion:
        """The version that was made last."""
        return max(self.versions, key=lambda known: (known.creation_timestamp, int(known.version)))


def checkpoints(
    experiment: str | None = None,
    run_id: str | Sequence[str] | None = None,
    model: str | None = None,
) -> pd.DataFrame:
    """A table of checkpoints: a row each, sorted by run (start time), then step.

    The base that a run began with (step 0) is not among them. With no argument: those of the active
    experiment, which is the one that `mlflow.set_experiment` chose, else that of the environment
    (MLFLOW_EXPERIMENT_NAME, MLFLOW_EXPERIMENT_ID), else MLflow's "Default".

    Columns: `algorithm`, `recipe`, `step`, `fraction` (of the run's max_steps; where nobody logged
    these, of the largest step that was found of the run), `learning_rate`, `dtype`, `state` (READY,
    PENDING, FAILED or PRUNED), `reason` (of FAILED), `bytes` (as logged; PRUNED ones hold none any
    more), `kind` (model, adapter or pointer), `uri`, `name` and `version` (of the newest registered
    version), `aliases` (of all its versions, joined by ", "), `run_id`, `run_name`, `model_id`,
    `base` (model ID), `digest`, `created` (UTC), then one column a metric that was logged with the
    model: the latest value at the model's step, or the latest at all where there is none at its
    step. A metric that is called as a column is has `metrics.` before its name.

    The number of requests does not depend on that of the checkpoints, but for a page for each 500.

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
        experiment_ids = [known.experiment_id for known in _experiments(client)]
    else:
        experiment_ids = [_active_experiment_id(client)]

    runs = {} if wanted is None else _wanted_runs(client, experiment_ids, wanted)
    # The registry is read while the server's answer about models, the largest, is taken apart.
    with ThreadPoolExecutor(1) as pool:
        registry = pool.submit(registrations, client, model)
        if wanted is not None:
            found = _search(client, experiment_ids, "source_run_id", wanted)
        elif model is not None:
            found = _search(client, experiment_ids, "model_id", list(registry.result()))
        else:
            found = _search(client, experiment_ids)
        if wanted is None:
            runs = _runs(client, found)
        registered = registry.result()
    if model is not None:
        found = [known for known in found if known.model_id in registered]
    return _table(found, runs, registered)


def checkpoints_of_run(run_id: str) -> tuple[Checkpoint | None, list[Checkpoint]]:
    """The base that the run began with (step 0), and its checkpoints in order of step.

    Two requests and one for each input model, however many checkpoints there are. The base is None
    where the run names none. Raises ScalpelError where there is no such run, or it has none.
    """
    base, found = models_of_run(run_id)
    return None if base is None else _checkpoint(base), [_checkpoint(model) for model in found]


def models_of_run(run_id: str) -> tuple[LoggedModel | None, list[LoggedModel]]:
    """As `checkpoints_of_run`, but MLflow's own LoggedModels."""
    client = MlflowClient()
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise ScalpelError(_no_such_run([run_id])) from error
    models = every(
        lambda token: client.search_logged_models(
            [run.info.experiment_id],
            filter_string=f"source_run_id = '{run_id}'",
            max_results=_MODELS_A_PAGE,
            page_token=token,
        )
    )
    found = sorted((model for model in models if step_of(model) > 0), key=_by_step)
    if not found:
        raise ScalpelError(
            f"run {run_id} ({run.info.run_name}) has logged no checkpoint; give the ID of a "
            "training run, as the UI's run page shows it"
        )
    inputs = run.inputs.model_inputs if run.inputs else []
    bases = [client.get_logged_model(entry.model_id) for entry in inputs]
    return next((model for model in bases if model.params.get("step") == "0"), None), found


def state_of(model: LoggedModel) -> str:
    """READY, PENDING, FAILED, or PRUNED once somebody began to delete its files."""
    return "PRUNED" if PRUNED in model.tags else str(model.status)


def step_of(model: LoggedModel) -> int:
    """The model's training step; 0 for a base, and for a model that is no checkpoint."""
    step = model.params.get("step", "0")
    return int(step) if step.isdecimal() else 0


def metrics_of(model: LoggedModel) -> dict[str, float]:
    """Each metric's latest value at the model's step, or at all where it has none there.

    (What MLflow's own evaluation logs lands at step 0, whatever the model's step.)
    """
    step = step_of(model)
    latest: dict[str, Metric] = {}
    for metric in sorted(model.metrics or [], key=lambda m: (m.step == step, m.timestamp, m.step)):
        latest[metric.key] = metric
    return {
        key: math.nan if metric.value is None else float(metric.value)
        for key, metric in latest.items()
    }


def registrations(client: MlflowClient, name: str | None = None) -> dict[str, Registration]:
    """Model ID -> versions and aliases, of every LoggedModel that is registered (under `name`).

    Two requests, and 0.2 ms for each version that the server holds: a version that was registered
    by hand does not know its run, so none can be asked for by run. Raises ScalpelError where there
    is no such registered model.
    """
    if name is None:
        where = "source_path LIKE 'models:/m-%'"
        models = every(
            lambda token: client.search_registered_models(
                max_results=_OTHERS_A_PAGE, page_token=token
            )
        )
    else:
        where = f'name = "{name}"' if "'" in name else f"name = '{name}'"
        models = [_registered_model(client, name)]
    versions = every(
        lambda token: client.search_model_versions(
            where, max_results=_VERSIONS_A_PAGE, page_token=token
        )
    )
    # A version that is found by searching does not carry its aliases; its registered model does.
    aliases = defaultdict(set)
    for model in models:
        for alias, number in model.aliases.items():
            aliases[model.name, int(number)].add(alias)
    found: dict[str, Registration] = defaultdict(Registration)
    for version in versions:
        # A version's model_id is not filled in by every store, but its source names the model.
        model_id = version.model_id or str(version.source).removeprefix("models:/").rstrip("/")
        if re.fullmatch(r"m-[0-9a-f]{32}", model_id):  # else its source is a mere directory
            found[model_id].versions.append(version)
            found[model_id].aliases |= aliases[version.name, int(version.version)]
    return dict(found)


def readable_bytes(count: int) -> str:
    """Bytes for people, in units of a thousand: 1.2 GB."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def find_experiment(client: MlflowClient, name_or_id: str) -> Experiment:
    """The experiment of that name, else ID; raises ScalpelError with near names for neither."""
    found = client.get_experiment_by_name(name_or_id)
    if found is not None:
        return found
    experiments = _experiments(client)
    for known in experiments:
        if known.experiment_id == name_or_id:
            return known
    raise ScalpelError(
        f"experiment {name_or_id!r}: there is none of that name or ID at "
        f"{mlflow.get_tracking_uri()}; {_near(name_or_id, [known.name for known in experiments])}"
    )


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


def check_run_id(run_id: str) -> None:
    """Raise ScalpelError where the text is no run's ID."""
    if not re.fullmatch(r"[0-9a-f]{32}", run_id):
        raise ScalpelError(
            f"run {run_id!r}: is no run ID, which has 32 hexadecimal digits; copy it from the UI's "
            "run page"
        )


def every(page: Callable[[str | None], PagedList[T]]) -> list[T]:
    """The results of all pages; `page` takes a token and asks for the page that it stands for."""
    results = page(None)
    found = list(results)
    while results.token:
        results = page(results.token)
        found += results
    return found


def _search(
    client: MlflowClient,
    experiment_ids: list[str],
    attribute: str | None = None,
    values: Sequence[str] = (),
) -> list[LoggedModel]:
    """All checkpoints but bases; with `attribute` those where it is one of the values."""
    filters = [f"model_type = '{MODEL_TYPE}' AND params.step != '0'"]
    if attribute is not None:
        filters = [f"{filters[0]} AND {attribute} IN {part}" for part in _in_parts(values)]
    # By ID, because pages shift while somebody logs.
    found = {
        model.model_id: model
        for where in filters
        for model in every(
            lambda token, where=where: client.search_logged_models(  # type: ignore[misc]
                experiment_ids, filter_string=where, max_results=_MODELS_A_PAGE, page_token=token
            )
        )
    }
    return [model for model in found.values() if step_of(model) > 0]


def _wanted_runs(
    client: MlflowClient, experiment_ids: list[str], run_ids: list[str]
) -> dict[str, Run]:
    runs = _runs_by_id(client, experiment_ids, run_ids)
    if missing := [run_id for run_id in run_ids if run_id not in runs]:
        raise ScalpelError(_no_such_run(missing))
    return runs


def _runs(client: MlflowClient, models: Iterable[LoggedModel]) -> dict[str, Run]:
    """The runs that the models come from, by ID."""
    run_ids = {model.source_run_id: model.experiment_id for model in models if model.source_run_id}
    return _runs_by_id(client, sorted(set(run_ids.values())), sorted(run_ids))


def _runs_by_id(
    client: MlflowClient, experiment_ids: list[str], run_ids: Sequence[str]
) -> dict[str, Run]:
    return {
        run.info.run_id: run
        for part in _in_parts(run_ids)
        for run in every(
            lambda token, part=part: client.search_runs(  # type: ignore[misc]
                experiment_ids,
                f"attributes.run_id IN {part}",
                run_view_type=ViewType.ALL,
                max_results=_OTHERS_A_PAGE,
                page_token=token,
            )
        )
    }


def _experiments(client: MlflowClient) -> list[Experiment]:
    return every(
        lambda token: client.search_experiments(max_results=_OTHERS_A_PAGE, page_token=token)
    )


def _registered_model(client: MlflowClient, name: str) -> Any:
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        names = [
            known.name
            for known in every(
                lambda token: client.search_registered_models(
                    max_results=_OTHERS_A_PAGE, page_token=token
                )
            )
        ]
        raise ScalpelError(
            f"registered model {name!r}: there is none at {mlflow.get_registry_uri()}; "
            f"{_near(name, names)}"
        ) from error


def _in_parts(values: Sequence[str]) -> Iterator[str]:
    """The values as lists of a filter's IN, a few hundred each."""
    for start in range(0, len(values), _IDS_A_FILTER):
        yield "(" + ", ".join(f"'{v}'" for v in values[start : start + _IDS_A_FILTER]) + ")"


def _near(name: str, names: Sequence[str]) -> str:
    """What to say of the names that there are, where one was not found."""
    if not names:
        return "there is none at all; check MLFLOW_TRACKING_URI"
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    some = ", ".join(sorted(names)[:10])
    return f"there are {some}{' ...' if len(names) > 10 else ''}; or check MLFLOW_TRACKING_URI"


def _no_such_run(run_ids: Sequence[str]) -> str:
    return (
        f"run {', '.join(run_ids)}: there is no such run at {mlflow.get_tracking_uri()}; "
        "copy the ID from the UI's run page, and check MLFLOW_TRACKING_URI"
    )


def _by_step(model: LoggedModel) -> tuple[int, int]:
    return step_of(model), model.creation_timestamp


def _checkpoint(model: LoggedModel) -> Checkpoint:
    rates = model.params.get("learning_rate_sum")
    return Checkpoint(
        model_id=model.model_id,
        step=step_of(model),
        digest=model.params.get("digest", ""),
        status=state_of(model),
        learning_rate_sum=float(rates) if rates else None,
        reason=model.tags.get(PRUNED) or model.tags.get(FAILURE),
    )


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
            *_by_step(model),
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
    whole = next((count for count in steps if count > 0), float(largest))
    version = registered.newest if registered else None
    return {
        "algorithm": params.get("algorithm", run_params.get("algorithm")),
        "recipe": params.get("recipe", run_params.get("recipe")),
        "step": step,
        "fraction": step / whole,
        "learning_rate": _number(params.get("learning_rate")),
        "dtype": params.get("dtype", run_params.get("weights_dtype")),
        "state": state_of(model),
        "reason": model.tags.get(FAILURE) if str(model.status) == "FAILED" else None,
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
