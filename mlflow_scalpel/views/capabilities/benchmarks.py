"""Rows of the group `capabilities`: which benchmark, and how a problem's fate looks in a figure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from mlflow_scalpel.views.scores import DOMAINS, KINDS
from mlflow_scalpel.views.tidy import last_step, ordered, probe

GROUP = "capabilities/"
#: From the foot of a bar to its top: what the base solved lies below what it did not.
STATUSES = ("kept", "lost", "gained", "never")
#: Purple and green that differ for colour-blind readers, and from every algorithm's colour.
STATUS_LOOKS = {
    "kept": ("#A3ABB6", ""),
    "lost": ("#9970AB", "/"),
    "gained": ("#5AAE61", ""),
    "never": ("#8A8F98", ""),
}
#: What is there only as the rest fades into the page, light or dark.
STATUS_OPACITY = {"never": 0.3}
CHANCE_COLOUR = "#C2185B"  # reads upon every bar and on the page, light and dark
STATUS_WORDS = {
    "kept": "kept: right before and after",
    "lost": "lost: right before, wrong after",
    "gained": "gained: wrong before, right after",
    "never": "never: wrong before and after",
}
EVALUATE = "evaluate the run (mlflow run . -e evaluate), several samples a problem"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as the column `texts` names it: `in/gsm8k/sampled sha256:...`."""

    key: str
    domain: str
    label: str
    kind: str

    @property
    def words(self) -> str:
        """For a panel's title; plain text."""
        domain = DOMAINS.get(self.domain, self.domain)
        return f"{domain}: {self.label}, {self.kind}" if self.label else self.key


def benchmark_of(texts: str) -> Benchmark:
    """The benchmark that a row's `texts` names."""
    key = probe(texts)
    parts = key.split("/")
    if len(parts) < 3:
        return Benchmark(key, "", "", "")
    return Benchmark(key, parts[0], "/".join(parts[1:-1]), parts[-1])


def capability_rows(clean: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """Rows of these metrics (without `capabilities/`) of checkpoints, with the column benchmark."""
    names = [GROUP + metric for metric in metrics]
    rows = clean[clean["metric"].isin(names) & (clean["step"] > 0) & (clean["run_id"] != "")]
    return rows.assign(benchmark=[probe(texts) for texts in rows["texts"]])


def last_evaluated(clean: pd.DataFrame, run_id: str) -> float | None:
    """The step of a run's last evaluated checkpoint, whatever has a value at it; None without one.

    What is said of the last checkpoint is said of this one: a benchmark or metric that is not there
    at it has no value, and no older one in its place.
    """
    own = clean[(clean["run_id"] == run_id) & (clean["step"] > 0)]
    return last_step(own[own["metric"].str.startswith((GROUP, "eval/"))])


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


def benchmark_words(key: str) -> str:
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
