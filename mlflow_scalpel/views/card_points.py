"""What the card shows of a run: a value an axis, with its interval and what it rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from mlflow_scalpel.views.capabilities import (
    GROUP,
    benchmarks_in,
    capability_rows,
    cell,
    preferred,
)
from mlflow_scalpel.views.findings import NORM, PER_RATE, mean_norms
from mlflow_scalpel.views.scores import after, before, change, chosen_kinds, stepless
from mlflow_scalpel.views.style import Run, column_of
from mlflow_scalpel.views.tidy import Z, last_step, probe, reasons

#: Where KL is read, the first that there is: what predicts forgetting comes first.
ON_SAMPLES = "kl_on_base_samples/answer_tokens"
KL_BASES = {
    ON_SAMPLES: "on the base's own samples",
    "kl/answer_tokens": "on answer tokens",
    "kl/all_tokens": "on all tokens",
}
GINI_BASES = {"kl/gini/answer_tokens": "answer tokens", "kl/gini/all_tokens": "all tokens"}
MISSING = "missing"
EVALUATE = "mlflow run . -e evaluate"
COMPARE = "mlflow-scalpel compare --metrics weights kl"


@dataclass(frozen=True)
class Point:
    """One run on one axis."""

    value: float = math.nan
    half: float = math.nan  # of the 95 % interval
    basis: str = ""  # in a few words, to stand beside the point
    rests: str = ""  # in a sentence
    open: str = ""  # why it decides nothing; "" where it does
    unit: str = ""

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return not math.isnan(self.value)

    def words(self) -> str:
        """The value with its interval."""
        if not self.known:
            return "not measured"
        within = "" if math.isnan(self.half) else f" \u00b1 {self.half:.2g}"
        sign = "\u2212" if self.value < 0 else ""
        return f"{sign}{abs(self.value):.3g}{within}{' ' + self.unit if self.unit else ''}"


def absent(what: str, remedy: str, why: str = "") -> Point:
    """No value, and what to run for one."""
    return Point(rests=f"{what} was not measured{': ' + why if why else ''}; run {remedy}",
                 open=MISSING)  # fmt: skip


def at_step(step: float | None, run: Run, runs: pd.DataFrame | None) -> str:
    """Which checkpoint; a published model of unknown training has no step."""
    return "at its end (step not recorded)" if stepless([run.run_id], runs) else f"at step {step:g}"


def accuracy_change(
    clean: pd.DataFrame, rows: pd.DataFrame, run: Run, runs: pd.DataFrame | None, domain: str
) -> Point:
    """In-domain gain, or out-of-domain loss: paired over problems where there is a ledger."""
    metric, name, sign = {
        "in": ("in_domain_gain", "In-domain gain", 1),
        "out": ("out_of_domain_loss", "Out-of-domain loss", -1),
    }[domain]
    own = capability_rows(clean, metric)
    own = own[own["run_id"] == run.run_id]
    last = own[own["step"] == last_step(own)]
    value, error, n, why = cell(last, metric)
    if not math.isnan(value):
        where = benchmark_words(last["benchmark"].iloc[-1])
        rests = f"{where}; {n:g} problems, paired, at step {last['step'].iloc[-1]:g}"
        return judged(value, Z * error, where, rests)
    start, end = before(rows, run.run_id), after(rows, run.run_id)
    mine = rows[rows["run_id"] == run.run_id]
    found = change(start, end, domain, chosen_kinds(mine, domain))
    if found.change is None:
        return absent(name, EVALUATE, found.why if len(end) else why)
    where = f"{', '.join(found.skills)} ({' and '.join(found.kinds)})"
    half = math.nan if found.half is None else found.half
    rests = (
        f"mean over {where} {at_step(end['step'].iloc[0], run, runs)}, {found.before:.3f} before"
    )
    if not math.isnan(half):
        rests += "; the two evaluations taken as independent"
    return judged(sign * found.change, half, where, rests)


def judged(value: float, half: float, basis: str, rests: str) -> Point:
    """A change: it decides nothing where its interval is unknown or holds 0."""
    if math.isnan(half):
        why = "no interval: the source gives no standard errors"
    else:
        why = "the interval includes 0" if abs(value) <= half else ""
    return Point(value, half, basis, rests, why)


def benchmark_words(key: str) -> str:
    """`in/add+gcd/sampled` as words."""
    parts = key.split("/")
    if len(parts) < 3:
        return key
    return f"{'/'.join(parts[1:-1]).replace('+', ', ')} ({parts[-1].replace('+', ' and ')})"


def of_first(clean: pd.DataFrame, run: Run, bases: dict[str, str], what: str, unit: str) -> Point:
    """The last value of the first of some metrics that the run has."""
    own = clean[(clean["run_id"] == run.run_id) & (clean["step"] > 0) & (clean["bin"] == "")]
    for metric, words in bases.items():
        rows = own[own["metric"] == metric]
        rows = rows[(rows["step"] == last_step(rows)) & rows["value"].notna()]
        if not len(rows):
            continue
        row = rows.sort_values("texts").iloc[0]
        half = Z * float(row["stderr"])
        basis = words if metric == ON_SAMPLES else f"{words}, {probe(row['texts'])}"
        rests = f"{basis}; at step {row['step']:g}"
        if pd.notna(row["n"]):
            rests += f", {row['n']:g} problems"
        if len(rows) > 1:
            others = [probe(text) for text in rows["texts"] if text != row["texts"]]
            rests += f"; measured on {', '.join(sorted(others))} too"
        why = "no interval in the table" if math.isnan(half) else ""
        return Point(float(row["value"]), half, basis, rests, why, unit)
    why = reasons(own.loc[own["metric"].isin(bases), "reason"]) if len(own) else ""
    return absent(what, COMPARE, "" if why == "no reason was recorded" else why)


def norm(clean: pd.DataFrame, run: Run, runs: pd.DataFrame | None, dtypes: dict[str, str]) -> Point:
    """The mean relative norm, with the learning rate and the dtype that it depends on."""
    found, per_rate = (mean_norms(clean, [run], one)[run.run_id] for one in (NORM, PER_RATE))
    if found is None:
        return absent("Norm of the update", COMPARE)
    value, step, known, cells = found
    rate = column_of(runs, run.run_id, "learning_rate") or "not recorded"
    dtype = column_of(runs, run.run_id, "dtype") or dtypes.get(run.run_id, "not recorded")
    rests = f"mean over {known} of {cells} matrices at step {step:g}"
    if per_rate is not None:
        rests += f"; {per_rate[0]:.3g} per unit of summed learning rate"
    why = "" if rate != "not recorded" else "without the learning rate it says little"
    return Point(value, math.nan, f"lr {rate}, {dtype}", rests, why)


@dataclass(frozen=True)
class Balance:
    """Problems lost and gained, over all benchmarks of a run, with what chance alone would give."""

    lost: float = math.nan
    gained: float = math.nan
    chance: float = math.nan
    chance_half: float = math.nan
    halves: tuple[float, float] = (math.nan, math.nan)
    n: float = math.nan
    rests: str = ""
    open: str = ""

    def words(self) -> str:
        """Both numbers, and chance."""
        if math.isnan(self.lost):
            return "not measured"
        chance = "unknown"
        if not math.isnan(self.chance):
            chance = f"{self.chance:.3g} \u00b1 {self.chance_half:.2g}"
        return (
            f"{self.lost:g} \u00b1 {self.halves[0]:.2g} lost against {self.gained:g} \u00b1 "
            f"{self.halves[1]:.2g} gained of {self.n:g}; by chance {chance} of each"
        )


def balance(clean: pd.DataFrame, run: Run) -> Balance:
    """Lost against gained at the last checkpoint: sums over benchmarks, one kind of each."""
    rows = capability_rows(clean, "lost", "gained", "lost_null", "gained_null")
    rows = rows[rows["run_id"] == run.run_id]
    rows = rows[rows["step"] == last_step(rows)]
    used = preferred(benchmarks_in(rows))
    parts = {
        name: [cell(rows[rows["benchmark"] == one.key], name) for one in used]
        for name in ("lost", "gained", "lost_null")
    }
    if not used or any(
        math.isnan(value) for name in ("lost", "gained") for value, *_ in parts[name]
    ):
        why = reasons(rows.loc[rows["metric"] == GROUP + "lost", "reason"]) if used else ""
        return Balance(rests=absent("The ledger", EVALUATE, why).rests, open=MISSING)
    sums = {name: math.fsum(value for value, *_ in found) for name, found in parts.items()}
    halves = {
        name: Z * math.sqrt(math.fsum(error**2 for _, error, *_ in found))
        for name, found in parts.items()
    }
    n = math.fsum(found[2] for found in parts["lost"])
    chance, spread = sums["lost_null"], halves["lost_null"]
    rests = f"{', '.join(benchmark_words(one.key) for one in used)}, at step {last_step(rows):g}"
    if math.isnan(chance):
        why = "what chance gives is unknown: the base has one sample a problem"
    else:
        within = [
            name for name in ("lost", "gained") if abs(sums[name] - chance) <= halves[name] + spread
        ]
        why = f"{' and '.join(within)} not told apart from chance" if within else ""
    return Balance(
        sums["lost"],
        sums["gained"],
        chance,
        spread,
        (halves["lost"], halves["gained"]),
        n,
        rests,
        why,
    )
