"""Published benchmark tables: an accuracy for each benchmark and model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mlflow_scalpel.comparison.published.bounds import check_row
from mlflow_scalpel.comparison.published.files import Results, Row, read_columns, sha256
from mlflow_scalpel.errors import ScalpelError

NEEDED = ("benchmark", "model", "accuracy")
OPTIONAL = ("stderr", "n")
TEXTS = {"benchmark": "string", "model": "string"}
_NO_STEP = 1  # where a model of unknown training stands: after the base, which stands at 0


def is_benchmark_table(file: Path) -> bool:
    """Whether a file is a CSV or Parquet table with the columns benchmark, model and accuracy."""
    if file.suffix not in (".csv", ".parquet"):
        return False
    return set(NEEDED) <= {str(name) for name in read_columns(file, TEXTS, header=True).columns}


def read_benchmarks(
    files: Sequence[Path],
    *,
    base: str | None,
    models: Sequence[str] = (),
    in_domain: Sequence[str] = (),
    kind: str = "reported",
    step: int | None = None,
) -> list[Results]:
    """The results of each model in the tables, with those of the base at step 0.

    `base` is the model that training began with, as the tables name it (or the last part of a hub
    name); `models` those to take, all others by default. `in_domain` names the benchmarks that
    training was meant to improve; all others are out-of-domain. `step` is that of the trained
    models; without one they stand at step 1. Rows are `eval/<in|out>/<benchmark>/<kind>`, without
    a standard error where the table gives none.

    Raises ScalpelError where the base, a model or a benchmark is not in the tables, where no
    domain is declared, and for an accuracy that is not a share of 1.
    """
    table = pd.concat([_checked(file) for file in files], ignore_index=True)
    names = ", ".join(str(file) for file in files)
    known = list(dict.fromkeys(table["model"]))
    start = next((m for m in known if base and m in (base, base.rsplit("/", 1)[-1])), None)
    if start is None:
        problem = "not given" if base is None else f"{base!r}, which the table does not have"
        raise ScalpelError(
            f"{names}: the base is {problem}; give --base one of {', '.join(map(repr, known))}"
        )
    if wrong := [model for model in models if model not in known or model == start]:
        others = ", ".join(repr(model) for model in known if model != start)
        raise ScalpelError(f"{names}: no trained model {wrong[0]!r}; --model takes one of {others}")
    domains = _domains(names, list(dict.fromkeys(table["benchmark"])), in_domain)
    results = []
    for model in models or [model for model in known if model != start]:
        found = Results(model, files={file.name: sha256(file.read_bytes()) for file in files})
        for which, at in ((start, 0), (model, _NO_STEP if step is None else step)):
            for record in table[table["model"] == which].to_dict("records"):
                named = domains[record["benchmark"]]
                metric = f"eval/{named}/{_part(record['benchmark'])}/{kind}"
                found.rows.append({"metric": metric, "step": at, **_cells(record, which)})
        results.append(found)
    return results


def attach(known: Results, scores: Results, model: str) -> None:
    """Add a model's scores to the run that other files make: at its last step, the base's at 0."""
    last = max((row["step"] for row in known.rows), default=_NO_STEP)
    for row in scores.rows:
        known.rows.append(row if row["step"] == 0 else {**row, "step": last})
    known.files |= scores.files
    known.model = model


def _cells(record: dict[str, Any], model: str) -> Row:
    found: Row = {"value": record["accuracy"], "unit": "accuracy", "model_id": model}
    for name, kind in (("stderr", float), ("n", int)):
        value = record.get(name)
        if value is not None and not math.isnan(value):
            found[name] = kind(value)
    return found


def _part(benchmark: str) -> str:
    """A benchmark as part of a metric's name, whose parts the slash separates."""
    return "-".join(benchmark.replace("/", "-").split())


def _domains(names: str, benchmarks: list[str], in_domain: Sequence[str]) -> dict[str, str]:
    if not in_domain:
        raise ScalpelError(
            f"{names}: which benchmarks are in-domain is not declared, and is not guessed; give "
            f"--in-domain those that training was meant to improve of {', '.join(benchmarks)} "
            "(the others are out-of-domain)"
        )
    wanted = {name.casefold(): name for name in in_domain}
    there = {benchmark.casefold() for benchmark in benchmarks}
    if missing := [name for key, name in wanted.items() if key not in there]:
        raise ScalpelError(
            f"{names}: has no benchmark {missing[0]!r}; --in-domain takes {', '.join(benchmarks)}"
        )
    return {one: "in" if one.casefold() in wanted else "out" for one in benchmarks}


def _checked(file: Path) -> pd.DataFrame:
    table = read_columns(file, TEXTS)
    if unknown := [name for name in table.columns if name not in (*NEEDED, *OPTIONAL)]:
        raise ScalpelError(
            f"{file}: column {unknown[0]!r} is unknown; a table of benchmarks has "
            f"{', '.join(NEEDED)}, and may have {', '.join(OPTIONAL)}"
        )
    first = 2 if file.suffix == ".csv" else 0
    for name in ("benchmark", "model"):
        empty = table[name].isna().to_numpy(dtype=bool)
        if empty.any():
            raise ScalpelError(f"{file}: line {int(empty.argmax()) + first}: names no {name}")
    for name in [column for column in table.columns if column not in ("benchmark", "model")]:
        numbers = pd.to_numeric(table[name], errors="coerce").astype(float)
        high = 1.0 if name == "accuracy" else math.inf
        wrong = (numbers.isna() & table[name].notna()) | (numbers < 0) | (numbers > high)
        if name == "n":
            wrong |= (numbers % 1 != 0) & numbers.notna()
        if name == "accuracy":
            wrong |= numbers.isna()
        if wrong.any():
            at = int(wrong.to_numpy(dtype=bool).argmax())
            form = "share between 0 and 1 (0.35, not 35)" if name == "accuracy" else "such number"
            raise ScalpelError(
                f"{file}: line {at + first}, column {name!r}: '{table[name].iloc[at]}' is not "
                f"a {form}"
            )
        table[name] = numbers
    for number, record in enumerate(table.to_dict("records"), first):
        name = f"eval/{_part(record['benchmark'])}"
        check_row({"metric": name, **_cells(record, record["model"])}, f"{file}: line {number}")
    return table
