"""Finds the evaluation rows of base and checkpoints, for the group `capabilities`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from mlflow_scalpel.comparison.capabilities import capability_table, has_rows
from mlflow_scalpel.comparison.measured_models import MeasuredModel
from mlflow_scalpel.comparison.parquet import read_bounded
from mlflow_scalpel.comparison.run_store import evaluations_of, get_run, stored_samples
from mlflow_scalpel.errors import ScalpelError

_EVALUATE = 'run `mlflow run . -e evaluate -P set="run=RUN_ID"`'


def evaluated_capabilities(
    base: MeasuredModel,
    checkpoints: Sequence[MeasuredModel],
    metrics: Iterable[str],
    samples: pd.DataFrame | str | Path | None = None,
) -> pd.DataFrame:
    """The tidy table of the group `capabilities`, from what was evaluated before.

    Without `samples` (rows of one evaluation, or their Parquet file) they come from MLflow: from
    the newest finished evaluation of each checkpoint's run that has rows of it and of the base.

    Raises ScalpelError where there are none.
    """
    names = list(metrics)
    if samples is not None:
        rows = samples if isinstance(samples, pd.DataFrame) else _read(Path(samples))
        return capability_table(rows, base, checkpoints, names)
    for one in checkpoints:
        if one.run_id is None:
            raise ScalpelError(
                f"checkpoint {one.model_id}: belongs to no MLflow run, so it has no evaluation to "
                "be found; name it by its models:/ URI, or give the rows (samples=..., "
                "--samples FILE)"
            )
    runs = dict.fromkeys(str(one.run_id) for one in checkpoints)
    return pd.concat(
        [
            table
            for run_id in runs
            for table in _of_run(
                base, [c for c in checkpoints if c.run_id == run_id], run_id, names
            )
        ],
        ignore_index=True,
    )


def _of_run(
    base: MeasuredModel, checkpoints: list[MeasuredModel], run_id: str, names: list[str]
) -> Iterator[pd.DataFrame]:
    left = checkpoints
    newest: tuple[pd.DataFrame, str | None] | None = None
    for evaluation in evaluations_of(get_run(run_id)):
        rows = stored_samples(evaluation.info.run_id)
        if rows is None or not has_rows(rows, base):
            continue
        dtype = evaluation.data.params.get("dtype")
        newest = newest or (rows, dtype)
        found = [one for one in left if has_rows(rows, one)]
        if found:
            yield capability_table(rows, base, found, names, dtype=dtype)
        left = [one for one in left if one not in found]
        if not left:
            return
    if newest is None or len(left) == len(checkpoints):
        raise ScalpelError(
            f"run {run_id}: has no finished evaluation with rows of the base {base.model_id} and "
            f"of {checkpoints[0].model_id}, so there is nothing to compare; {_EVALUATE}, or give "
            "the rows (samples=..., --samples FILE)"
        )
    rows, dtype = newest  # says of each that it was not evaluated
    yield capability_table(rows, base, left, names, dtype=dtype)


def _read(file: Path) -> pd.DataFrame:
    try:
        return read_bounded(file, None)
    except (OSError, ValueError, ScalpelError) as error:  # pyarrow's errors are either
        raise ScalpelError(
            f"samples = {file}: cannot be read as Parquet ({error}); give scalpel/samples.parquet "
            f"of an evaluation run, or make one: {_EVALUATE}"
        ) from error
