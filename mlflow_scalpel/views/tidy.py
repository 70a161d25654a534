"""Reading the tidy table: what every figure needs before it can draw.

Tables arrive half full: a checkpoint that would not load, a metric that broke, a run still going.
`read` turns any of that into plain floats and strings, so that a view has one kind of gap (NaN)
and one place for its cause (`reason`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mlflow_scalpel.tensors.places import CLASSICAL, LAYER_PARTS

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
#: Columns that tables of an older version lack.
LATER = ("other", "part", "dtype")
#: What two rows must share to measure the same thing.
SAME = ("run_id", "step", "metric", "layer", "head", "other", "matrix", "bin", "texts")

#: In `attrs` of what `read` gave.
READ = "mlflow_scalpel.views.read"

#: An expert among several, of which each is a matrix of its own.
_EXPERT = r"\bexperts\.\d+\."

#: Half the width of a 95 % normal interval, in standard errors.
Z = 1.96


def read(table: pd.DataFrame) -> pd.DataFrame:
    """The table with floats for numbers, "" for absent text and NaN for every value that is absent.

    A row whose status is not `ok`, or whose value is not finite, keeps its row with `value` NaN and
    a `reason`. Of rows that measure the same thing twice, a value wins over a gap, then the later
    row wins. A row without a run is filed under its model. What `read` gave, or rows of it, it
    gives back as it is, so that many figures of one table can share one reading.

    Raises ValueError if columns are missing.
    """
    if table.attrs.get(READ):
        return table
    missing = [column for column in COLUMNS if column not in (*table.columns, *LATER)]
    if missing and len(table):
        raise ValueError(
            f"the table lacks the columns {missing}: pass the tidy table of a comparison, "
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
            codes[column], columns[column] = texts_of(given)
    clean = pd.DataFrame(columns)
    unnamed = (clean["run_id"] == "") & (clean["step"] != 0)
    if unnamed.any():
        clean["run_id"] = clean["run_id"].where(~unnamed, clean["model_id"])
        codes["run_id"], _ = pd.factorize(clean["run_id"])
    ok = clean["status"] == "ok"
    has = ok & np.isfinite(columns["value"])
    unsaid = ~has & (clean["reason"] == "")
    if unsaid.any():
        why = clean["status"].where(~ok, "not a finite number")
        why = why.where(why != "", "no reason was recorded")
        clean["reason"] = clean["reason"].where(~unsaid, why)
    clean["value"] = clean["value"].where(has)
    clean["stderr"] = clean["stderr"].where(np.isfinite(columns["stderr"]))
    order = np.argsort(has.to_numpy(), kind="stable")  # gaps first: the last of doubles stays
    places = places_of({column: codes.get(column, columns[column]) for column in SAME})
    doubled = pd.Series(places[order]).duplicated(keep="last").to_numpy()
    if doubled.any():
        clean = clean.iloc[np.sort(order[~doubled])]
    clean.attrs[READ] = True
    return clean


def texts_of(column: pd.Series) -> tuple[np.ndarray, Any]:
    """A column as plain strings, "" where it is null, with a number for each distinct text."""
    codes, found = pd.factorize(column)
    texts = [str(text) for text in found]
    if "" in texts:
        codes = np.where(codes == texts.index(""), -1, codes)  # absent either way
    distinct = pd.array([*texts, ""], dtype="str")
    return codes, distinct.take(codes)


def places_of(columns: dict[str, np.ndarray]) -> np.ndarray:
    """A number for each row, the same for rows that measure the same thing."""
    places = np.zeros(len(columns["step"]), dtype=np.int64)
    room = 1
    for column in SAME:
        codes, found = pd.factorize(columns[column])
        size = len(found) + 1
        if room * size > 2**62:  # numbered anew before the product is too large
            places, distinct = pd.factorize(places)
            room = len(distinct)
        places = places * size + codes + 1
        room *= size
    return places


def per_matrix(clean: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of `metric` that belong to one matrix of one layer as a whole."""
    own = of_layers(clean[clean["metric"] == metric])
    pieces = own["head"].notna() | (own["bin"] != "")
    return own[~pieces & own["step"].notna()]


def of_layers(rows: pd.DataFrame) -> pd.DataFrame:
    """Those rows that are of a matrix in a layer: not of norms, biases, embeddings or vision."""
    inside = rows["layer"].notna() & (rows["matrix"] != "")
    return rows[inside & rows["part"].isin(("", *LAYER_PARTS))]


def over_experts(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `per_matrix`, with one of all experts of a layer in place of one an expert.

    Its matrix is `experts.*.up_proj`, its value the mean over the experts that have one.
    """
    single = rows["matrix"].str.contains(_EXPERT)
    if not single.any():
        return rows
    experts = rows[single]
    kinds = experts.assign(matrix=kind_of(experts["matrix"]))
    keys = [column for column in SAME if column != "bin"]
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


def last_step(rows: pd.DataFrame) -> float | None:
    """The last step of these rows, with a value or without one; None for no rows.

    Never an earlier one that has a value: what is shown as the last would be out of date, and that
    the last one has none is a result.
    """
    steps = rows["step"].dropna()
    return float(steps.max()) if len(steps) else None


def reasons(texts: Iterable[str]) -> str:
    """Distinct reasons, in the order in which they first appear, as one string."""
    return "; ".join(dict.fromkeys(text for text in texts if text)) or "no reason was recorded"


def probe(texts: str) -> str:
    """The name of a probe set: the first word of the column `texts`."""
    words = texts.split()
    return words[0] if words else "texts not named"


def ordered(present: Iterable[str], first: Sequence[str]) -> list[str]:
    """The members of `present`: those in `first` in that order, then the others by name."""
    members = set(present)
    return [item for item in first if item in members] + sorted(members - set(first))


def number(value: object) -> float | None:
    """`value` as a finite float, or None: parameters of a run come as text."""
    try:
        parsed = float(str(value))
    except ValueError:
        return None
    return parsed if np.isfinite(parsed) else None
