"""Files of published results: tidy tables, and the JSON files of arXiv 2507.10616."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from mlflow_scalpel.comparison.parquet import read_bounded
from mlflow_scalpel.comparison.published.bounds import SCALARS, check_row, scalar_unit
from mlflow_scalpel.comparison.table import COLUMNS, DTYPES
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.places import CLASSICAL

_KEY = re.compile(r"(?P<label>.+)-step-(?P<step>\d+)")

Row = dict[str, Any]

OPTIONS = f"{', '.join(SCALARS)}, eval/in/BENCHMARK/KIND, eval/out/BENCHMARK/KIND"
_MOST_DIGITS = 15  # of a step
_LARGEST = 10**300  # of a whole number that is a value; a float holds no more


@dataclass
class Results:
    """One run's rows out of one or several files."""

    label: str
    rows: list[Row] = field(default_factory=list)
    unstepped: dict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))
    """Rows by key, of keys that name no step, such as `main`."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file by name."""
    model: str | None = None
    """The name that a table of benchmarks has for it."""


def read_results(
    files: Sequence[Path], scalars: Sequence[str] = (), dtype: str | None = None
) -> list[Results]:
    """The rows of all files, by run label, in order of label.

    Keys without a step belong to the run of their file; in a file of nothing else, to the only run.
    `scalars` say of which metric the bare numbers of JSON files are: METRIC, or FILE=METRIC for one
    of several files. `dtype` is that in which the values were computed. Raises ScalpelError for a
    file of another form, for bare numbers of which nothing is said, and for a value that its metric
    cannot have.
    """
    metrics = _scalar_metrics(files, scalars)
    runs: dict[str, Results] = {}
    strays: list[tuple[Path, dict[str, list[Row]]]] = []
    for file in files:
        if file.suffix not in (".json", ".csv", ".parquet"):
            raise ScalpelError(f"{file}: is not a .csv, .parquet or .json file")
        labels: set[str] = set()
        unstepped: dict[str, list[Row]] = defaultdict(list)
        if file.suffix == ".json":
            found = _read_json(file, metrics.get(file), dtype)
        else:
            found = _read_table(file, dtype)
        for label, key, row in found:
            if not label:
                unstepped[key].append(row)
                continue
            labels.add(label)
            run = runs.setdefault(label, Results(label))
            (run.unstepped[key] if key else run.rows).append(row)
        if not labels and not unstepped:
            raise ScalpelError(f"{file}: holds no value; is it the file that you meant?")
        for label in labels:
            runs[label].files[file.name] = sha256(file.read_bytes())
        if len(labels) == 1:
            _extend(runs[labels.pop()].unstepped, unstepped)
        elif unstepped:
            strays.append((file, unstepped))
    for file, unstepped in strays:
        keys = ", ".join(unstepped)
        if not runs:
            raise ScalpelError(
                f"{file}: holds no checkpoint, only {keys}; checkpoints are LABEL-step-NUMBER"
            )
        if len(runs) > 1:
            raise ScalpelError(
                f"{file}: {keys} has no step, and whose it is of {', '.join(sorted(runs))} is not "
                "known; import the files of each run by itself"
            )
        (run,) = runs.values()
        run.files[file.name] = sha256(file.read_bytes())
        _extend(run.unstepped, unstepped)
    return [run for _, run in sorted(runs.items())]


def _scalar_metrics(files: Sequence[Path], scalars: Sequence[str]) -> dict[Path, str]:
    """The metric of each file's bare numbers, where one is given."""
    found: dict[Path, str] = {}
    for one in scalars:
        name, equals, metric = one.rpartition("=")
        if scalar_unit(metric) is None:
            raise ScalpelError(
                f"--metric {one}: {metric!r} has no single value per checkpoint; use one of "
                f"{OPTIONS}"
            )
        of = [file for file in files if not equals or name in (str(file), file.name)]
        if not of:
            raise ScalpelError(f"--metric {one}: no file {name!r} is imported")
        found |= dict.fromkeys(of, metric)
    return found


def _extend(known: dict[str, list[Row]], more: Mapping[str, list[Row]]) -> None:
    for key, rows in more.items():
        known[key] += rows


def _read_table(file: Path, dtype: str | None) -> Iterator[tuple[str, str, Row]]:
    """(label, key, row) for each row of a tidy table; the key is "" where the row has a step."""
    texts = {name: "string" for name, dtype in DTYPES.items() if dtype == "string"}
    table = read_columns(file, texts)
    if unknown := [str(name) for name in table.columns if name not in COLUMNS]:
        raise ScalpelError(
            f"{file}: column {unknown[0]!r} is unknown; a tidy table has {', '.join(COLUMNS)}"
        )
    if missing := [name for name in ("metric", "step", "value") if name not in table.columns]:
        raise ScalpelError(f"{file}: has no column {missing[0]!r}; metric, step, value are needed")
    first, place = (2, "line") if file.suffix == ".csv" else (0, "row")
    for name in table.columns:
        if DTYPES[name] == "string":
            table[name] = table[name].astype("string")
            continue
        try:
            numbers = pd.to_numeric(table[name], errors="coerce").astype("Float64")
        except OverflowError as error:
            raise ScalpelError(
                f"{file}: column {name!r} holds a whole number of hundreds of digits; correct it"
            ) from error
        wrong = numbers.isna() & table[name].notna()
        if DTYPES[name] == "Int64":
            wrong |= numbers.notna() & (numbers % 1 != 0).fillna(True)
        if wrong.any():
            at = int(wrong.to_numpy(dtype=bool).argmax())
            kind = "whole number" if DTYPES[name] == "Int64" else "number"
            raise ScalpelError(
                f"{file}: {place} {at + first}, column {name!r}: '{table[name].iloc[at]}' is not a "
                f"{kind}; correct it, or leave it empty"
            )
        table[name] = numbers.astype(DTYPES[name])
    records = table.astype(object).where(table.notna(), None).to_dict("records")
    for number, row in enumerate(records, first):
        if row["metric"] is None:
            raise ScalpelError(f"{file}: {place} {number}: names no metric; name it or remove it")
        known = {str(name): value for name, value in row.items() if value is not None}
        if known.get("status", "ok") == "ok" and (known.get("value") in (math.inf, -math.inf)):
            known |= _valued(known["value"])
        check_row(known, f"{file}: {place} {number}", dtype)
        label = str(known.pop("run_id", file.stem))
        yield label, "" if "step" in known else str(known.get("model_id", file.name)), known


def read_columns(file: Path, texts: Mapping[str, str], *, header: bool = False) -> pd.DataFrame:
    """The rows of a CSV or Parquet file; of a CSV file none where only its header is wanted.

    `texts` are dtypes of the columns that hold text, in which names such as 0001 stay as they are.
    Raises ScalpelError where it cannot be read.
    """
    try:
        if file.suffix == ".csv":
            return pd.read_csv(file, dtype=dict(texts), nrows=0 if header else None)
        table = read_bounded(file, None)
    except (OSError, ValueError, ScalpelError) as error:
        raise ScalpelError(f"{file}: cannot be read as a table ({error})") from error
    return table.astype({name: kind for name, kind in texts.items() if name in table.columns})


def _read_json(file: Path, scalar: str | None, dtype: str | None) -> Iterator[tuple[str, str, Row]]:
    """(label, "", row) for each value of a checkpoint; ("", key, row) where the key has no step."""
    try:
        content = json.loads(file.read_bytes(), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise ScalpelError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict) or not content:
        raise ScalpelError(f"{file}: is not a JSON object of checkpoints (LABEL-step-NUMBER)")
    sizes: dict[str, tuple[str, int]] = {}
    of_norms = any(isinstance(values, Mapping) for values in content.values())
    for key, values in content.items():
        named = _KEY.fullmatch(key)
        label = named["label"] if named else ""
        if named and len(named["step"]) > _MOST_DIGITS:
            raise ScalpelError(f"{file}: {key[:80]!r}: has no step but {len(named['step'])} digits")
        place = {"step": int(named["step"])} if named else {}
        if isinstance(values, Mapping):
            rows = list(_norms(file, key, values))
            layers = 1 + max(row["layer"] for row in rows)
            other, expected = sizes.setdefault(label, (key, layers))
            if layers != expected:
                raise ScalpelError(
                    f"{file}: {key!r} has {layers} layers, and {other!r} has {expected}; one of "
                    "them is cut off or of another model: correct or remove it"
                )
        elif _is_value(values) and not (values is None and of_norms):
            if scalar is None:
                raise ScalpelError(
                    f"{file}: {key!r} is a bare number ({values}), and whether it is a KL or an "
                    f"accuracy the file does not say; say it with --metric, one of {OPTIONS} (of "
                    f"one file among several: --metric {file.name}=METRIC)"
                )
            rows = [{"metric": scalar, "unit": scalar_unit(scalar), **_valued(values)}]
        else:
            raise ScalpelError(
                f"{file}: {key!r} holds neither a number nor an object of matrices (norms)"
            )
        for row in rows:
            where = [f"{row[name]}" for name in ("matrix", "layer") if name in row]
            check_row(row, ", ".join([f"{file}: {key!r}", *where]), dtype)
            yield label, "" if named else key, {**place, **row}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands there twice; leave one")
    return content


def _is_value(value: Any) -> bool:
    if isinstance(value, int) and abs(value) > _LARGEST:
        return False
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _valued(value: float | None) -> Row:
    """The cells of a value: where the file has no finite number, why there is none."""
    if value is None or not math.isfinite(value):
        text = "null" if value is None else str(value)
        return {"value": None, "status": "undefined", "reason": f"the file says {text}"}
    return {"value": float(value)}


def _norms(file: Path, key: str, values: Mapping[str, Any]) -> Iterator[Row]:
    sizes: dict[str, int] = {}
    for matrix, layers in values.items():
        if matrix not in CLASSICAL:
            raise ScalpelError(
                f"{file}: {key!r} has {matrix!r}, which is not a matrix; there are "
                f"{', '.join(CLASSICAL)}"
            )
        if not isinstance(layers, list) or not all(_is_value(value) for value in layers):
            raise ScalpelError(
                f"{file}: {key!r}, {matrix}: is not a list of numbers, one per layer"
            )
        sizes[matrix] = len(layers)
        for layer, value in enumerate(layers):
            yield {
                "metric": "weights/relative_frobenius",
                "unit": "ratio",
                "layer": layer,
                "matrix": matrix,
                "part": "attention" if matrix in CLASSICAL[:4] else "mlp",
                **_valued(value),
            }
    if not any(sizes.values()):
        raise ScalpelError(f"{file}: {key!r} holds no value; remove the key")
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{matrix} {size}" for matrix, size in sizes.items())
        raise ScalpelError(
            f"{file}: {key!r} has not the same number of layers for each matrix ({found}); "
            "complete it, with null where there is no value"
        )


def sha256(content: bytes) -> str:
    """The digest in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
