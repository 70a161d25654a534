"""Finds checkpoints, their runs and their versions, in a small number of requests."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import mlflow
from mlflow import MlflowClient
from mlflow.entities import (
    Experiment,
    LoggedModel,
    Metric,
    Run,
    ViewType,
)
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.run_warnings import FAILURE_TAG
from mlflow_scalpel.server_errors import check_answered

# The mark of a LoggedModel that is one of ours, and its tags.
MODEL_TYPE = "checkpoint"
NOTE_TAG = "scalpel.note"  # how it differs from its base, and what of its directory is not stored
PRUNED_TAG = "scalpel.pruned"  # when its bytes were freed (ISO time)
JOB_TAG = "scalpel.job"  # the upload that created it
FINGERPRINT_TAG = "scalpel.files"  # of the files that were logged: names, sizes, times

LARGEST_STEP = 2**63 - 1  # what stores keep of a metric's step
_MODELS_PER_PAGE = 500  # 2.6 MB with 15 metrics each; larger pages are no faster
_VERSIONS_PER_PAGE = 10_000
_OTHERS_PER_PAGE = 1000  # the most that a server gives of experiments and registered models
_IDS_PER_FILTER = 200  # the server parses a filter in time that grows faster than its length
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
    """The reason of FAILED, or the time of PRUNED (ISO); None else."""

    @property
    def uri(self) -> str:
        return f"models:/{self.model_id}"


@dataclass
class Registration:
    """The registered versions of one LoggedModel."""

    versions: list[ModelVersion] = field(default_factory=list)
    aliases: set[str] = field(default_factory=set)
    """Aliases of all its versions."""

    @property
    def newest(self) -> ModelVersion:
        """The version that was made last."""
        return max(self.versions, key=lambda known: (known.creation_timestamp, int(known.version)))


def checkpoints_of_run(run_id: str) -> tuple[Checkpoint | None, list[Checkpoint]]:
    """The base that the run began with (step 0), and its checkpoints in order of step.

    Two requests and one for each input model, however many checkpoints there are. The base is None
    where neither the run nor a checkpoint names one. Raises ScalpelError where there is no such
    run, or it has none.
    """
    base, found = models_of_run(run_id)
    return None if base is None else _checkpoint(base), [_checkpoint(model) for model in found]


def models_of_run(run_id: str) -> tuple[LoggedModel | None, list[LoggedModel]]:
    """As `checkpoints_of_run`, but MLflow's own LoggedModels."""
    client = MlflowClient()
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        check_answered(error)
        raise ScalpelError(_no_such_run([run_id])) from error
    models = made_by(client, run)
    found = sorted((model for model in models if step_of(model) > 0), key=by_step)
    if not found:
        raise ScalpelError(
            f"run {run_id} ({run.info.run_name}) has logged no checkpoint; give the ID of a "
            "training run, as the UI's run page shows it"
        )
    inputs = run.inputs.model_inputs if run.inputs else []
    bases = [client.get_logged_model(entry.model_id) for entry in inputs]
    base = next((model for model in bases if model.params.get("step") == "0"), None)
    if base is None and "base" in found[-1].params:  # a checkpoint says it, and the run does not
        base = client.get_logged_model(found[-1].params["base"])
    return base, found


def made_by(client: MlflowClient, run: Run) -> list[LoggedModel]:
    """All LoggedModels that a run has made, in no order; a request for each 500."""
    return every(
        lambda token: client.search_logged_models(
            [run.info.experiment_id],
            filter_string=f"source_run_id = '{run.info.run_id}'",
            max_results=_MODELS_PER_PAGE,
            page_token=token,
        )
    )


def state_of(model: LoggedModel) -> str:
    """READY, PENDING, FAILED, or PRUNED once somebody began to delete its files."""
    return "PRUNED" if PRUNED_TAG in model.tags else str(model.status)


def checked_step(step: int) -> int:
    """The step as an int; raises ScalpelError where no store could keep it."""
    try:
        number = operator.index(step)
    except TypeError as error:
        raise ScalpelError(
            f"step {step!r}: is not a whole number; give the training step as an int"
        ) from error
    if not 0 <= number <= LARGEST_STEP:
        raise ScalpelError(
            f"step {number}: is not from 0 to {LARGEST_STEP}; give the training step"
        )
    return number


def checked_name(name: str | None) -> str | None:
    """Name of a registered model, or None; raises ScalpelError where MLflow would refuse it."""
    if name is not None and (not name.strip() or "/" in name or ":" in name):
        raise ScalpelError(
            f"registered model {name!r}: MLflow takes no empty name, and none with '/' or ':'; "
            "give another"
        )
    return name


def step_of(model: LoggedModel) -> int:
    """The model's training step; 0 for a base, and for a model that is not a checkpoint."""
    step = model.params.get("step", "0")
    number = int(step) if step.isdecimal() and len(step) < 20 else 0
    return number if number <= LARGEST_STEP else 0


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
                max_results=_OTHERS_PER_PAGE, page_token=token
            )
        )
    else:
        where = f'name = "{name}"' if "'" in name else f"name = '{name}'"
        models = [_registered_model(client, name)]
    versions = every(
        lambda token: client.search_model_versions(
            where, max_results=_VERSIONS_PER_PAGE, page_token=token
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


def find_experiment(client: MlflowClient, name_or_id: str) -> Experiment:
    """The experiment of that name, else ID; raises ScalpelError with near names for neither."""
    found = client.get_experiment_by_name(name_or_id)
    if found is not None:
        return found
    experiments = all_experiments(client)
    for known in experiments:
        if known.experiment_id == name_or_id:
            return known
    raise ScalpelError(
        f"experiment {name_or_id!r}: there is none of that name or ID at "
        f"{mlflow.get_tracking_uri()}; {_near(name_or_id, [known.name for known in experiments])}"
    )


def check_run_id(run_id: str) -> None:
    """Raise ScalpelError where the text is not a run's ID."""
    if not re.fullmatch(r"[0-9a-f]{32}", run_id):
        raise ScalpelError(
            f"run {run_id!r}: is not a run ID, which has 32 hexadecimal digits; copy it from the "
            "UI's run page"
        )


def every(page: Callable[[str | None], PagedList[T]]) -> list[T]:
    """The results of all pages; `page` takes a token and asks for the page that it stands for."""
    results = page(None)
    found = list(results)
    while results.token:
        results = page(results.token)
        found += results
    return found


def search_models(
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
                experiment_ids, filter_string=where, max_results=_MODELS_PER_PAGE, page_token=token
            )
        )
    }
    return [model for model in found.values() if step_of(model) > 0]


def wanted_runs(
    client: MlflowClient, experiment_ids: list[str], run_ids: list[str]
) -> dict[str, Run]:
    """Those runs, by ID; raises ScalpelError where one of them does not exist."""
    runs = _runs_by_id(client, experiment_ids, run_ids)
    if missing := [run_id for run_id in run_ids if run_id not in runs]:
        raise ScalpelError(_no_such_run(missing))
    return runs


def runs_of(client: MlflowClient, models: Iterable[LoggedModel]) -> dict[str, Run]:
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
                max_results=_OTHERS_PER_PAGE,
                page_token=token,
            )
        )
    }


def all_experiments(client: MlflowClient) -> list[Experiment]:
    """Every experiment that is not deleted."""
    return every(
        lambda token: client.search_experiments(max_results=_OTHERS_PER_PAGE, page_token=token)
    )


def _registered_model(client: MlflowClient, name: str) -> Any:
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        check_answered(error)
        names = [
            known.name
            for known in every(
                lambda token: client.search_registered_models(
                    max_results=_OTHERS_PER_PAGE, page_token=token
                )
            )
        ]
        raise ScalpelError(
            f"registered model {name!r}: there is none at {mlflow.get_registry_uri()}; "
            f"{_near(name, names)}"
        ) from error


def _in_parts(values: Sequence[str]) -> Iterator[str]:
    """The values as lists of a filter's IN, a few hundred each."""
    for start in range(0, len(values), _IDS_PER_FILTER):
        yield "(" + ", ".join(f"'{v}'" for v in values[start : start + _IDS_PER_FILTER]) + ")"


def _near(name: str, names: Sequence[str]) -> str:
    """A hint at the names that there are, where one was not found."""
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


def by_step(model: LoggedModel) -> tuple[int, int]:
    """The key that sorts models by step, and those of one step by time."""
    return step_of(model), model.creation_timestamp


def _checkpoint(model: LoggedModel) -> Checkpoint:
    rates = model.params.get("learning_rate_sum")
    return Checkpoint(
        model_id=model.model_id,
        step=step_of(model),
        digest=model.params.get("digest", ""),
        status=state_of(model),
        learning_rate_sum=float(rates) if rates else None,
        reason=model.tags.get(PRUNED_TAG) or model.tags.get(FAILURE_TAG),
    )
