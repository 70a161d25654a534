"""Scores out of the tidy table: which skill, which kind, before and after.

A score's metric is `eval/<in|out>/<skill>/<kind>`: whether a skill is in-domain was declared by
the suite and is read off the name. Step 0 is the base.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from mlflow_scalpel.views.style import column_of
from mlflow_scalpel.views.tidy import last_step, ordered

DOMAINS = {"in": "in-domain", "out": "out-of-domain"}
KINDS = ("greedy", "sampled")
KEYS = ["domain", "skill", "kind"]
PUBLISHED = "published, the end of training (step not recorded)"
_READ = ["value", "stderr", "n", "reason"]

#: A score's row: value, stderr, n and reason by name.
Cell = Mapping[str, Any]


def scores(clean: pd.DataFrame) -> pd.DataFrame:
    """The rows of `eval/in/...` and `eval/out/...`, with the columns domain, skill and kind."""
    # every metric is taken apart once: a table has many rows of few metrics
    parts = {name: name.split("/") for name in clean["metric"].unique()}
    named = {name: p for name, p in parts.items() if p[0] == "eval" and len(p) >= 4}
    known = [name for name, p in named.items() if p[1] in DOMAINS]
    rows = clean[clean["metric"].isin(known) & clean["step"].notna()]
    split = [named[name] for name in rows["metric"]]
    return rows.assign(
        domain=[part[1] for part in split],
        skill=["/".join(part[2:-1]) for part in split],
        kind=[part[-1] for part in split],
    )


def stepless(looks: Iterable[str], runs: pd.DataFrame | None) -> list[str]:
    """The IDs of published models of unknown training, which stand at step 1 for want of a step."""
    published = [i for i in looks if column_of(runs, i, "imported_from")]
    return [i for i in published if not column_of(runs, i, "steps")]


def cells(rows: pd.DataFrame) -> dict[tuple[str, str, str], Cell]:
    """Rows of one run at one step by (domain, skill, kind)."""
    found: dict[tuple[str, str, str], Cell] = {}
    keys = zip(*(rows[column].tolist() for column in KEYS), strict=True)
    values = zip(*(rows[column].tolist() for column in _READ), strict=True)
    for key, row in zip(keys, values, strict=True):
        if key not in found or math.isnan(found[key]["value"]):
            found[key] = dict(zip(_READ, row, strict=True))
    return found


def base_of(rows: pd.DataFrame, run_id: str) -> str:
    """What identifies a run's base: its digest, else its name."""
    own = rows[rows["run_id"] == run_id]
    for column in ("base_digest", "base"):
        said = [text for text in own[column] if text]
        if said:
            return str(said[0])
    return ""


def before(rows: pd.DataFrame, run_id: str) -> pd.DataFrame:
    """The base's scores for a run: its own rows at step 0, else those of another with its base."""
    base = rows[rows["step"] == 0]
    own = base[base["run_id"] == run_id]
    if len(own):
        return own
    wanted = base_of(rows, run_id)
    same = base[(base["base_digest"] == wanted) | (base["base"] == wanted)]
    if not wanted or not len(same):
        return base.iloc[:0]
    return same[same["run_id"] == same["run_id"].iloc[0]]


def after(rows: pd.DataFrame, run_id: str) -> pd.DataFrame:
    """A run's scores at its last evaluated checkpoint, with a value or without one."""
    own = rows[(rows["run_id"] == run_id) & (rows["step"] > 0)]
    return own[own["step"] == last_step(own)]


def chosen_kinds(rows: pd.DataFrame, domain: str) -> dict[str, str]:
    """The kind by which each skill of a domain is averaged: sampled if any run has it, else greedy.

    Decided over the whole table: a skill must not be sampled in one run and greedy in another.
    """
    own = rows[rows["domain"] == domain]
    return {
        str(skill): ordered(group["kind"], ("sampled", "greedy"))[0]
        for skill, group in own.groupby("skill", sort=True)
    }


def shared_skills(
    rows: pd.DataFrame, run_ids: Iterable[str], domain: str
) -> tuple[dict[str, str], list[str]]:
    """The skills that can be averaged for every run, with their kinds, and those left out.

    A skill counts if each run that was scored at all has it at its base and at a checkpoint.
    """
    kinds = chosen_kinds(rows, domain)
    kept = dict(kinds)
    for run_id in run_ids:
        first = cells(before(rows, run_id))
        later = rows[(rows["run_id"] == run_id) & (rows["step"] > 0)]
        if not len(later) or not first:
            continue
        last = {
            (d, s, k)
            for d, s, k in zip(later["domain"], later["skill"], later["kind"], strict=True)
        }
        for skill, kind in kinds.items():
            key = (domain, skill, kind)
            if key not in first or key not in last:
                kept.pop(skill, None)
    return kept, [skill for skill in kinds if skill not in kept]
