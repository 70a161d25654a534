"""The card's points: a value per axis and run, with its interval and what it rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from mlflow_scalpel.metrics.capabilities.exact_tests import ALPHA
from mlflow_scalpel.metrics.capabilities.intervals import UNKNOWN, Interval, share_interval
from mlflow_scalpel.views.capabilities.changes import PAIRED, last_change
from mlflow_scalpel.views.capabilities.scores import (
    GROUP,
    benchmark_text,
    capability_rows,
    cell,
    last_evaluated,
)
from mlflow_scalpel.views.common.table import Measurements, last_step
from mlflow_scalpel.views.common.text import Z, between, corrected, p_text, probe, reasons
from mlflow_scalpel.views.common.view import EVALUATE
from mlflow_scalpel.views.divergence.kl import BASE_SAMPLES, reading
from mlflow_scalpel.views.summary.norms import Norm, over_text, when

#: Where KL is read, the first that there is: what predicts forgetting comes first.
KL_BASES = {
    BASE_SAMPLES: "on the base's own samples",
    "kl/answer_tokens": "on answer tokens",
    "kl/all_tokens": "on all tokens",
}
GINI_BASES = {"kl/gini/answer_tokens": "answer tokens", "kl/gini/all_tokens": "all tokens"}
MISSING = "missing"
COMPARE = "mlflow-scalpel compare --metrics weights kl"
SIDES = ("lost", "gained")
PARTS = ("", "_null", "_null_low", "_null_high", "_p")


@dataclass(frozen=True)
class Point:
    """One run on one axis."""

    value: float = math.nan
    low: float = math.nan  # of the 95 % interval
    high: float = math.nan
    basis: str = ""  # in a few words, to stand beside the point
    rests: str = ""  # in a sentence
    open: str = ""  # why it decides nothing; "" where it does
    unit: str = ""
    p: float = math.nan  # of the exact test, where there is one
    tests: int = 1  # p values that are shown together

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return not math.isnan(self.value)

    def text(self) -> str:
        """The value with its interval and its test."""
        if not self.known:
            return "not measured"
        sign = "\u2212" if self.value < 0 else ""
        text = f"{sign}{abs(self.value):.3g}"
        if within := between(self.low, self.high):
            text += f" ({within})"
        text += f" {self.unit}" if self.unit else ""
        return text if math.isnan(self.p) else f"{text}, {p_text(self.p)}, {corrected(self.tests)}"


def absent(what: str, remedy: str, why: str = "") -> Point:
    """No value, and what to run for one."""
    return Point(rests=f"{what} was not measured{': ' + why if why else ''}; run {remedy}",
                 open=MISSING)  # fmt: skip


def older(data: Measurements, run_id: str, step: float) -> str:
    """To stand beside a point that is not of the run's last checkpoint: of which it is."""
    end = data.end(run_id)
    return f", step {step:g} of {end:g}" if step < end else ""


def accuracy_change(data: Measurements, rows: pd.DataFrame, run_id: str, domain: str) -> Point:
    """In-domain gain, or out-of-domain loss, as the findings have it."""
    found = last_change(data, rows, run_id, domain)
    if not found.known:
        return absent({"in": "In-domain gain", "out": "Out-of-domain loss"}[domain], EVALUATE,
                      found.why)  # fmt: skip
    basis = f"{', '.join(found.skills)} ({' and '.join(found.kinds)})"
    at = when(data, run_id, found.step)
    if found.paired:
        rests = f"{basis}; {found.problems}, paired, {at}"
    else:
        rests = f"mean over {basis} {at}; unpaired, the two evaluations taken as independent"
    if not math.isnan(found.before):
        rests += f"; {found.before:.3f} before"
    sign = PAIRED[domain][1]
    low, high = sorted((sign * found.low, sign * found.high))
    basis += older(data, run_id, found.step)
    return Point(sign * found.change + 0.0, low, high, basis, rests, found.undecided, p=found.p)


def of_first(data: Measurements, run_id: str, bases: dict[str, str], what: str, unit: str) -> Point:
    """The value at the run's last measured checkpoint of the first of some metrics that has one."""
    own = data.checkpoints(*bases)
    own = own[(own["run_id"] == run_id) & (own["bin"] == "")]
    for metric, words in bases.items():
        rows = own[own["metric"] == metric]
        rows = rows[(rows["step"] == last_step(rows)) & rows["value"].notna()]
        if not len(rows):
            continue
        rows = rows.sort_values("texts")
        row: Any = next(rows.itertuples())
        half = Z * float(row.stderr)
        beside = reading(data, row)
        basis = words if metric == BASE_SAMPLES else f"{words}, {probe(row.texts)}"
        if beside.dtype:
            basis += f", {beside.dtype}"
        rests = f"{basis}; {when(data, run_id, row.step)}"
        if pd.notna(row.n):
            rests += f", {row.n:g} problems"
        if len(rows) > 1:
            others = [probe(text) for text in rows["texts"] if text != row.texts]
            rests += f"; measured on {', '.join(sorted(others))} too"
        basis += older(data, run_id, row.step)
        why = beside.undecided
        if math.isnan(half):
            why = why or "no interval in the table"
        elif row.value - half <= 0:
            why = why or "the interval includes 0"
        return Point(row.value, row.value - half, row.value + half, basis, rests, why, unit)
    last = own[own["step"] == last_step(own)]
    why = reasons(last["reason"]) if len(last) else ""
    if len(last):
        why = f"no value {when(data, run_id, last_step(last) or 0)}: {why}"
    return absent(what, COMPARE, why)


def norm(
    data: Measurements, run_id: str, found: Norm | None, per_rate: Norm | None, dtype: str
) -> Point:
    """The mean relative norm, with the learning rate and the dtype that it depends on."""
    if found is None:
        return absent("Norm of the update", COMPARE)
    at = when(data, run_id, found.step)
    if not found.known:
        return absent("Norm of the update", COMPARE, f"no value {at}: {found.why}")
    rate = data.parameter(run_id, "learning_rate") or "not recorded"
    dtype = data.parameter(run_id, "dtype") or dtype
    rests = f"mean {over_text(found)}, {at}"
    if per_rate is not None and per_rate.known and per_rate.step == found.step:
        rests += f"; {per_rate.value:.3g} per unit of summed learning rate"
    why = "" if rate != "not recorded" else "without the learning rate it says little"
    basis = f"lr {rate}, {dtype}{older(data, run_id, found.step)}"
    return Point(found.value, basis=basis, rests=rests, open=why)


@dataclass(frozen=True)
class Balance:
    """Problems lost and gained, over all benchmarks of a run, with what chance alone would give.

    Each is judged by an exact test of its difference from what an unchanged model would show, and
    the two against each other by McNemar's exact test: `lost_p`, `gained_p` and `balance_p`. Of
    three tests of an unchanged model one is below 5 % in some 12 % of cases, so a verdict is what
    is left when they are corrected for each other (`sure`).
    """

    lost: float = math.nan
    gained: float = math.nan
    chance: float = math.nan
    chance_half: float = math.nan  # 1.96 standard errors of lost - chance if nothing changed
    lost_null: Interval = UNKNOWN  # numbers that are not told apart from chance
    gained_null: Interval = UNKNOWN
    lost_p: float = math.nan
    gained_p: float = math.nan
    balance_p: float = math.nan
    n: float = math.nan
    rests: str = ""
    open: str = ""  # why it decides nothing; "" where any of the three tests does, corrected
    tests: int = 3  # p values that are shown together
    unknown: str = ""  # why chance is not known

    def interval(self, side: str) -> Interval:
        """95 % interval of the number lost or gained, out of all problems (exact)."""
        share = getattr(self, side) / self.n
        low, high = share_interval(share, math.sqrt(share * (1 - share) / self.n), self.n)
        return low * self.n, high * self.n

    @property
    def shown(self) -> int:
        """How many p values it has."""
        return sum(not math.isnan(p) for p in (self.lost_p, self.gained_p, self.balance_p))

    @property
    def sure(self) -> set[str]:
        """Which of its tests are below 5 % when corrected for each other (Holm 1979)."""
        names = ("lost_p", "gained_p", "balance_p")
        known = sorted((getattr(self, one), one) for one in names if getattr(self, one) >= 0.0)
        enough = [p * (len(known) - place) <= ALPHA for place, (p, _) in enumerate(known)]
        first = enough.index(False) if False in enough else len(known)
        return {name for _, name in known[:first]}

    def text(self) -> str:
        """Both numbers, each against chance, and one against the other."""
        if math.isnan(self.lost):
            return "not measured"
        parts = [self.side_text(side) for side in SIDES]
        if math.isnan(self.chance):
            parts.append(f"what chance gives is not known: {self.unknown}")
        parts.append(self.balance_text())
        if self.shown:
            parts.append(corrected(self.tests))
        return "; ".join(parts)

    def side_text(self, side: str) -> str:
        """`101 lost of 210 (88 to 115), more than by chance (12 to 34), p = 1e-20`."""
        count, p = getattr(self, side), getattr(self, f"{side}_p")
        text = f"{count:g} {side} of {self.n:g} ({between(*self.interval(side))})"
        if math.isnan(p):
            return text
        low, high = getattr(self, f"{side}_null")
        band = f"({self.chance:.3g} expected, {between(low, high)} usual), {p_text(p)}"
        if p > ALPHA:
            return f"{text}, not told apart from chance {band}"
        verdict = "" if f"{side}_p" in self.sure else "perhaps "
        verdict += "more" if count > self.chance else "fewer"
        return f"{text}, {verdict} than by chance {band}"

    def balance_text(self) -> str:
        """Which of the two is more, if that is told apart from chance."""
        if math.isnan(self.balance_p):
            return "gained against lost not tested"
        p = p_text(self.balance_p)
        if self.balance_p > ALPHA:
            return f"gained and lost not told apart from each other, {p}"
        more, fewer = ("gained", "lost") if self.gained > self.lost else ("lost", "gained")
        verdict = "" if "balance_p" in self.sure else "perhaps "
        return f"{verdict}more {more} than {fewer}, {p}"


def balance(data: Measurements, run_id: str) -> Balance:
    """Lost against gained at the run's last evaluated checkpoint, one kind of each benchmark."""
    metrics = [f"overall_{side}{part}" for side in SIDES for part in PARTS]
    rows = capability_rows(data, *metrics, "overall_mcnemar_p", "lost")
    step = last_evaluated(data, run_id)
    rows = rows[(rows["run_id"] == run_id) & (rows["step"] == step)]
    found = {name: cell(rows, name)[0] for name in (*metrics, "overall_mcnemar_p")}
    if any(math.isnan(found[f"overall_{side}"]) for side in SIDES):
        why = reasons(rows.loc[rows["metric"] == GROUP + "overall_lost", "reason"])
        if len(rows) and not (rows["metric"] == GROUP + "overall_lost").any():
            why = "the table is of an older version, without tests of the counts"
        return Balance(rests=absent("The ledger", EVALUATE, why if len(rows) else "").rests,
                       open=MISSING)  # fmt: skip
    _, error, _, unknown = cell(rows, "overall_lost_null")
    _, _, n, _ = cell(rows, "overall_lost")
    key = rows.loc[rows["metric"] == GROUP + "overall_lost", "benchmark"].iloc[-1]
    made = Balance(
        lost=found["overall_lost"],
        gained=found["overall_gained"],
        chance=found["overall_lost_null"],
        chance_half=Z * error,
        lost_null=(found["overall_lost_null_low"], found["overall_lost_null_high"]),
        gained_null=(found["overall_gained_null_low"], found["overall_gained_null_high"]),
        lost_p=found["overall_lost_p"],
        gained_p=found["overall_gained_p"],
        balance_p=found["overall_mcnemar_p"],
        n=n,
        rests=f"{benchmark_text(key)}, {when(data, run_id, step or 0.0)}; exact tests",
        unknown=unknown,
    )
    return replace(made, tests=made.shown, open=undecided(made))


def undecided(made: Balance) -> str:
    """Why the ledger decides nothing; "" where any of its tests does, corrected for the others."""
    if made.sure:
        return ""
    if any(p <= ALPHA for p in (made.lost_p, made.gained_p, made.balance_p)):
        return f"corrected for each other (Holm), none of its {made.shown} tests is below 5 %"
    if math.isnan(made.chance):
        return "gained and lost are not told apart from each other, and chance is unknown"
    return "lost and gained are told apart neither from chance nor from each other"
