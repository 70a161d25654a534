"""Published results as runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Param
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict

from mlflow_scalpel.comparison.published.benchmarks import (
    attach,
    is_benchmark_table,
    read_benchmarks,
)
from mlflow_scalpel.comparison.published.files import Results, Row, read_results, sha256
from mlflow_scalpel.comparison.run_store import log_summary, log_table
from mlflow_scalpel.comparison.table import DTYPES, IMPORTED, tidy
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.links import DESCRIPTION_TAG, run_note

IMPORTED_TAG = "scalpel.imported"
SOURCE_TAG = "scalpel.source"
NOTE_TAG = "scalpel.imported_note"
DIGEST_TAG = "scalpel.imported_digest"
FILES_TAG = "scalpel.imported_files"

_BFLOAT16 = 2.0**-8  # relative size of its last place
_NO_STEP = "no step"
_OF_ONE_RUN = ("name", "algorithm", "learning_rate", "steps", "frozen", "seed")
# Columns that tell a value from another one, as `joined` reads them.
_PLACE = ("step", "metric", "layer", "head", "other", "matrix", "bin", "texts")


class About(BaseModel):
    """Facts about imported results that files of results do not hold; the user gives them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    algorithm: str | None = None
    base: str | None = None
    learning_rate: float | None = None
    steps: int | None = None
    dtype: str | None = None
    data: str | None = None
    seed: int | None = None
    frozen: str | None = None
    """The weights that training left alone, in the source's words."""
    source: str | None = None
    """The publication: an address, a paper."""
    texts: str = "published"
    """Name of the texts that KL was measured on, where the files name none."""
    metric: list[str] = []
    """Of which metric bare numbers are: METRIC, or FILE=METRIC for one of several files."""
    model: list[str] = []
    """The trained models to take of tables of benchmarks; all unless given."""
    in_domain: list[str] = []
    """The benchmarks that training was meant to improve; the others are out-of-domain."""
    kind: str = "reported"
    """How the benchmarks were measured, such as greedy or sampled."""


def import_files(files: Sequence[Path], experiment: str, about: About) -> list[str]:
    """Log the results in the files as finished runs, one for each label; returns their run IDs.

    A table of benchmarks makes a run of each of its trained models; beside files of one other run,
    the one model that `about` names is that run. Raises ScalpelError for a file of another form,
    for results that the experiment has already, and where `about` says of one run what the files
    say of several.
    """
    results = _read(files, about)
    named = [name for name in _OF_ONE_RUN if getattr(about, name) is not None]
    if len(results) > 1 and named:
        raise ScalpelError(
            f"{', '.join(str(file) for file in files)}: hold {len(results)} runs "
            f"({', '.join(one.label for one in results)}), and --{named[0].replace('_', '-')} is "
            "of one; import the files of each run by itself"
        )
    tables = [_table(one, about) for one in results]
    client = MlflowClient()
    found = client.get_experiment_by_name(experiment)
    if found is not None and found.lifecycle_stage == "deleted":
        raise ScalpelError(
            f"experiment {experiment}: was deleted; restore it "
            f"(mlflow experiments restore -x {found.experiment_id}) or name another"
        )
    if found is not None:
        for one in results:
            _refuse_second(client, found.experiment_id, one)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment)
    return [
        _log(client, str(experiment_id), one, table, note, about)
        for one, (table, note) in zip(results, tables, strict=True)
    ]


def _read(files: Sequence[Path], about: About) -> list[Results]:
    tables = [file for file in files if is_benchmark_table(file)]
    others = [file for file in files if file not in tables]
    results = read_results(others, about.metric, about.dtype) if others else []
    if not tables:
        return results
    scores = read_benchmarks(
        tables,
        base=about.base,
        models=about.model,
        in_domain=about.in_domain,
        kind=about.kind,
        step=about.steps,
    )
    if not results:
        return scores
    if len(results) > 1 or len(about.model) != 1:
        raise ScalpelError(
            f"{', '.join(str(file) for file in tables)}: beside the results of "
            f"{', '.join(one.label for one in results)} it takes one --model, which says whose row "
            f"belongs to them ({', '.join(repr(one.label) for one in scores)}); import the files "
            "of each run by itself"
        )
    attach(results[0], scores[0], about.model[0])
    return results


def _table(results: Results, about: About) -> tuple[pd.DataFrame, str | None]:
    """The tidy table of a run that has no ID yet, and a note on its keys without a step."""
    last = max((row["step"] for row in results.rows), default=0)
    if about.steps is not None and last > about.steps:
        raise ScalpelError(
            f"{', '.join(results.files)}: {results.label} has a checkpoint at step {last}, and "
            f"--steps {about.steps} says that training ended before; correct one of them"
        )
    added, note = _settle_unstepped(results)
    given = {"algorithm": about.algorithm, "base": about.base, "dtype": about.dtype}
    stated = {key: value for key, value in given.items() if value is not None}
    records = []
    for row in results.rows + added:
        texts = {"texts": about.texts} if row["metric"].startswith("kl/") else {}
        # What a row says of itself goes before what is said of all.
        records.append({"model_id": results.label, **stated, **texts, **row})
    _refuse_doubles(results, records)
    return tidy(records), note


def _settle_unstepped(results: Results) -> tuple[list[Row], str | None]:
    """The rows without a step that stay, and a note on what became of each key.

    The final weights are often there a second time (`main`): where every value is the last step's,
    to bfloat16, they are left out, and the note says so; else they stay as rows without a step.
    """
    last: dict[str, int] = {}
    for row in results.rows:
        last[row["metric"]] = max(row["step"], last.get(row["metric"], row["step"]))
    final = {_place(row)[1:]: row for row in results.rows if row["step"] == last[row["metric"]]}
    added: list[Row] = []
    notes = []
    for key, rows in results.unstepped.items():
        if all(_same(row, final.get(_place(row)[1:])) for row in rows):
            steps = ", ".join(str(last[metric]) for metric in {row["metric"]: 0 for row in rows})
            notes.append(f"{key}: has no step; its values are those of step {steps}, to bfloat16")
            continue
        notes.append(f"{key}: has no step, and is not the last step again")
        for row in rows:
            stated = row.get("status", "ok") != "ok"
            why = row.get("reason") if stated else "the file names no step for it"
            added.append({**row, "status": _NO_STEP, "reason": f"{key}: {why}"})
    return added, "; ".join(notes) or None


def _place(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(column) for column in _PLACE)


def _same(row: Row, other: Row | None) -> bool:
    if other is None:
        return False
    mine, its = row.get("value"), other.get("value")
    if mine is None or its is None:
        return mine is its
    return bool(abs(mine - its) <= _BFLOAT16 * abs(mine))


def _refuse_doubles(results: Results, records: Iterable[Row]) -> None:
    seen: set[tuple[Any, ...]] = set()
    for row in records:
        place = _place(row)
        if place in seen:
            parts = [f"{n} {v}" for n, v in zip(_PLACE, place, strict=True) if v is not None]
            without = "" if "step" in row else f" (no step: {', '.join(results.unstepped)})"
            raise ScalpelError(
                f"{', '.join(results.files)}: {results.label} has two values for "
                f"{', '.join(parts)}{without}; leave one of them, or give them different steps"
            )
        seen.add(place)


def _digest(results: Results) -> str:
    """Of label and rows, whatever the order in which the files were given."""
    rows = [*results.rows, *({**row, "key": k} for k, v in results.unstepped.items() for row in v)]
    texts = sorted(json.dumps(row, sort_keys=True) for row in rows)
    return sha256(json.dumps([results.label, texts]).encode())


def _refuse_second(client: MlflowClient, experiment_id: str, one: Results) -> None:
    there = client.search_runs(
        [experiment_id],
        f"tags.`{DIGEST_TAG}` = '{_digest(one)}' AND status = 'FINISHED'",
        max_results=1,
    )
    if there:
        raise ScalpelError(
            f"{one.label}: the experiment has these results already, as run "
            f"{there[0].info.run_id} ({there[0].info.run_name}); delete that run to import anew"
        )


def _log(
    client: MlflowClient,
    experiment_id: str,
    results: Results,
    table: pd.DataFrame,
    note: str | None,
    about: About,
) -> str:
    source = about.source or ", ".join(results.files)
    tags = {
        IMPORTED_TAG: "true",
        SOURCE_TAG: source,
        DIGEST_TAG: _digest(results),
        FILES_TAG: json.dumps(results.files),
    }
    if note is not None:
        tags[NOTE_TAG] = note
    name = f"{about.name or results.model or results.label}{IMPORTED}"
    params = {
        "algorithm": about.algorithm,
        "base": about.base,
        "learning_rate": about.learning_rate,
        "max_steps": about.steps,
        "weights_dtype": about.dtype,
        "data": about.data,
        "seed": about.seed,
        "frozen": about.frozen,
        "imported_from": source,
    }
    run_id = str(client.create_run(experiment_id, run_name=name, tags=tags).info.run_id)
    ended = "FAILED"
    try:
        text = f"Imported, not measured here. Source: {source}"
        client.set_tag(run_id, DESCRIPTION_TAG, run_note(run_id, text))
        given = [Param(key, str(value)) for key, value in params.items() if value is not None]
        client.log_batch(run_id, params=given)
        table = table.assign(run_id=run_id).astype(DTYPES)
        log_table(table, run_id)
        # Models of another store cannot be linked to.
        known = table[table["status"] != _NO_STEP].assign(model_id=pd.NA)
        log_summary(known, run_id)
        ended = "FINISHED"
    except MlflowException as error:
        raise ScalpelError(
            f"{results.label}: MLflow did not take it, and run {run_id} is FAILED ({error}); "
            "correct what it names and import again"
        ) from error
    finally:
        client.set_terminated(run_id, ended)
    return run_id
