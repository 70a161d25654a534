"""Reading the tidy table: what every figure needs before it can draw.

Tables arrive half full: a checkpoint that would not load, a metric that broke, a run still going.
`read` turns any of that into plain floats and strings, so that a view has one kind of gap (NaN)
and one place for its cause (`reason`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

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
    "matrix",
    "bin",
    "value",
    "stderr",
    "n",
    "unit",
    "texts",
    "status",
    "reason",
)
NUMBERS = ("step", "layer", "head", "value", "stderr", "n")

#: The matrices of a decoder layer, in the order in which a layer applies them.
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

#: Half the width of a 95 % normal interval, in standard errors.
Z = 1.96


def read(table: pd.DataFrame) -> pd.DataFrame:
    """The table with floats for numbers, "" for absent text and NaN for every value that is absent.

    A row whose status is not `ok`, or whose value is not finite, keeps its row with `value` NaN and
    a `reason`. Of rows that measure the same thing twice, a value wins over a gap, then the later
    row wins. A row without a run is filed under its model.

    Raises ValueError if columns are missing.
    """
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing and len(table):
        raise ValueError(
            f"the table lacks the columns {missing}: pass the tidy table of a comparison, "
            f"which has {list(COLUMNS)}"
        )
    clean = pd.DataFrame(index=range(len(table)))
    for column in COLUMNS:
        if missing:
            clean[column] = np.array([], dtype=float if column in NUMBERS else object)
        elif column in NUMBERS:
            numbers = pd.Series(pd.to_numeric(table[column], errors="coerce"))
            clean[column] = numbers.to_numpy(dtype=float, na_value=np.nan)
        else:
            texts = ["" if pd.isna(text) else str(text) for text in table[column]]
            clean[column] = np.array(texts, dtype=object)
    named = clean["run_id"] != ""
    clean["run_id"] = clean["run_id"].where(named | (clean["step"] == 0), clean["model_id"])
    finite = np.isfinite(clean["value"])
    ok = clean["status"] == "ok"
    unsaid = ~(ok & finite) & (clean["reason"] == "")
    why = clean["status"].where(~ok, "not a finite number")
    clean.loc[unsaid, "reason"] = why[unsaid].where(why[unsaid] != "", "no reason was recorded")
    clean["value"] = clean["value"].where(ok & finite)
    clean["stderr"] = clean["stderr"].where(np.isfinite(clean["stderr"]))
    same = ["run_id", "step", "metric", "layer", "head", "matrix", "bin", "texts"]
    clean = clean.assign(has=clean["value"].notna()).sort_values("has", kind="stable")
    return clean.drop_duplicates(same, keep="last").drop(columns="has").sort_index()


def per_matrix(clean: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of `metric` that belong to one matrix of one layer as a whole."""
    whole = clean["layer"].notna() & (clean["matrix"] != "")
    parts = clean["head"].notna() | (clean["bin"] != "")
    return clean[(clean["metric"] == metric) & whole & ~parts & clean["step"].notna()]


def matrices_in(rows: pd.DataFrame) -> list[str]:
    """The matrices of these rows: the usual seven in their order, then any others by name."""
    present = set(rows["matrix"])
    return [m for m in MATRICES if m in present] + sorted(present - set(MATRICES))


def last_step(rows: pd.DataFrame) -> float | None:
    """The last step with a value; the last step at all where none has one; None for no rows."""
    steps = rows.loc[rows["value"].notna(), "step"].dropna()
    steps = steps if len(steps) else rows["step"].dropna()
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
