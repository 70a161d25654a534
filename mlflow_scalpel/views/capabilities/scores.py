"""Rows of evaluations: scores by skill and kind, and benchmarks with what became of problems.

A score's metric is `eval/<in|out>/<skill>/<kind>`: whether a skill is in-domain was declared by
the suite and is read off the name. Step 0 is the base. A row of the group `capabilities` names its
benchmark in `texts`: `in/gsm8k/sampled sha256:...`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mlflow_scalpel.views.common.table import Measurements, last_step, ordered
from mlflow_scalpel.views.common.text import probe

DOMAINS = {"in": "in-domain", "out": "out-of-domain"}
KINDS = ("greedy", "sampled")
KEYS = ["domain", "skill", "kind"]
#: Instead of the step of a published model of unknown training.
PUBLISHED = "published, the end of training (step not recorded)"
_READ = ["value", "stderr", "n", "reason"]

GROUP = "capabilities/"
#: From the foot of a bar to its top: what the base solved lies below what it did not.
STATUSES = ("kept", "lost", "gained", "never")
#: Purple and green that differ for colour-blind readers, and from every algorithm's colour.
STATUS_STYLES = {
    "kept": ("#A3ABB6", ""),
    "lost": ("#9970AB", "/"),
    "gained": ("#5AAE61", ""),
    "never": ("#8A8F98", ""),
}
#: The rest fades into the page, light or dark.
STATUS_OPACITY = {"never": 0.3}
CHANCE_COLOUR = "#C2185B"  # reads upon every bar and on the page, light and dark
STATUS_WORDS = {
    "kept": "kept: right before and after",
    "lost": "lost: right before, wrong after",
    "gained": "gained: wrong before, right after",
    "never": "never: wrong before and after",
}
HOW_TO_MEASURE = "evaluate the run (mlflow run . -e evaluate), several samples per problem"

#: A score's row: value, stderr, n and reason by name.
Cell = Mapping[str, Any]


def score_rows(data: Measurements) -> pd.DataFrame:
    """The rows of `eval/in/...` and `eval/out/...`, with the columns domain, skill and kind."""
    parts = {name: name.split("/") for name in data.metrics}
    named = {name: p for name, p in parts.items() if p[0] == "eval" and len(p) >= 4}
    rows = data.rows(*(name for name, p in named.items() if p[1] in DOMAINS))
    rows = rows[rows["step"].notna()]
    split = [named[name] for name in rows["metric"]]
    return rows.assign(
        domain=[part[1] for part in split],
        skill=["/".join(part[2:-1]) for part in split],
        kind=[part[-1] for part in split],
    )


def of_key(rows: pd.DataFrame, domain: str, skill: str, kind: str) -> pd.DataFrame:
    """The rows of one skill and kind."""
    return rows[(rows["domain"] == domain) & (rows["skill"] == skill) & (rows["kind"] == kind)]


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
    """The digest of a run's base, else its name."""
    own = rows[rows["run_id"] == run_id]
    texts = (text for column in ("base_digest", "base") for text in own[column] if text)
    return str(next(texts, ""))


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


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as the column `texts` names it: `in/gsm8k/sampled sha256:...`."""

    key: str
    domain: str
    label: str
    kind: str

    @property
    def title(self) -> str:
        """The title of its panel; plain text."""
        domain = DOMAINS.get(self.domain, self.domain)
        return f"{domain}: {self.label}, {self.kind}" if self.label else self.key


def benchmark_of(texts: str) -> Benchmark:
    """The benchmark that a row's `texts` names."""
    key = probe(texts)
    parts = key.split("/")
    if len(parts) < 3:
        return Benchmark(key, "", "", "")
    return Benchmark(key, parts[0], "/".join(parts[1:-1]), parts[-1])


def capability_rows(data: Measurements, *metrics: str) -> pd.DataFrame:
    """Rows of these metrics (without `capabilities/`) of checkpoints, with the column benchmark."""
    rows = data.checkpoints(*(GROUP + metric for metric in metrics))
    return rows.assign(benchmark=[probe(texts) for texts in rows["texts"]])


def last_evaluated(data: Measurements, run_id: str) -> float | None:
    """The step of a run's last evaluated checkpoint, whatever has a value at it; None without one.

    All figures and sentences about the last checkpoint are about this one: a benchmark or metric
    that is not there at it has no value, and no older one in its place.
    """
    rows = data.checkpoints(*(name for name in data.metrics if name.startswith((GROUP, "eval/"))))
    return last_step(rows[rows["run_id"] == run_id])


def benchmarks_in(rows: pd.DataFrame, benchmark: str | None = None) -> list[Benchmark]:
    """The benchmarks of these rows, in-domain first; only the one that `benchmark` names.

    `benchmark` is a key (`in/gsm8k/sampled`) or a label (`gsm8k`).
    """
    found = [benchmark_of(key) for key in dict.fromkeys(rows["benchmark"])]
    if benchmark is not None:
        found = [one for one in found if benchmark in (one.key, one.label)]
    domains = ordered([one.domain for one in found], tuple(DOMAINS))
    kinds = ordered([one.kind for one in found], KINDS)
    return sorted(
        found, key=lambda one: (domains.index(one.domain), one.label, kinds.index(one.kind))
    )


def preferred(benchmarks: list[Benchmark]) -> list[Benchmark]:
    """One kind of each benchmark, sampled before greedy: kinds share their problems."""
    best: dict[tuple[str, str], Benchmark] = {}
    for one in benchmarks:
        seen = best.get((one.domain, one.label))
        if seen is None or (one.kind == "sampled" and seen.kind != "sampled"):
            best[one.domain, one.label] = one
    return list(best.values())


def benchmark_text(key: str) -> str:
    """`in/add+gcd/sampled` as words."""
    parts = key.split("/")
    if len(parts) < 3:
        return key
    return f"{'/'.join(parts[1:-1]).replace('+', ', ')} ({parts[-1].replace('+', ' and ')})"


def cell(rows: pd.DataFrame, metric: str) -> tuple[float, float, float, str]:
    """Value, standard error, n and reason of the one row of a metric; NaN where there is none."""
    own = rows[rows["metric"] == GROUP + metric]
    if not len(own):
        return math.nan, math.nan, math.nan, "not measured"
    row = own.iloc[-1]
    return float(row["value"]), float(row["stderr"]), float(row["n"]), str(row["reason"])
