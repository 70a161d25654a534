"""Runs side by side: their tables as one; runs without a table are measured first.

Imports torch only where something is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from mlflow.entities import Run

from mlflow_scalpel.checkpoints.reading.cache import release
from mlflow_scalpel.checkpoints.reading.download import stored_files
from mlflow_scalpel.checkpoints.search import Checkpoint, checkpoints_of_run
from mlflow_scalpel.comparison.measured_models import MeasuredModel, with_adapted
from mlflow_scalpel.comparison.run_queries import (
    ClientSource,
    claims,
    comparisons_of,
    evaluations_of,
    with_comparisons,
)
from mlflow_scalpel.comparison.run_store import get_run, stored_table
from mlflow_scalpel.comparison.table import tidy
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.extras import require_extra


def gather(run_ids: list[str], notes: list[str] | None = None) -> pd.DataFrame:
    """One tidy table of training runs: what was measured as they trained, evaluations, comparisons.

    A run that has logged checkpoints but no table (one that another trainer made) has its weights
    measured now. A table that cannot be read is left out; that, and whose comparisons are shown
    that a run does not name, is added to `notes`, a sentence each, and printed.

    Raises ScalpelError for a run that does not exist or has no checkpoint.
    """
    found: list[str] = []
    source = ClientSource()

    def readable_table(run_id: str) -> pd.DataFrame | None:
        try:
            return stored_table(run_id)
        except ScalpelError as error:
            found.append(str(error))
            return tidy([])

    tables = []
    runs = [get_run(run_id) for run_id in run_ids]
    for run in runs:
        table = readable_table(run.info.run_id)
        tables.append(measure_run(run) if table is None else table)
        evaluated = [readable_table(one.info.run_id) for one in evaluations_of(source, run)]
        tables += [one for one in evaluated if one is not None]
    compared = []
    for claim in claims(comparisons_of(source, runs), runs):
        table = readable_table(claim.run.info.run_id) if claim.counts_for else None
        if table is not None:
            compared.append((table, claim.counts_for))
        if claim.note:
            found.append(claim.note)
    for note in found:
        print(f"WARNING: {note}", file=sys.stderr)
    if notes is not None:
        notes += found
    return with_comparisons(tables, compared, set(run_ids))


def measure_run(run: Run) -> pd.DataFrame:
    """The weight metrics of every checkpoint of a run against the base that it began with.

    A checkpoint that cannot be read is a gap, and printed with its reason.
    """
    require_extra("measure", f"run {run.info.run_id} has no table yet: measuring its weights")
    from mlflow_scalpel.comparison.engine import Comparison

    base, checkpoints = checkpoints_of_run(run.info.run_id)
    if base is None:
        raise ScalpelError(
            f"run {run.info.run_id} ({run.info.run_name}) names no base among its inputs, so its "
            "checkpoints have nothing to be compared with; log them with base=..."
        )
    comparison = Comparison(measured_checkpoint(base, run), [])
    measured = []
    for checkpoint in readable(checkpoints, run.info.run_id):
        with opened(checkpoint, run) as model:
            measured.append(comparison.measure(model))
    return pd.concat(measured, ignore_index=True)


def pair_table(run_ids: list[str]) -> pd.DataFrame:
    """The group `pairs` of the last checkpoints of training runs that began with one base.

    Runs without a checkpoint that can be read (imported ones) are left out. A table without rows
    where fewer than two are left, or where their bases differ, which is printed.
    """
    bases, checkpoints = {}, []
    for run_id in run_ids:
        run = get_run(run_id)
        base, logged = checkpoints_of_run(run_id)
        complete = [one for one in logged if one.status == "READY"]
        if base is not None and complete:
            bases[base.digest] = measured_checkpoint(base, run)
            checkpoints.append(measured_checkpoint(complete[-1], run))
    if len(bases) > 1:
        print("the runs began with different bases, so their updates are not compared")
    if len(bases) != 1 or len(checkpoints) < 2:
        return tidy([])
    require_extra("measure", "comparing the updates of runs (pairs)")
    from mlflow_scalpel.comparison.engine import Comparison

    return Comparison(next(iter(bases.values())), [], ["pairs"]).measure(*checkpoints)


def readable(checkpoints: list[Checkpoint], run_id: str) -> list[Checkpoint]:
    """The checkpoints whose files can be read; prints why the others cannot.

    Raises ScalpelError where none can be.
    """
    complete = [checkpoint for checkpoint in checkpoints if checkpoint.status == "READY"]
    gaps = [
        f"step {checkpoint.step} is {checkpoint.status} ({checkpoint.reason or 'not stored yet'})"
        for checkpoint in checkpoints
        if checkpoint.status != "READY"
    ]
    for gap in gaps:
        print(f"run {run_id}: {gap}, and is left out")
    if not complete:
        raise ScalpelError(
            f"run {run_id}: none of its {len(checkpoints)} checkpoints can be read; {gaps[-1]}"
        )
    return complete


@contextmanager
def opened(checkpoint: Checkpoint, run: Run) -> Iterator[MeasuredModel]:
    """A checkpoint of a run with its files on this machine, as long as it is open.

    (All of a run at once may be more than the cache can hold.)
    """
    measured = measured_checkpoint(checkpoint, run)
    try:
        yield measured
    finally:
        for directory in (measured.directory, *measured.merged):
            release(directory)


def measured_checkpoint(checkpoint: Checkpoint, run: Run, *, files: bool = True) -> MeasuredModel:
    """A checkpoint of a run with its files on this machine; brought there if they are elsewhere.

    Without `files` they stay where they are, and `directory` holds nothing.
    """
    directory, model = stored_files(checkpoint.uri) if files else (Path(checkpoint.uri), None)
    measured = MeasuredModel(
        directory,
        checkpoint.model_id,
        checkpoint.digest,
        checkpoint.step,
        run.info.run_id,
        run.data.params.get("algorithm"),
        checkpoint.learning_rate_sum,
    )
    return with_adapted(measured, model, None) if files else measured
