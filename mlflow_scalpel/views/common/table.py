"""The tidy table as every view reads it, cleaned once: rows of metrics, runs and their styles.

Tables arrive half full: a checkpoint that would not load, a metric that broke, a run still going.
`clean_table` turns any of that into plain floats and strings, so that a view has one kind of gap
(NaN) and one place for its cause (`reason`). `Measurements` holds the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from mlflow_scalpel.tensors.places import CLASSICAL, LAYER_PARTS
from mlflow_scalpel.views.common.style import Run, run_styles
from mlflow_scalpel.views.common.text import column_of, number

#: The columns that views read; the tidy table has a few more.
COLUMNS = (
    "base",
    "base_digest",
    "model_id",
    "run_id",
    "algorithm",
    "step",
    "metric",
    "layer",
    "head",
    "other",
    "matrix",
    "part",
    "bin",
    "value",
    "stderr",
    "n",
    "unit",
    "dtype",
    "texts",
    "status",
    "reason",
)
NUMBERS = ("step", "layer", "head", "value", "stderr", "n")
#: Columns that are missing in tables of an older version.
ADDED_LATER = ("other", "part", "dtype")
#: Two rows that agree in these measure the same thing.
KEYS = ("run_id", "step", "metric", "layer", "head", "other", "matrix", "bin", "texts")

#: In `attrs` of a table that is clean.
CLEAN = "mlflow_scalpel.views.clean"

#: An expert among several, of which each is a matrix of its own.
_EXPERT = r"\bexperts\.\d+\."


@dataclass(frozen=True, eq=False)
class Measurements:
    """A clean table, with what is known of its runs: what every view is a function of."""

    table: pd.DataFrame
    runs: pd.DataFrame | None = None
    """A row per run (index: run ID): the column `name`, and any parameters."""

    @classmethod
    def of(
        cls, table: pd.DataFrame | Measurements, runs: pd.DataFrame | None = None
    ) -> Measurements:
        """The measurements in a tidy table; measurements come back as they are.

        Raises ValueError if columns are missing.
        """
        return table if isinstance(table, Measurements) else cls(clean_table(table), runs)

    @cached_property
    def styles(self) -> dict[str, Run]:
        """The runs in the order of all figures, by ID."""
        return run_styles(self.table, self.runs)

    @cached_property
    def _places(self) -> dict[str, np.ndarray]:
        codes, metrics = pd.factorize(self.table["metric"])
        ends = np.bincount(codes, minlength=len(metrics)).cumsum()[:-1]
        return dict(zip(metrics, np.split(np.argsort(codes, kind="stable"), ends), strict=False))

    @property
    def metrics(self) -> list[str]:
        """The metrics of which there are rows."""
        return list(self._places)

    def rows(self, *metrics: str, start: str | None = None) -> pd.DataFrame:
        """All rows of these metrics, or of those that start so, in the order of the table."""
        names = set(metrics)
        if start is not None:
            names |= {name for name in self._places if name.startswith(start)}
        places = [self._places[name] for name in names if name in self._places]
        return self.table.iloc[np.sort(np.concatenate(places)) if places else []]

    def checkpoints(self, *metrics: str) -> pd.DataFrame:
        """The rows of these metrics that are of the runs' checkpoints: not of the base."""
        rows = self.rows(*metrics)
        return rows[(rows["step"] > 0) & (rows["run_id"] != "")]

    def matrices(self, metric: str) -> pd.DataFrame:
        """The rows of a metric that are of one matrix of one layer of a checkpoint as a whole."""
        return whole_matrices(self.checkpoints(metric))

    def runs_in(self, rows: pd.DataFrame) -> list[Run]:
        """The runs that have any of these rows, in the order of all figures."""
        there = set(rows["run_id"])
        return [run for run in self.styles.values() if run.run_id in there]

    def parameter(self, run_id: str, name: str) -> str:
        """A parameter of a run, as text; "" where it is not recorded."""
        return column_of(self.runs, run_id, name)

    def end(self, run_id: str) -> float:
        """A run's last step: what `steps` in `runs` says, or the table's where that is later."""
        last = self.table.loc[self.table["run_id"] == run_id, "step"].max()
        recorded = number(self.parameter(run_id, "steps"))
        ends = [float(end) for end in (last, recorded) if end is not None and end > 0]
        return max(ends, default=float("nan"))

    def stepless(self, run_ids: Iterable[str]) -> list[str]:
        """Those of the runs that are published models of unknown training.

        They stand at step 1 for want of a step.
        """
        published = [i for i in run_ids if self.parameter(i, "imported_from")]
        return [i for i in published if not self.parameter(i, "steps")]

    def steps_text(self, rows: pd.DataFrame) -> str:
        """Of which checkpoint of each run the rows of `at_step` are; safe text."""
        steps = rows.groupby("run_id", sort=False)["step"].first()
        return ", ".join(f"{run.label} at step {steps[run.run_id]:g}" for run in self.runs_in(rows))


def clean_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table with floats for numbers, "" for absent text and NaN for every value that is absent.

    A row whose status is not `ok`, or whose value is not finite, keeps its row with `value` NaN and
    a `reason`. Of rows that measure the same thing twice, a value wins over a gap, then the later
    row wins. A row without a run is filed under its model. A clean table, or rows of one, is given
    back as it is.

    Raises ValueError if columns are missing.
    """
    if table.attrs.get(CLEAN):
        return table
    missing = [column for column in COLUMNS if column not in (*table.columns, *ADDED_LATER)]
    if missing and len(table):
        raise ValueError(
            f"the table is missing the columns {missing}: pass the tidy table of a comparison, "
            f"which has {list(COLUMNS)}"
        )
    columns: dict[str, Any] = {}
    codes: dict[str, np.ndarray] = {}
    for column in COLUMNS:
        given = table[column] if column in table.columns else pd.Series([pd.NA] * len(table))
        if column in NUMBERS:
            numbers = pd.Series(pd.to_numeric(given, errors="coerce"))
            columns[column] = numbers.to_numpy(dtype=float, na_value=np.nan)
        else:
            codes[column], columns[column] = _texts_of(given)
    clean = pd.DataFrame(columns)
    unnamed = (clean["run_id"] == "") & (clean["step"] != 0)
    if unnamed.any():
        clean["run_id"] = clean["run_id"].where(~unnamed, clean["model_id"])
        codes["run_id"], _ = pd.factorize(clean["run_id"])
    ok = clean["status"] == "ok"
    has = ok & np.isfinite(columns["value"])
    unexplained = ~has & (clean["reason"] == "")
    if unexplained.any():
        why = clean["status"].where(~ok, "not a finite number")
        why = why.where(why != "", "no reason was recorded")
        clean["reason"] = clean["reason"].where(~unexplained, why)
    clean["value"] = clean["value"].where(has)
    clean["stderr"] = clean["stderr"].where(np.isfinite(columns["stderr"]))
    order = np.argsort(has.to_numpy(), kind="stable")  # gaps first: the last of doubles stays
    places = _places_of({column: codes.get(column, columns[column]) for column in KEYS})
    doubled = pd.Series(places[order]).duplicated(keep="last").to_numpy()
    if doubled.any():
        clean = clean.iloc[np.sort(order[~doubled])]
    clean.attrs[CLEAN] = True
    return clean


def _texts_of(column: pd.Series) -> tuple[np.ndarray, Any]:
    """A column as plain strings, "" where it is null, with a number for each distinct text."""
    codes, found = pd.factorize(column)
    texts = [str(text) for text in found]
    if "" in texts:
        codes = np.where(codes == texts.index(""), -1, codes)  # absent either way
    distinct = pd.array([*texts, ""], dtype="str")
    return codes, distinct.take(codes)


def _places_of(columns: dict[str, np.ndarray]) -> np.ndarray:
    """A number for each row, the same for rows that measure the same thing."""
    places = np.zeros(len(columns["step"]), dtype=np.int64)
    room = 1
    for column in KEYS:
        codes, found = pd.factorize(columns[column])
        size = len(found) + 1
        if room * size > 2**62:  # numbered anew before the product is too large
            places, distinct = pd.factorize(places)
            room = len(distinct)
        places = places * size + codes + 1
        room *= size
    return places


def whole_matrices(rows: pd.DataFrame) -> pd.DataFrame:
    """Those rows that belong to one matrix of one layer as a whole."""
    own = of_layers(rows)
    pieces = own["head"].notna() | (own["bin"] != "")
    return own[~pieces & own["step"].notna()]


def of_layers(rows: pd.DataFrame) -> pd.DataFrame:
    """Those rows that are of a matrix in a layer: not of norms, biases, embeddings or vision."""
    inside = rows["layer"].notna() & (rows["matrix"] != "")
    return rows[inside & rows["part"].isin(("", *LAYER_PARTS))]


def over_experts(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `whole_matrices`, with one of all experts of a layer in place of one an expert.

    Its matrix is `experts.*.up_proj`, its value the mean over the experts that have one.
    """
    single = rows["matrix"].str.contains(_EXPERT)
    if not single.any():
        return rows
    experts = rows[single]
    kinds = experts.assign(matrix=kind_of(experts["matrix"]))
    keys = [column for column in KEYS if column != "bin"]
    found = kinds.groupby(keys, sort=False, dropna=False, as_index=False).agg(
        {
            column: "mean" if column == "value" else "sum" if column == "n" else "first"
            for column in rows.columns
            if column not in keys
        }
    )
    return pd.concat([rows[~single], found[rows.columns]], ignore_index=True)


def kind_of(matrices: pd.Series) -> pd.Series:
    """`experts.*.up_proj` in place of `experts.3.up_proj`."""
    return matrices.str.replace(_EXPERT, "experts.*.", regex=True)


def matrices_in(rows: pd.DataFrame) -> list[str]:
    """The matrices of these rows: the usual seven in their order, then any others by name."""
    present = set(rows["matrix"])
    return ordered(present, CLASSICAL)


def at_step(rows: pd.DataFrame, step: float | None = None, by: str = "run_id") -> pd.DataFrame:
    """The rows of the last step of each run (or of each value of `by`), or those of `step`."""
    last = rows.groupby(by)["step"].transform("max") if step is None else step
    return rows[rows["step"] == last]


def last_step(rows: pd.DataFrame) -> float | None:
    """The last step of these rows, with a value or without one; None for no rows.

    Never an earlier one that has a value: what is shown as the last would be out of date, and that
    the last one has none is a result.
    """
    steps = rows["step"].dropna()
    return float(steps.max()) if len(steps) else None


def ordered(present: Iterable[str], first: Sequence[str]) -> list[str]:
    """The members of `present`: those in `first` in that order, then the others by name."""
    members = set(present)
    return [item for item in first if item in members] + sorted(members - set(first))
