"""With what runs were compared: a base by content, whatever IDs it goes by."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd

from mlflow_scalpel.views.style import column_of

_MODEL_ID = re.compile(r"(models:/)?m-[0-9a-f]{32}")
_DIGITS = 8  # of a digest, which tell models apart


def base_words(table: pd.DataFrame, runs: pd.DataFrame | None = None) -> list[str]:
    """Each base of a table once, with its name and the first digits of its digest.

    One base that was logged in several experiments has an ID in each; its digest is one. The name
    is what the runs call it (`base_name`, else `base_model`), the ID where they only know that.
    Reads `base, base_digest, run_id`.
    """
    whole = table[table["base"].notna() & (table["base"] != "")]
    known = whole[whole["base_digest"].notna() & (whole["base_digest"] != "")]
    found, seen = [], set()
    for digest, rows in known.groupby("base_digest", sort=False):
        ids = list(rows["base"].unique())
        seen |= set(ids)
        told = [
            column_of(runs, str(run_id), column)
            for column in ("base_name", "base_model")
            for run_id in rows["run_id"].dropna().unique()
        ]
        name = _first_name([*told, *ids]) or ids[0]
        kind, _, digits = str(digest).rpartition(":")
        short = f"{kind}:{digits[:_DIGITS]}" if kind else digits[:_DIGITS]
        found.append(f"{name} ({short})")
    return [*found, *(base for base in whole["base"].unique() if base not in seen)]


def _first_name(names: Iterable[str]) -> str | None:
    """The first that is no ID."""
    return next((name for name in names if name and not _MODEL_ID.fullmatch(name)), None)
