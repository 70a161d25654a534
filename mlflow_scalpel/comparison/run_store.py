"""Keeps tables in MLflow and finds them again, with the few numbers that MLflow's charts show.

Imports no torch.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException

from mlflow_scalpel.comparison.parquet import read_bounded
from mlflow_scalpel.comparison.run_queries import (
    LEDGER,
    SAMPLES,
    TABLE,
    TOKENS,
    ClientSource,
    compared_params,
    comparison_tag,
    description,
    ledger_run,
    read_artifact,
    training_arguments,
)
from mlflow_scalpel.comparison.table import (
    LEDGER_DTYPES,
    read_ledger,
    read_table,
    read_tokens,
    token_file_name,
    token_step,
    write_table,
)
from mlflow_scalpel.credentials import without_credentials
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.links import DESCRIPTION_TAG, run_note
from mlflow_scalpel.server_errors import check_answered
from mlflow_scalpel.tensors.places import LAYER_PARTS, SMALL_PARTS

_METRICS_PER_BATCH = 1000  # MLflow takes no more at once


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
    for start in range(0, len(metrics), _METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_BATCH])


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
    """The groups and the runs measured; MLflow's list of runs shows little else of a comparison."""
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
    return _stored(run_id, SAMPLES, lambda file: read_bounded(file, None))


def stored_ledger(run_id: str) -> pd.DataFrame:
    """The ledger of a training run, out of its newest evaluation that has one.

    A row a problem, checkpoint and benchmark, with the columns `LEDGER_DTYPES`; without rows where
    the run was not evaluated. Takes the ID of an evaluation run, too.
    """
    source = ClientSource()
    owner = ledger_run(source, get_run(run_id))
    if owner is None:
        return pd.DataFrame(columns=list(LEDGER_DTYPES)).astype(LEDGER_DTYPES)
    return read_artifact(source, owner, LEDGER, read_ledger)


def _stored(
    run_id: str, path: str, read: Callable[[IO[bytes]], pd.DataFrame]
) -> pd.DataFrame | None:
    source = ClientSource()
    if path not in source.files(run_id, path.rsplit("/", 1)[0]):
        return None
    return read_artifact(source, run_id, path, read)


def describe_runs(run_ids: list[str]) -> pd.DataFrame:
    """One row per run, indexed by run ID, with the columns in which runs may differ.

    These are name, algorithm, learning_rate, steps, dtype, data, seed, warnings (one per line),
    then every parameter, and every count of its cost.
    """
    source = ClientSource()
    rows = {
        run_id: description(get_run(run_id), training_arguments(source, run_id))
        for run_id in run_ids
    }
    return pd.DataFrame.from_dict(rows, orient="index")


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


def log_tokens(tables: Sequence[pd.DataFrame], run_id: str) -> None:
    """Store tables on a run, one file per step; models without a step are numbered in order.

    Tables of models at the same step share its file.
    """
    if not tables:
        return
    by_step: dict[int, list[pd.DataFrame]] = {}
    for number, table in enumerate(tables):
        step = table["step"].iloc[0]
        by_step.setdefault(number if pd.isna(step) else int(step), []).append(table)
    with tempfile.TemporaryDirectory() as scratch:
        for step, same in by_step.items():
            write_table(pd.concat(same, ignore_index=True), Path(scratch) / token_file_name(step))
        MlflowClient().log_artifacts(run_id, scratch, TOKENS)


def token_steps(run_id: str) -> list[int]:
    """Steps of which the run has a table, in order."""
    steps = map(token_step, ClientSource().files(run_id, TOKENS))
    return sorted(step for step in steps if step is not None)


def stored_tokens(run_id: str, step: int) -> pd.DataFrame:
    """The table that the run has of a step.

    A table that was written as training went on does not name the model, which was still on its way
    to MLflow; it is taken from the run's tidy table. Raises ScalpelError where there is no table.
    """
    known = token_steps(run_id)
    if step not in known:
        raise ScalpelError(
            f"run {run_id}: has no table of tokens for step {step}; there is one for "
            f"{', '.join(map(str, known)) or 'no step'}"
        )
    table = read_artifact(ClientSource(), run_id, f"{TOKENS}/{token_file_name(step)}", read_tokens)
    if table["model_id"].isna().any():
        tidy = stored_table(run_id)
        models = {} if tidy is None else dict(zip(tidy["step"], tidy["model_id"], strict=True))
        table["model_id"] = table["model_id"].fillna(_named(models, step))
    return table


def _named(models: Mapping[Any, Any], step: int) -> str:
    name = models.get(step)
    return "" if name is None or pd.isna(name) else str(name)


# Rows of these have no value though one was to be had; others are as they should be.
FAILED = (
    "not comparable", "not finite", "not measured", "not readable", "not supported", "refused",
)  # fmt: skip
CAPABILITIES = ("capabilities/in_domain_gain", "capabilities/out_of_domain_loss")


def coverage(table: pd.DataFrame) -> tuple[int, int, float | None]:
    """How many of a model's tensors were measured, of how many, and what share of its parameters.

    Measured are those too that are 0 in the base, which have no relative norm. The share is None
    where the elements of a row are not known, as of imported ones.
    """
    every = table[table["metric"] == "weights/relative_frobenius"]
    known = every[every["value"].notna() | (every["status"] == "undefined")]
    counted = len(every) > 0 and bool(every["n"].notna().all())
    share = float(known["n"].sum() / every["n"].sum()) if counted else None
    return len(known), len(every), share


def summarise(table: pd.DataFrame) -> dict[str, float]:
    """About 20 metrics of one checkpoint's tidy table, named so that the UI groups them.

    Mean over layers (and experts) of the relative Frobenius norm for each matrix, over all of them,
    and for each part outside of them that is large (embeddings, head, vision ...); the share of
    the parameters that was measured, where it is not all; the mean over the layers' matrices of the
    other weight metrics; each KL (`kl/all_tokens/<probe>`); each score (`eval/...`); in-domain gain
    and out-of-domain loss where the table has them. What has no value is left out.
    """
    ok = table[table["status"] == "ok"]
    norms = ok[ok["metric"] == "weights/relative_frobenius"]
    kind = norms["matrix"].str.replace(r"experts\.\d+\.", "experts.", regex=True)
    inside = ok["part"].isna() | ok["part"].isin(LAYER_PARTS)
    key = kind.where(inside[norms.index], norms["part"])
    summary = {
        f"weights/relative_frobenius/{name}": float(values.mean())
        for name, values in norms.groupby(key, sort=False)["value"]
        if name not in SMALL_PARTS
    }
    measured, tensors, share = coverage(table)
    if measured < tensors and share is not None:
        summary["weights/measured_share"] = share
    weights = ok[ok["metric"].str.startswith("weights/") & inside]
    for metric, values in weights.groupby("metric")["value"]:
        summary[f"{metric}/mean"] = float(values.mean())
    for row in ok[ok["metric"].isin(("kl/all_tokens", "kl/answer_tokens"))].itertuples():
        summary[f"{row.metric}/{str(row.texts).split()[0]}"] = float(row.value)
    scores = ok["metric"].str.startswith("eval/") | ok["metric"].isin(CAPABILITIES)
    for row in ok[scores].itertuples():
        summary[str(row.metric)] = float(row.value)
    return summary


def unmeasured(table: pd.DataFrame) -> str | None:
    """Parts of a run's tidy table that could not be measured, with steps and reasons; or None."""
    bad = table[table["status"].isin(FAILED)]
    group = bad["metric"].str.split("/").str[0]
    reasons = []
    for (name, reason), rows in bad.groupby([group, "reason"], sort=False, dropna=False):
        steps = ", ".join(str(step) for step in sorted(rows["step"].dropna().unique()))
        about = "" if str(reason).startswith(f"{name}: ") else f"{name}: "
        reasons.append(f"at step {steps}: {about}{reason}")
    if not reasons:
        return None
    more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return (
        f"not all could be measured: {'; '.join(reasons[:3])}{more}; the rest is there, and so are "
        "the checkpoints, which `mlflow-scalpel compare` can measure again"
    )
