"""Keeps tidy tables in MLflow, and finds them again."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException

from mlflow_scalpel.checkpoints.reading.cache import release
from mlflow_scalpel.checkpoints.reading.download import stored_files
from mlflow_scalpel.checkpoints.search import Checkpoint, checkpoints_of_run
from mlflow_scalpel.comparison.capabilities import LEDGER_DTYPES
from mlflow_scalpel.comparison.engine import Comparison
from mlflow_scalpel.comparison.measured_models import MeasuredModel, with_adapted
from mlflow_scalpel.comparison.parquet import read_bounded
from mlflow_scalpel.comparison.run_queries import (
    ARGUMENTS,
    COMPARISONS_WHERE,
    LEDGER,
    SAMPLES,
    TABLE,
    claims,
    compared_by,
    compared_params,
    comparison_tag,
    damage,
    description,
    evaluations_where,
    with_comparisons,
)
from mlflow_scalpel.comparison.summary import summarise
from mlflow_scalpel.comparison.table import read_table, tidy, write_table
from mlflow_scalpel.credentials import without_credentials
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.links import DESCRIPTION_TAG, run_note
from mlflow_scalpel.server_errors import check_answered

_METRICS_A_BATCH = 1000  # MLflow takes no more at once


def log_table(table: pd.DataFrame, run_id: str) -> None:
    """Store the tidy table as an artifact of the run, in place of the one before."""
    log_rows(table, run_id, TABLE)


def log_rows(rows: pd.DataFrame, run_id: str, artifact: str) -> None:
    """Store rows as the Parquet artifact `artifact` of the run, in place of the one before."""
    folder, name = artifact.rsplit("/", 1)
    with tempfile.TemporaryDirectory() as scratch:
        path = write_table(rows, Path(scratch) / name)
        MlflowClient().log_artifact(run_id, str(path), folder)


def log_summary(table: pd.DataFrame, run_id: str) -> None:
    """Log the summary of each model in the table as metrics of the run, at the model's step."""
    now = int(time.time() * 1000)
    metrics = []
    for (model, step), rows in table.groupby(["model_id", "step"], dropna=False, sort=False):
        linked = model if str(model).startswith("m-") else None
        at = 0 if pd.isna(step) else int(step)
        metrics += [
            Metric(key, value, now, at, model_id=linked, run_id=run_id)
            for key, value in summarise(rows).items()
        ]
    client = MlflowClient()
    for start in range(0, len(metrics), _METRICS_A_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_A_BATCH])


def log_comparison(table: pd.DataFrame) -> str:
    """Log a comparison as a run: table, summary at each step, and the runs it is of as `run_0`, ...

    The views show it with those runs, and look for it in their experiment: it is logged there,
    unless an experiment is set. Returns its run ID.
    """
    compared = [get_run(run_id) for run_id in _runs_in(table)]
    chosen = any(os.environ.get(f"MLFLOW_EXPERIMENT_{of}") for of in ("ID", "NAME"))
    with mlflow.start_run(
        run_name=_title(table, compared),
        experiment_id=compared[0].info.experiment_id if compared and not chosen else None,
    ) as run:
        mlflow.set_tags({"scalpel.stage": "compare", DESCRIPTION_TAG: run_note(run.info.run_id)})
        mlflow.log_params(compared_params(one.info.run_id for one in compared))
        name_on_runs(run.info.run_id, [one.info.run_id for one in compared])
        log_table(table, run.info.run_id)
        log_summary(table, run.info.run_id)
    return str(run.info.run_id)


def name_on_runs(comparison_id: str, run_ids: Sequence[str]) -> None:
    """Have runs name a comparison of them, which shows that its author may write to them.

    Where he may not, that is printed, and the views say whose comparison it is.
    """
    for run_id in run_ids:
        for key, value in comparison_tag(comparison_id).items():
            try:
                MlflowClient().set_tag(run_id, key, value)
            except MlflowException as error:
                print(
                    f"run {run_id}: may not be written to ({without_credentials(str(error))}), so "
                    f"that it does not name the comparison {comparison_id}; the views say whose it "
                    "is, or leave it out where it is in another experiment"
                )


def _title(table: pd.DataFrame, compared: Sequence[Run]) -> str:
    """What was measured of what; MLflow's list of runs shows little else of it."""
    groups = ", ".join(dict.fromkeys(one.split("/")[0] for one in table["metric"].unique()))
    if compared:
        return f"{groups} of {', '.join(str(run.info.run_name) for run in compared)}"[:200]
    models = table["model_id"].nunique()
    return f"compare {models} with {table['base'].iloc[0]}"


def _runs_in(table: pd.DataFrame) -> list[str]:
    """The runs that made the models of a table, those of pairs included."""
    client = MlflowClient()
    others = [one for one in table["other"].dropna().unique() if one.startswith("m-")]
    made = [client.get_logged_model(one).source_run_id for one in others]
    return list(dict.fromkeys(one for one in (*table["run_id"].dropna(), *made) if one))


def stored_table(run_id: str) -> pd.DataFrame | None:
    """The tidy table that was logged on the run, or None where there is none.

    Raises ScalpelError where it cannot be read.
    """
    return _stored(run_id, TABLE, read_table)


def stored_samples(run_id: str) -> pd.DataFrame | None:
    """The evaluation rows that were logged on the run, or None where there are none."""
    return _stored(run_id, SAMPLES, lambda path: read_bounded(path, None))


def stored_ledger(run_id: str) -> pd.DataFrame:
    """The ledger of a training run, out of its newest evaluation that has one.

    A row a problem, checkpoint and benchmark (comparison/capabilities.py has the columns); without
    rows where the run was not evaluated. Takes the ID of an evaluation run, too.
    """
    run = get_run(run_id)
    for one in (run, *evaluations_of(run)):
        found = _stored(one.info.run_id, LEDGER, lambda path: read_bounded(path, LEDGER_DTYPES))
        if found is not None:
            return found
    return pd.DataFrame(columns=list(LEDGER_DTYPES)).astype(LEDGER_DTYPES)


def _stored(run_id: str, artifact: str, read: Callable[[str], pd.DataFrame]) -> pd.DataFrame | None:
    client = MlflowClient()
    folder, _ = artifact.rsplit("/", 1)
    if artifact not in {file.path for file in client.list_artifacts(run_id, folder)}:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        path = mlflow.artifacts.download_artifacts(f"runs:/{run_id}/{artifact}", dst_path=scratch)
        try:
            return read(path)
        except ScalpelError as error:
            raise ScalpelError(damage(run_id, artifact, error)) from error


def gather(run_ids: list[str], notes: list[str] | None = None) -> pd.DataFrame:
    """One tidy table of training runs: what was measured as they trained, evaluations, comparisons.

    A run that has logged checkpoints but no table (one that another trainer made) has its weights
    measured now. A table that cannot be read is left out; that, and whose comparisons are shown
    that a run does not name, is added to `notes`, a sentence each, and printed.

    Raises ScalpelError for a run that does not exist or has no checkpoint.
    """
    said: list[str] = []

    def readable_table(run_id: str) -> pd.DataFrame | None:
        try:
            return stored_table(run_id)
        except ScalpelError as error:
            said.append(str(error))
            return tidy([])

    tables = []
    runs = [get_run(run_id) for run_id in run_ids]
    for run in runs:
        table = readable_table(run.info.run_id)
        tables.append(measure_run(run) if table is None else table)
        evaluated = [readable_table(one.info.run_id) for one in evaluations_of(run)]
        tables += [one for one in evaluated if one is not None]
    compared = []
    for claim in claims(comparisons_of(runs), runs):
        table = readable_table(claim.run.info.run_id) if claim.counts_for else None
        if table is not None:
            compared.append((table, claim.counts_for))
        if claim.note:
            said.append(claim.note)
    for note in said:
        print(f"WARNING: {note}", file=sys.stderr)
    if notes is not None:
        notes += said
    return with_comparisons(tables, compared, set(run_ids))


def measure_run(run: Run) -> pd.DataFrame:
    """The weight metrics of every checkpoint of a run against the base that it began with.

    A checkpoint that cannot be read is a gap, and printed with its reason.
    """
    base, checkpoints = checkpoints_of_run(run.info.run_id)
    if base is None:
        raise ScalpelError(
            f"run {run.info.run_id} ({run.info.run_name}) names no base among its inputs, so its "
            "checkpoints have nothing to be compared with; log them with base=..."
        )
    whole = readable(checkpoints, run.info.run_id)
    comparison = Comparison(subject_of(base, run), [])
    measured = []
    for checkpoint in whole:
        with opened(checkpoint, run) as subject:
            measured.append(comparison.measure(subject))
    return pd.concat(measured, ignore_index=True)


def pair_table(run_ids: list[str]) -> pd.DataFrame:
    """The group `pairs` of the last checkpoints of training runs that began with one base.

    Runs without a checkpoint that can be read (imported ones) are left out. A table without rows
    where fewer than two are left, or where their bases differ, which is printed.
    """
    bases, subjects = {}, []
    for run_id in run_ids:
        run = get_run(run_id)
        base, checkpoints = checkpoints_of_run(run_id)
        whole = [checkpoint for checkpoint in checkpoints if checkpoint.status == "READY"]
        if base is not None and whole:
            bases[base.digest] = subject_of(base, run)
            subjects.append(subject_of(whole[-1], run))
    if len(bases) > 1:
        print("the runs began with different bases, so their updates are not compared")
    if len(bases) != 1 or len(subjects) < 2:
        return tidy([])
    return Comparison(next(iter(bases.values())), [], ["pairs"]).measure(*subjects)


def readable(checkpoints: list[Checkpoint], run_id: str) -> list[Checkpoint]:
    """Those whose files can be read; prints why the others cannot.

    Raises ScalpelError where none can be.
    """
    whole = [checkpoint for checkpoint in checkpoints if checkpoint.status == "READY"]
    gaps = [
        f"step {checkpoint.step} is {checkpoint.status} ({checkpoint.reason or 'not stored yet'})"
        for checkpoint in checkpoints
        if checkpoint.status != "READY"
    ]
    for gap in gaps:
        print(f"run {run_id}: {gap}, and is left out")
    if not whole:
        raise ScalpelError(
            f"run {run_id}: none of its {len(checkpoints)} checkpoints can be read; {gaps[-1]}"
        )
    return whole


def evaluations_of(run: Run) -> list[Run]:
    """Finished evaluation runs of a training run, the newest first."""
    return list(
        MlflowClient().search_runs(
            [run.info.experiment_id],
            evaluations_where(run.info.run_id),
            order_by=["start_time DESC"],
        )
    )


def comparisons_of(runs: Sequence[Run]) -> list[Run]:
    """Finished comparisons that measured any of these runs, the newest first."""
    found = MlflowClient().search_runs(
        list({run.info.experiment_id for run in runs}),
        COMPARISONS_WHERE,
        order_by=["start_time DESC"],
    )
    ids = {run.info.run_id for run in runs}
    return [one for one in found if compared_by(one) & ids and one.info.run_id not in ids]


def describe_runs(run_ids: list[str]) -> pd.DataFrame:
    """One row per run, indexed by run ID, with the columns in which runs may differ.

    These are name, algorithm, learning_rate, steps, dtype, data, seed, warnings (one per line),
    then every parameter, and every count of its cost.
    """
    rows = {run_id: description(get_run(run_id), _arguments(run_id)) for run_id in run_ids}
    return pd.DataFrame.from_dict(rows, orient="index")


def _arguments(run_id: str) -> dict[str, object]:
    """Every training argument that was logged on the run; none where nothing was."""
    if ARGUMENTS not in {file.path for file in MlflowClient().list_artifacts(run_id)}:
        return {}
    return dict(mlflow.artifacts.load_dict(f"runs:/{run_id}/{ARGUMENTS}"))


def get_run(run_id: str) -> Run:
    """The run; raises ScalpelError where the tracking server has none of that ID."""
    try:
        return MlflowClient().get_run(run_id)
    except MlflowException as error:
        check_answered(error)
        raise ScalpelError(
            f"run {run_id}: there is no such run at {mlflow.get_tracking_uri()} ({error}); "
            "copy the ID from the UI's run page, and check MLFLOW_TRACKING_URI"
        ) from error


@contextmanager
def opened(checkpoint: Checkpoint, run: Run) -> Iterator[MeasuredModel]:
    """A checkpoint of a run with its files on this machine, as long as it is open.

    (All of a run at once may be more than the cache can hold.)
    """
    subject = subject_of(checkpoint, run)
    try:
        yield subject
    finally:
        for directory in (subject.directory, *subject.merged):
            release(directory)


def subject_of(checkpoint: Checkpoint, run: Run, *, files: bool = True) -> MeasuredModel:
    """A checkpoint of a run with its files on this machine; brought there if they are elsewhere.

    Without `files` they stay where they are, and `directory` holds nothing.
    """
    directory, model = stored_files(checkpoint.uri) if files else (Path(checkpoint.uri), None)
    subject = MeasuredModel(
        directory,
        checkpoint.model_id,
        checkpoint.digest,
        checkpoint.step,
        run.info.run_id,
        run.data.params.get("algorithm"),
        checkpoint.learning_rate_sum,
    )
    return with_adapted(subject, model, None) if files else subject
