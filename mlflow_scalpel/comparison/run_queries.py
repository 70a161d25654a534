"""Runs, tables and files of MLflow that belong together, for the server and for any process.

Imports no torch.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, TypeVar

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Experiment, LoggedModel, Run
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList

from mlflow_scalpel.checkpoints.search import all_experiments, every, made_by
from mlflow_scalpel.comparison.table import tidy
from mlflow_scalpel.credentials import shortened
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.run_warnings import warnings_of

TABLE = "scalpel/table.parquet"
SAMPLES = "scalpel/samples.parquet"
LEDGER = "scalpel/ledger.parquet"
TOKENS = "scalpel/tokens"  # folder with one table per step: step-000100.parquet
ARGUMENTS = "training_arguments.json"
EVALUATED_RUN_TAG = "scalpel.evaluated_run"
COMPARISON_PREFIX = "scalpel.comparison."

# MLflow's filter for the finished runs that measured others: the stage and the command `compare`.
_COMPARISONS = "tags.`scalpel.stage` = 'compare' AND status = 'FINISHED'"

# Params that differ between any two runs and do not show what was done.
_OMITTED_PARAMS = {"output_dir", "run_name", "logging_dir", "recipe", "set", "_name_or_path"}

RUNS_PER_PAGE = 1000
_NO_PROMPT = "none"  # as the param `system_prompt` of a run says it
_EMPTY_PROMPT = '""'


T = TypeVar("T")


class NotReadable(ScalpelError):
    """There is no such run, or the user may not read it: the message does not say which."""


class Source(Protocol):
    """Everything that one user may read of one MLflow server. Nothing here changes anything."""

    user: str
    """The same for two sources that may read the same; for keys of caches only."""

    def experiments(self) -> list[Experiment]:
        """Every experiment that is not deleted, the last changed first."""

    def runs(self, experiment_id: str, where: str = "") -> list[Run]:
        """The runs of an experiment, the newest first, that match MLflow's filter `where`."""

    def run(self, run_id: str) -> Run:
        """A run; raises NotReadable."""

    def models(self, run: Run) -> list[LoggedModel]:
        """The LoggedModels that a run made."""

    def files(self, run_id: str, folder: str) -> dict[str, int]:
        """Path -> bytes of the files in a folder of a run's artifacts; {} without the folder."""

    def artifact(self, run_id: str, path: str) -> bytes:
        """The content of a file of the run's artifacts."""


class ClientSource:
    """A server, or a store, as MLflow's public client sees it with this process's credentials."""

    user = ""

    def __init__(self, tracking_uri: str | None = None) -> None:
        """Open the server; None is the one that MLflow uses anyway."""
        self._uri = tracking_uri
        self._client = MlflowClient(tracking_uri)

    def experiments(self) -> list[Experiment]:
        """See `Source`."""
        return sorted(all_experiments(self._client), key=last_changed, reverse=True)

    def runs(self, experiment_id: str, where: str = "") -> list[Run]:
        """See `Source`."""
        return every(
            lambda token: self._client.search_runs(
                [experiment_id], where, max_results=RUNS_PER_PAGE, page_token=token
            )
        )

    def run(self, run_id: str) -> Run:
        """See `Source`."""
        return _readable(run_id, lambda: self._client.get_run(run_id))

    def models(self, run: Run) -> list[LoggedModel]:
        """See `Source`."""
        return made_by(self._client, run)

    def files(self, run_id: str, folder: str) -> dict[str, int]:
        """See `Source`."""
        found = self._client.list_artifacts(run_id, folder)
        return {file.path: int(file.file_size or 0) for file in found if not file.is_dir}

    def artifact(self, run_id: str, path: str) -> bytes:
        """See `Source`."""
        from mlflow.artifacts import download_artifacts

        with tempfile.TemporaryDirectory() as scratch:
            file = download_artifacts(
                run_id=run_id, artifact_path=path, dst_path=scratch, tracking_uri=self._uri
            )
            return Path(file).read_bytes()


def last_changed(experiment: Experiment) -> int:
    """When somebody last changed an experiment, in milliseconds; 0 where that is not known."""
    return int(experiment.last_update_time or experiment.creation_time or 0)


def not_readable(run_id: str) -> NotReadable:
    """The error for a run that is not there, or that the user may not read."""
    return NotReadable(
        f"run {run_id}: there is no such run, or you may not read it; choose runs on the start page"
    )


def _readable(run_id: str, get: Callable[[], Run]) -> Run:
    try:
        return get()
    except MlflowException as error:
        if error.get_http_status_code() in (403, 404) or "403" in str(error):
            raise not_readable(run_id) from error
        raise


def paged(page: Callable[[str | None], tuple[Sequence[T], str | None]]) -> list[T]:
    """The results of all pages; `page` takes a token, and gives results and the next token."""

    def as_mlflow(token: str | None) -> PagedList[T]:
        results, following = page(token)
        return PagedList(list(results), following or None)

    return every(as_mlflow)


def read_artifact(source: Source, run_id: str, path: str, read: Callable[[IO[bytes]], T]) -> T:
    """A file of a run; raises ScalpelError that names it where it cannot be read."""
    try:
        return read(io.BytesIO(source.artifact(run_id, path)))
    except NotReadable:
        raise
    except (ScalpelError, ValueError, TypeError) as error:
        raise ScalpelError(damage(run_id, path, error)) from error


def training_arguments(source: Source, run_id: str) -> dict[str, object]:
    """Every training argument that was logged on a run; none where nothing was."""
    if ARGUMENTS not in source.files(run_id, ""):
        return {}
    return dict(read_artifact(source, run_id, ARGUMENTS, json.load))


def evaluations_of(source: Source, run: Run) -> list[Run]:
    """Finished evaluation runs of a training run, the newest first."""
    where = f"tags.`{EVALUATED_RUN_TAG}` = '{run.info.run_id}' AND status = 'FINISHED'"
    return source.runs(run.info.experiment_id, where)


def comparisons_of(source: Source, runs: Sequence[Run]) -> list[Run]:
    """Finished comparisons that measured any of these runs, the newest first."""
    ids = {run.info.run_id for run in runs}
    experiments = sorted({str(run.info.experiment_id) for run in runs})
    found = [one for each in experiments for one in source.runs(each, _COMPARISONS)]
    found.sort(key=lambda one: -one.info.start_time)
    return [one for one in found if compared_by(one) & ids and one.info.run_id not in ids]


def ledger_run(source: Source, run: Run) -> str | None:
    """ID of the run that holds the ledger of a training run, or of an evaluation: the newest."""
    folder = LEDGER.rsplit("/", 1)[0]
    ids = [one.info.run_id for one in (run, *evaluations_of(source, run))]
    return next((one for one in ids if LEDGER in source.files(one, folder)), None)


def stated_prompt(system_prompt: str | None) -> str:
    """A system prompt as the param of a run; an empty one switches a template's default off."""
    if system_prompt is None:
        return _NO_PROMPT
    return system_prompt or _EMPTY_PROMPT


def trained_prompt(run: Run) -> str | None:
    """The system prompt that a run was trained with, by its param."""
    stated: str = run.data.params.get("system_prompt", _NO_PROMPT)
    return {_NO_PROMPT: None, _EMPTY_PROMPT: ""}.get(stated, stated)


def compared_by(run: Run) -> set[str]:
    """The IDs of the training runs whose checkpoints a comparison measured."""
    return {value for key, value in run.data.params.items() if re.fullmatch(r"run_\d+", key)}


def compared_params(run_ids: Iterable[str]) -> dict[str, str]:
    """The params of a comparison that `compared_by` reads."""
    return {f"run_{number}": run_id for number, run_id in enumerate(run_ids)}


def comparison_tag(comparison_id: str) -> dict[str, str]:
    """The tag by which a run names a comparison of it: who set it may write to the run."""
    return {f"{COMPARISON_PREFIX}{comparison_id}": "measured this run"}


@dataclass(frozen=True)
class Claim:
    """A comparison that says that it measured some of the runs that are looked at."""

    run: Run
    counts_for: frozenset[str]
    """IDs of the runs that it counts for."""
    note: str
    """A sentence about it for readers; empty where all of these runs name it."""


def claims(comparisons: Iterable[Run], runs: Sequence[Run]) -> list[Claim]:
    """For which of the runs each comparison counts.

    It does for a run that names it (`comparison_tag`), and, with a note that says whose it is, for
    one of its own experiment, in which whoever may make runs may write to all of them. In another
    experiment anybody could claim to have measured a run.
    """
    found = []
    for one in comparisons:
        measured = [run for run in runs if run.info.run_id in compared_by(one)]
        key, place = next(iter(comparison_tag(one.info.run_id))), one.info.experiment_id
        unnamed = [run for run in measured if key not in run.data.tags]
        near = [run for run in unnamed if run.info.experiment_id == place]
        far = [run for run in unnamed if run.info.experiment_id != place]
        whose = (
            f"The comparison {one.info.run_name} (run {one.info.run_id}, by "
            f"{one.data.tags.get('mlflow.user') or one.info.user_id or 'nobody that it names'})"
        )
        notes = []
        if near:
            notes.append(f"measured {_names(near)}, whose own record does not name it")
        if far:
            notes.append(
                f"says that it measured {_names(far)}, of another experiment and without a tag "
                "that names it, and is left out there"
            )
        left = frozenset(run.info.run_id for run in measured if run not in far)
        found.append(Claim(one, left, f"{whose} {'; it '.join(notes)}." if notes else ""))
    return found


def _names(runs: Sequence[Run]) -> str:
    return ", ".join(str(run.info.run_name or run.info.run_id) for run in runs)


def damage(run_id: str, path: str, error: Exception) -> str:
    """The message for a file of a run that cannot be read, with what to do."""
    why = shortened(error, 300)
    if not isinstance(error, ScalpelError):
        why = f"{type(error).__name__}: {why}"
    return f"run {run_id}: {path} cannot be read ({why}) and is left out; measure the run anew."


def with_comparisons(
    tables: list[pd.DataFrame],
    comparisons: Sequence[tuple[pd.DataFrame, Collection[str]]],
    run_ids: Collection[str],
) -> pd.DataFrame:
    """The runs' own tables as one, and what comparisons measured of runs that they count for.

    Measurements against another base than that of the own tables are left out, and so are pairs of
    which one checkpoint is of a run that is not looked at.
    """
    # The runs' own tables come last: what they say of who made a model is not overruled.
    every = [
        one[["model_id", "run_id"]].drop_duplicates()
        for one in (*(table for table, _ in comparisons), *tables)
    ]
    named = pd.concat(every).dropna() if every else tidy([])
    owners = dict(zip(named["model_id"], named["run_id"], strict=True))
    bases = {digest for one in tables for digest in one["base_digest"].dropna().unique()}
    found = list(tables)
    for table, counts_for in comparisons:
        kept = table["run_id"].isin(counts_for)
        kept &= table["other"].isna() | table["other"].map(owners).isin(run_ids)
        if bases:
            kept &= table["base_digest"].isna() | table["base_digest"].isin(bases)
        found.append(table[kept.fillna(False)])
    return joined(found)


def joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Tables of runs as one; of rows that measure the same thing, that of the first table stays.

    As in the views a row without a run is its model's, but for those of a base (step 0).
    """
    if not tables:
        return tidy([])
    every = pd.concat(tables, ignore_index=True)
    keys = ["step", "metric", "layer", "head", "other", "matrix", "bin", "texts"]
    unnamed = every["run_id"].isna() & every["step"].ne(0).fillna(True)
    owner = every["run_id"].mask(unnamed, every["model_id"])
    return every[~every[keys].assign(owner=owner).duplicated()].reset_index(drop=True)


def description(run: Run, arguments: Mapping[str, object]) -> dict[str, object]:
    """A run in columns: its name, algorithm, learning_rate, steps, dtype, data, seed and warnings.

    Warnings are one text, a line each. Then every parameter, and every count of its cost.
    `arguments` are its training arguments.
    """
    params, metrics = run.data.params, run.data.metrics
    known = {
        "name": run.info.run_name,
        "algorithm": params.get("algorithm", run.data.tags.get("scalpel.algorithm", "unknown")),
        "learning_rate": params.get("learning_rate"),
        "steps": params.get("max_steps"),
        "dtype": params.get("weights_dtype"),
        "data": params.get("data"),
        "seed": params.get("seed"),
        "warnings": "\n".join(warnings_of(run.data.tags)),
    }
    stated = {key: str(value) for key, value in arguments.items()} | params
    others = {key: value for key, value in stated.items() if key not in _OMITTED_PARAMS}
    counts = {key: f"{value:.6g}" for key, value in metrics.items() if key.startswith("cost/")}
    return known | {k: v for k, v in {**others, **counts}.items() if k not in known}
