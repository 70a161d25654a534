"""The group `capabilities`: evaluation rows of base and checkpoints as ledger and as tidy rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlflow_scalpel.comparison.measured_models import MeasuredModel, model_cells
from mlflow_scalpel.comparison.parquet import read_bounded
from mlflow_scalpel.comparison.run_queries import ClientSource, evaluations_of
from mlflow_scalpel.comparison.run_store import get_run, stored_samples
from mlflow_scalpel.comparison.table import LEDGER_DTYPES, LEFT_OUT, metric_cells, tidy
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics.capabilities.benchmark import Benchmark, digest_of
from mlflow_scalpel.metrics.capabilities.ledger import status_of
from mlflow_scalpel.metrics.registry import choose_metrics

BENCHMARK = ["domain", "label", "kind"]
NEEDED = ["model_id", *BENCHMARK, "problem_id", "sample", "problem", "gold", "completion", "score"]


LOGLIKS = ("gold_loglik", "gold_loglik_after_opening")
_RIGHT = 1.0 - 1e-9  # a score of less is not all right, as where one of three instructions is kept


def capability_table(
    samples: pd.DataFrame,
    base: MeasuredModel,
    checkpoints: Iterable[MeasuredModel],
    metrics: Iterable[str] = ("capabilities",),
    *,
    dtype: str | None = None,
) -> pd.DataFrame:
    """The tidy table of the group `capabilities`, of one checkpoint after the other.

    Args:
        samples: rows of one evaluation (one row per problem and sample), with `model_id`.
        base: the model whose rows are compared with.
        checkpoints: models with rows of their own; one without any is rows that say so.
        metrics: names of metrics or groups; those of other groups are left alone.
        dtype: of the forward passes, where it is known.

    Raises ScalpelError where columns are missing, or the base has no rows.
    """
    chosen = [one for one in choose_metrics(metrics) if one.group == "capabilities"]
    rows: list[dict[str, Any]] = []
    before = _of_base(samples, base)
    for checkpoint in checkpoints:
        models = {**model_cells(base, checkpoint), "dtype": dtype}
        after = _of(samples, checkpoint)
        if not len(after):
            reason = "the evaluation has no rows of this checkpoint; evaluate it (-e evaluate)"
            rows += [
                {**models, **metric_cells(one), "status": "not measured", "reason": reason}
                for one in chosen
            ]
            continue
        benchmarks = benchmarks_of(_joined(before, after))
        for one in chosen:
            for found in one.function(benchmarks):
                values = {
                    "value": found.value,
                    "stderr": found.stderr,
                    "n": found.n,
                    "bin": found.bin,
                    "texts": found.texts or None,
                    "status": found.status,
                    "reason": found.reason,
                }
                known = {name: value for name, value in values.items() if value is not None}
                rows.append({**models, **metric_cells(one), **known})
    return tidy(rows)


def ledger(
    samples: pd.DataFrame, base: MeasuredModel, checkpoints: Iterable[MeasuredModel]
) -> pd.DataFrame:
    """A row a problem, checkpoint and benchmark, with the columns of LEDGER_DTYPES.

    Problems that cannot be compared have their rows too, with a status of LEFT_OUT. Raises
    ScalpelError where columns are missing, or the base has no rows.
    """
    before = _of_base(samples, base)
    parts = []
    for checkpoint in checkpoints:
        joined = _joined(before, _of(samples, checkpoint))
        lost = joined["status"] == "lost"
        for name in LOGLIKS:
            for column in (f"{name}_base", name):
                joined[column] = joined[column].where(lost)
        parts.append(
            joined.rename(columns={"base_samples": "k"}).assign(
                model_id=checkpoint.model_id, step=checkpoint.step
            )
        )
    joined_rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return joined_rows.reindex(columns=list(LEDGER_DTYPES)).astype(LEDGER_DTYPES)


def benchmarks_of(joined: pd.DataFrame) -> list[Benchmark]:
    """The argument of the metrics, made of the joined problems of one base and checkpoint."""
    return [
        _benchmark(str(domain), str(label), str(kind), rows)
        for (domain, label, kind), rows in joined.groupby(BENCHMARK, sort=False)
    ]


def _benchmark(domain: str, label: str, kind: str, rows: pd.DataFrame) -> Benchmark:
    graded = rows[~rows["status"].isin(LEFT_OUT)]

    def integers(column: str) -> np.ndarray:
        return graded[column].to_numpy(dtype=np.int64)

    def floats(column: str) -> np.ndarray:
        return graded[column].to_numpy(dtype=np.float64)

    return Benchmark(
        domain,
        label,
        kind,
        digest_of(rows["problem_id"]),
        graded["base_first"].to_numpy(dtype=bool),
        integers("base_right"),
        integers("base_samples"),
        graded["first"].to_numpy(dtype=bool),
        integers("right"),
        integers("samples"),
        floats("gold_loglik_base"),
        floats("gold_loglik"),
        floats("gold_loglik_after_opening_base"),
        floats("gold_loglik_after_opening"),
        left_out=tuple(
            (meaning, int((rows["status"] == status).sum()))
            for status, meaning in LEFT_OUT.items()
            if (rows["status"] == status).any()
        ),
    )


def _joined(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Problems of base and checkpoint side by side, the base's first, each with its status."""
    ours, theirs = _problems(before), _problems(after)
    index = ours.index.append(theirs.index.difference(ours.index, sort=False))
    ours, theirs = ours.reindex(index), theirs.reindex(index)
    joined = theirs[["first", "right", "samples", "completion", *LOGLIKS]].copy()
    for column in ("first", "right", "samples", *LOGLIKS):
        joined[f"{column}_base" if column in LOGLIKS else f"base_{column}"] = ours[column]
    joined["base_completion"] = ours["completion"]
    for column in ("problem", "gold"):
        joined[column] = ours[column].where(ours[column].notna(), theirs[column])
    here, there = ours["samples"].notna(), theirs["samples"].notna()
    graded = ours["graded"].eq(True) & theirs["graded"].eq(True)
    status = pd.Series("ungraded", index=index, dtype=object)
    unread = ours["unread"].eq(True) | theirs["unread"].eq(True)
    late = ours["too_long"].eq(True) | theirs["too_long"].eq(True)
    status[late & ~unread] = "not graded"
    status[here & ~there] = "only base"
    status[~here & there] = "only checkpoint"
    status[graded] = status_of(
        ours.loc[graded, "first"].to_numpy(bool), theirs.loc[graded, "first"].to_numpy(bool)
    )
    return joined.assign(status=status).reset_index()


def _problems(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a problem of one model, indexed by benchmark, problem and occurrence.

    (A benchmark may ask the same thing twice.)
    """
    rows = rows.sort_values("sample", kind="stable")
    rows = rows.assign(
        occurrence=rows.groupby([*BENCHMARK, "problem_id", "sample"], sort=False).cumcount(),
        is_right=rows["score"] >= _RIGHT,
        is_graded=rows["score"].notna(),
        is_late=rows["score"].isna() & _late(rows),
    )
    rows["is_unread"] = ~rows["is_graded"] & ~rows["is_late"]
    return rows.groupby([*BENCHMARK, "problem_id", "occurrence"], sort=False).agg(
        first=("is_right", "first"),
        right=("is_right", "sum"),
        samples=("is_right", "size"),
        graded=("is_graded", "all"),
        unread=("is_unread", "any"),
        too_long=("is_late", "any"),
        problem=("problem", "first"),
        gold=("gold", "first"),
        completion=("completion", "first"),
        **{name: (name, "first") for name in LOGLIKS},
    )


def _late(rows: pd.DataFrame) -> pd.Series:
    """Rows without a score because comparing takes too long."""
    if "unscored" not in rows.columns:  # rows of one's own
        return pd.Series(False, index=rows.index)
    return rows["unscored"].eq("not graded").fillna(False)


def _of_base(samples: pd.DataFrame, base: MeasuredModel) -> pd.DataFrame:
    missing = [column for column in NEEDED if column not in samples.columns]
    if missing:
        raise ScalpelError(
            f"samples have no column {missing[0]!r}; give the rows of an evaluation "
            "(scalpel/samples.parquet of its run), which have " + ", ".join(NEEDED)
        )
    found = _of(samples, base)
    if not len(found):
        raise ScalpelError(
            f"base {base.model_id}: the evaluation has no rows of it, so there is nothing to "
            'compare with; run `mlflow run . -e evaluate -P set="run=RUN_ID"`, which evaluates a '
            "run's base and checkpoints together"
        )
    return found


def _of(samples: pd.DataFrame, model: MeasuredModel) -> pd.DataFrame:
    """The rows of one model, by its ID, or by its digest where it goes by another name."""
    found = samples[samples["model_id"] == model.model_id]
    if not len(found) and "model_digest" in samples.columns:
        found = samples[samples["model_digest"] == model.digest]
        found = found[found["model_id"] == found["model_id"].iloc[0]] if len(found) else found
    columns = dict.fromkeys([*found.columns, *LOGLIKS])
    return found.reindex(columns=list(columns))


def has_rows(samples: pd.DataFrame, model: MeasuredModel) -> bool:
    """Whether the evaluation has rows of the model."""
    return bool(len(_of(samples, model)))


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
    for evaluation in evaluations_of(ClientSource(), get_run(run_id)):
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
