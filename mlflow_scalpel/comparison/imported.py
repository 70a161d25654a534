"""Published results as runs: tidy tables, and the JSON files that arXiv 2507.10616 published."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from pydantic import BaseModel, ConfigDict

from mlflow_scalpel.comparison.store import log_summary, log_table
from mlflow_scalpel.comparison.table import COLUMNS, tidy
from mlflow_scalpel.comparison.weights import MATRICES
from mlflow_scalpel.errors import ScalpelError

IMPORTED_TAG = "scalpel.imported"
SOURCE_TAG = "scalpel.source"
NOTE_TAG = "scalpel.imported_note"
DIGEST_TAG = "scalpel.imported_digest"

_KEY = re.compile(r"(?P<label>.+)-step-(?P<step>\d+)")
_BFLOAT16 = 2.0**-8  # relative size of its last place
_NO_STEP = "no step"


class About(BaseModel):
    """What the user says of imported results; files of results do not."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    algorithm: str | None = None
    base: str | None = None
    learning_rate: float | None = None
    steps: int | None = None
    dtype: str | None = None
    data: str | None = None
    source: str | None = None
    """Where the results were published: an address, a paper."""
    texts: str = "published"
    """Name of the texts that KL was measured on."""


@dataclass(frozen=True)
class Results:
    """One run's rows out of one or several files."""

    label: str
    rows: list[dict[str, Any]]


def import_files(files: Sequence[Path], experiment: str, about: About) -> list[str]:
    """Log the results in the files as finished runs, one for each label; returns their run IDs.

    Raises ScalpelError for a file of another form, for results that the experiment has already,
    and where `about` says of one run what the files say of several.
    """
    results = read_results(files, about)
    told = {name for name, value in about if value is not None} - {"source", "texts", "data"}
    if len(results) > 1 and told:
        raise ScalpelError(
            f"{', '.join(str(file) for file in files)}: hold {len(results)} runs "
            f"({', '.join(one.label for one in results)}), and --{sorted(told)[0]} is of one; "
            "import the files of each run by itself"
        )
    client = MlflowClient()
    found = client.get_experiment_by_name(experiment)
    digests = [_digest(one, about) for one in results]
    if found is not None:
        for one, digest in zip(results, digests, strict=True):
            _refuse_second(client, found.experiment_id, one, digest)
        experiment_id = found.experiment_id
    else:
        experiment_id = client.create_experiment(experiment)
    names = ", ".join(file.name for file in files)
    return [
        _log(client, experiment_id, one, digest, about, about.source or names)
        for one, digest in zip(results, digests, strict=True)
    ]


def read_results(files: Sequence[Path], about: About) -> list[Results]:
    """The rows of all files, by run label, in order of label."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        read = {".json": _read_json, ".csv": _read_table, ".parquet": _read_table}.get(file.suffix)
        if read is None:
            raise ScalpelError(f"{file}: is none of .csv, .parquet and .json")
        for label, row in read(file, about):
            runs.setdefault(label, []).append(row)
    unstepped = runs.pop("", [])
    if unstepped and len(runs) > 1:
        raise ScalpelError(
            f"{files[0]}: has keys without a step beside several runs ({', '.join(runs)}), so "
            "whose they are is not known; import the files of each run by itself"
        )
    for rows in runs.values():
        rows += unstepped
    if not runs:
        raise ScalpelError(f"{files[0]}: holds no checkpoint; keys are LABEL-step-NUMBER")
    return [Results(label, rows) for label, rows in sorted(runs.items())]


def _read_table(file: Path, about: About) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        table = pd.read_csv(file) if file.suffix == ".csv" else pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise ScalpelError(f"{file}: cannot be read as a table ({error})") from error
    if unknown := [str(name) for name in table.columns if name not in COLUMNS]:
        raise ScalpelError(
            f"{file}: column {unknown[0]!r} is unknown; a tidy table has {', '.join(COLUMNS)}"
        )
    if missing := [name for name in ("metric", "step", "value") if name not in table.columns]:
        raise ScalpelError(f"{file}: has no column {missing[0]!r}; metric, step, value are needed")
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        known = {str(name): value for name, value in row.items() if value is not None}
        yield str(known.pop("run_id", file.stem)), known


def _read_json(file: Path, about: About) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ScalpelError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict) or not content:
        raise ScalpelError(f"{file}: is no JSON object of checkpoints (LABEL-step-NUMBER)")
    for key, values in content.items():
        named = _KEY.fullmatch(key)
        place: dict[str, Any] = {"step": int(named["step"])} if named else {"reason": key}
        label = named["label"] if named else ""
        if isinstance(values, Mapping):
            yield from ((label, {**place, **row}) for row in _norms(file, key, values))
        elif isinstance(values, int | float) and not isinstance(values, bool):
            yield (
                label,
                {
                    **place,
                    "metric": "kl/all_tokens",
                    "unit": "nats/token",
                    "value": float(values),
                    "texts": about.texts,
                },
            )
        else:
            raise ScalpelError(
                f"{file}: {key!r} holds neither a number (KL) nor an object of matrices (norms)"
            )


def _norms(file: Path, key: str, values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for matrix, layers in values.items():
        if matrix not in MATRICES:
            raise ScalpelError(
                f"{file}: {key!r} has {matrix!r}, which is no matrix; there are "
                f"{', '.join(MATRICES)}"
            )
        if not isinstance(layers, list) or not all(isinstance(v, int | float) for v in layers):
            raise ScalpelError(f"{file}: {key!r}, {matrix}: is no list of numbers, one a layer")
        for layer, value in enumerate(layers):
            yield {
                "metric": "weights/relative_frobenius",
                "unit": "ratio",
                "layer": layer,
                "matrix": matrix,
                "value": float(value),
            }


def _settle_unstepped(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str | None]:
    """Rows of keys without a step, told apart from the rest, and a note on what became of them.

    The final weights are often there a second time (`main`): where every value is the last step's,
    to bfloat16, they are left out, and the note says so; else they stay as rows without a step.
    """
    stepped = [row for row in rows if "step" in row]
    others = [row for row in rows if "step" not in row]
    if not others:
        return stepped, None
    last = max(row["step"] for row in stepped)
    keys = ("metric", "layer", "matrix")
    final = {
        tuple(row.get(key) for key in keys): row["value"] for row in stepped if row["step"] == last
    }
    names = ", ".join(sorted({row["reason"] for row in others}))
    same = all(
        abs(row["value"] - final.get(tuple(row.get(key) for key in keys), float("inf")))
        <= _BFLOAT16 * abs(row["value"])
        for row in others
    )
    if same:
        return stepped, f"{names}: has no step; its values are those of step {last}, to bfloat16"
    for row in others:
        row.update(status=_NO_STEP, reason=f"{row['reason']}: the file names no step for it")
    return stepped + others, f"{names}: has no step, and differs from step {last}"


def _digest(results: Results, about: About) -> str:
    content = json.dumps([results.label, results.rows, about.texts], default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _refuse_second(client: MlflowClient, experiment_id: str, one: Results, digest: str) -> None:
    there = client.search_runs([experiment_id], f"tags.`{DIGEST_TAG}` = '{digest}'", max_results=1)
    if there:
        raise ScalpelError(
            f"{one.label}: the experiment has these results already, as run "
            f"{there[0].info.run_id} ({there[0].info.run_name}); delete that run to import anew"
        )


def _log(
    client: MlflowClient,
    experiment_id: str,
    results: Results,
    digest: str,
    about: About,
    source: str,
) -> str:
    rows, note = _settle_unstepped(results.rows)
    tags = {IMPORTED_TAG: "true", SOURCE_TAG: source, DIGEST_TAG: digest}
    tags["mlflow.note.content"] = f"Imported, not measured here. Source: {source}"
    if note is not None:
        tags[NOTE_TAG] = note
    name = f"{about.name or results.label} (imported)"
    run_id = str(client.create_run(experiment_id, run_name=name, tags=tags).info.run_id)
    params = {
        "algorithm": about.algorithm,
        "base": about.base,
        "learning_rate": about.learning_rate,
        "max_steps": about.steps,
        "weights_dtype": about.dtype,
        "data": about.data,
        "imported_from": source,
    }
    for key, value in params.items():
        if value is not None:
            client.log_param(run_id, key, value)
    told = {"algorithm": about.algorithm, "base": about.base, "dtype": about.dtype}
    given = {key: value for key, value in told.items() if value is not None}
    # What a row says of itself goes before what is said of all.
    label = results.label
    table = tidy({"model_id": label, **given, **row, "run_id": run_id} for row in rows)
    log_table(table, run_id)
    log_summary(table[table["status"] != _NO_STEP], run_id)
    client.set_terminated(run_id, "FINISHED")
    return run_id
