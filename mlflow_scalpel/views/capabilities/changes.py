"""The change of a domain's mean score since the base: one reading for all figures and sentences."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from mlflow_scalpel.metrics.capabilities.intervals import (
    UNKNOWN,
    combined,
    share_interval,
    unpaired_interval,
)
from mlflow_scalpel.views.capabilities.scores import (
    DOMAINS,
    Cell,
    after,
    before,
    benchmark_of,
    capability_rows,
    cell,
    cells,
    chosen_kinds,
    last_evaluated,
)
from mlflow_scalpel.views.common.table import Measurements, ordered
from mlflow_scalpel.views.common.text import corrected, p_text, reasons, signed
from mlflow_scalpel.views.common.traces import negated

#: domain -> metric of the group capabilities, and the sign that makes a rise of it
PAIRED = {"in": ("in_domain_gain", 1), "out": ("out_of_domain_loss", -1)}
PARTS = ("", "_low", "_high", "_p")
INDEPENDENT = "the two evaluations taken as independent"
WHY = ": standard errors are missing"
NO_ERRORS = "no interval" + WHY


@dataclass(frozen=True)
class Change:
    """Mean over skills before, after, and their difference with its 95 % interval.

    `low` and `high` are NaN where no interval is known; `change` is NaN, with `why`, where any of
    the skills has no score: a mean over fewer skills would be another quantity.
    """

    skills: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    before: float = math.nan
    after: float = math.nan
    change: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    """Of the exact paired test; NaN where there are scores only."""
    n: float = math.nan
    """Problems, where they are paired."""
    samples: str = ""
    """How many samples each has, in words; "" where the table does not say."""
    step: float = math.nan
    why: str = ""

    @property
    def known(self) -> bool:
        """Whether there is a change."""
        return not math.isnan(self.change)

    @property
    def paired(self) -> bool:
        """Whether test and interval are of the changes of single problems."""
        return not math.isnan(self.p)

    @property
    def undecided(self) -> str:
        """Why the change decides nothing; "" where it does."""
        if not self.known or math.isnan(self.low):
            return NO_ERRORS
        return "the interval includes 0" if self.low <= 0 <= self.high else ""

    @property
    def problems(self) -> str:
        """How many problems are paired, and of how many samples: `110 problems, k = 6 ...`."""
        number = f"{self.n:g} problem{'s' * (self.n != 1)}"
        return f"{number}, {self.samples}" if self.samples else number

    def text(self, tests: int) -> str:
        """The change with its interval and p, one of so many `tests` that are shown together."""
        if math.isnan(self.low):
            return f"{signed(self.change)}, {NO_ERRORS}"
        text = f"{signed(self.change)}, 95 % interval {signed(self.low)} to {signed(self.high)}"
        if self.undecided:
            text += ", which includes 0"
        if self.paired:
            test = f"{p_text(self.p)}, {corrected(tests)}"
            return f"{text}; paired over {self.problems}, {test}"
        return f"{text}; unpaired: {INDEPENDENT}"


def last_change(data: Measurements, rows: pd.DataFrame, run_id: str, domain: str) -> Change:
    """The change of a domain's mean score up to a run's last evaluated checkpoint.

    Over the skills that the run has, each by its sampled score where there is one. `rows` are the
    `score_rows` of the table.
    """
    start, end = before(rows, run_id), after(rows, run_id)
    kinds = chosen_kinds(rows[rows["run_id"] == run_id], domain)
    step = last_evaluated(data, run_id)
    if step is None:
        return Change(why="not evaluated")
    if not kinds:  # a ledger without scores, as of samples from elsewhere
        ledger = capability_rows(data, PAIRED[domain][0])
        ledger = ledger[(ledger["run_id"] == run_id) & (ledger["step"] == step)]
        found = [one for one in map(benchmark_of, ledger["benchmark"]) if one.domain == domain]
        kinds = {found[0].label: found[0].kind} if found else {}
    own = end[end["step"] == step]
    return change_of(data, run_id, start, own, domain, kinds, step=step)


def change_of(
    data: Measurements,
    run_id: str,
    start: pd.DataFrame,
    end: pd.DataFrame,
    domain: str,
    kinds: dict[str, str],
    *,
    step: float,
) -> Change:
    """The change of a domain's mean score from `start` (the base) to `end` (one checkpoint).

    `kinds` gives the skills to average over, each with its kind. Where the table has the paired
    change of just these skills at this step (`capabilities/in_domain_gain`, ...), that is it, with
    its exact test; else it is the difference of the scores, with an unpaired interval.
    """
    found = between_scores(start, end, domain, kinds, step)
    metric, sign = PAIRED[domain]
    own = capability_rows(data, *(metric + part for part in PARTS))
    own = own[(own["run_id"] == run_id) & (own["step"] == step)]
    own = own[own["benchmark"].map(lambda key: is_of(key, domain, kinds)).astype(bool)]
    value, low, high, p = (cell(own, metric + part)[0] for part in PARTS)
    if any(math.isnan(one) for one in (value, low, high, p)):
        return found
    if sign < 0:
        ((low, high),) = negated([(low, high)])
    # What is shown before and after has the difference that is shown.
    start_mean, end_mean = found.before, found.after
    if not abs(end_mean - start_mean - sign * value) < 1e-6:  # scores of other problems, or partial
        start_mean, end_mean = rates(data, run_id, step, domain, kinds)
    if not abs(end_mean - start_mean - sign * value) < 1e-6:  # problems of unlike sample counts,
        start_mean, end_mean = UNKNOWN  # by which rates weigh them, and the paired change does not
    return Change(
        tuple(kinds), found.kinds or tuple(dict.fromkeys(kinds.values())), start_mean, end_mean,
        sign * value + 0.0, low, high, p, *cell(own, metric)[2:], step,
    )  # fmt: skip


def is_of(key: str, domain: str, kinds: dict[str, str]) -> bool:
    """Whether a key such as `in/add+gcd/sampled` is of these skills and kinds, and no others."""
    one = benchmark_of(key)
    return (
        one.domain == domain
        and sorted(one.label.split("+")) == sorted("+".join(kinds).split("+"))
        and set(one.kind.split("+")) == set(kinds.values())
    )


def rates(
    data: Measurements, run_id: str, step: float, domain: str, kinds: dict[str, str]
) -> tuple[float, float]:
    """Mean success rates of base and checkpoint on the problems that both have; NaN if unknown."""
    names = ("base_success_rate", "success_rate")
    own = capability_rows(data, *names)
    own = own[(own["run_id"] == run_id) & (own["step"] == step)]
    keys = [f"{domain}/{skill}/{kind}" for skill, kind in kinds.items()]
    found = [[cell(own[own["benchmark"] == key], name)[0] for key in keys] for name in names]
    return tuple(math.fsum(one) / len(keys) for one in found)  # type: ignore[return-value]


def between_scores(
    start: pd.DataFrame, end: pd.DataFrame, domain: str, kinds: dict[str, str], step: float
) -> Change:
    """The difference of the mean scores, with the interval of two independent evaluations.

    On the same problems it is, if anything, too wide.
    """
    skills = tuple(kinds)
    used = tuple(ordered(kinds.values(), ("sampled", "greedy")))
    if not skills:
        return Change(step=step, why=f"no {DOMAINS[domain]} scores")
    first, last = cells(start), cells(end)
    gaps: list[str] = []
    pairs: list[tuple[Cell, Cell]] = []
    for skill, kind in kinds.items():
        pair = (first.get((domain, skill, kind)), last.get((domain, skill, kind)))
        for row, when in zip(pair, ("at the base", "here"), strict=True):
            if row is None:
                gaps.append(f"{skill} ({kind}) was not evaluated {when}")
            elif pd.isna(row["value"]):
                gaps.append(f"{skill} ({kind}) has no value {when}: {row['reason']}")
        if pair[0] is not None and pair[1] is not None:
            pairs.append((pair[0], pair[1]))
    if gaps:
        return Change(skills, used, step=step, why=reasons(gaps))
    first_mean, last_mean = (
        math.fsum(float(pair[side]["value"]) for pair in pairs) / len(pairs) for side in (0, 1)
    )
    shares = [[(row["value"], row["stderr"], row["n"]) for row in pair] for pair in pairs]
    ends = UNKNOWN
    if not any(math.isnan(share_interval(*share)[0]) for pair in shares for share in pair):
        parts = [(b[0] - a[0], unpaired_interval(a, b)) for a, b in shares]
        ends = combined(last_mean - first_mean, parts)
    return Change(skills, used, first_mean, last_mean, last_mean - first_mean, *ends, step=step)
