"""How far weights moved, in words: means at the last checkpoint, and their ratios between runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from mlflow_scalpel.views.confounding import ABSENT, text_of
from mlflow_scalpel.views.scores import stepless
from mlflow_scalpel.views.style import Run, column_of
from mlflow_scalpel.views.tidy import last_step, per_matrix, reasons
from mlflow_scalpel.views.xaxis import end_of

NORM = "weights/relative_frobenius"
PER_RATE = "weights/relative_frobenius_per_lr"
NOT_TRAINED = "not trained"  # status of what an adapter does not touch


@dataclass(frozen=True)
class Norm:
    """Mean over layers and matrices at a run's last compared checkpoint."""

    value: float  # NaN without any
    step: float
    known: int  # cells with a value
    cells: int  # but for those that were not trained
    why: str  # it has none
    untrained: int = 0  # cells that an adapter does not touch
    share: float = math.nan  # of the model's parameters, which the cells with a value hold


def when(step: float, run: Run, clean: pd.DataFrame, runs: pd.DataFrame | None) -> str:
    """Which checkpoint; and where it is not the run's last, which that is.

    A published model of unknown training has no step.
    """
    if stepless([run.run_id], runs):
        return "at its end (step not recorded)"
    end = end_of(clean, run.run_id, runs)
    later = f", and the run's last is {end:g}" if step < end else ""
    return f"at step {step:g}{later}"


def mean_norms(clean: pd.DataFrame, looks: Sequence[Run], metric: str) -> dict[str, Norm | None]:
    """The mean of a metric at each run's last compared checkpoint, by run ID; None without rows."""
    every = clean[(clean["metric"] == metric) & (clean["step"] > 0)]
    rows = per_matrix(every, metric)
    found: dict[str, Norm | None] = {}
    for run in looks:
        own = rows[rows["run_id"] == run.run_id]
        step = last_step(own)
        own = own[own["step"] == step]
        found[run.run_id] = None
        if step is not None:
            trained = own[own["status"] != NOT_TRAINED]
            known = trained[trained["value"].notna()]
            why = "" if len(known) else reasons(own["reason"])
            all_of_it = every[(every["run_id"] == run.run_id) & (every["step"] == step)]
            found[run.run_id] = Norm(
                float(known["value"].mean()),
                step,
                len(known),
                len(trained),
                why,
                len(own) - len(trained),
                share_of(known, all_of_it),
            )
    return found


def share_of(rows: pd.DataFrame, every: pd.DataFrame) -> float:
    """The share of a model's parameters that `rows` of it are of; NaN where that is not known.

    `every` are the rows of one metric of all its tensors. Rows of one checkpoint that were
    imported, or measured before the elements were counted, have no `n` or no `part`.
    """
    if not len(every) or every["n"].isna().any() or (every["part"] == "").any():
        return math.nan
    return float(rows["n"].sum() / every["n"].sum())


def share_words(share: float) -> str:
    """`, 86 % of the parameters`; "" where the share is not known."""
    return "" if math.isnan(share) else f", {100 * share:.3g} % of the parameters"


def over_words(norm: Norm) -> str:
    """Over how many matrices of the layers a mean is, and their share of the parameters."""
    matrices = f"{norm.known}" if norm.known == norm.cells else f"{norm.known} of {norm.cells}"
    untrained = f" ({norm.untrained} more are not trained)" if norm.untrained else ""
    return f"over {matrices} matrices{untrained}{share_words(norm.share)}"


def norm_words(norm: Norm | None, rate: Norm | None, at: str) -> str:
    """The mean relative norm, and the same for each unit of learning rate spent.

    `at` says of which checkpoint they are.
    """
    if norm is None:
        return "weights not compared"
    if not norm.known:
        return f"the mean relative norm has no value {at}: {norm.why}"
    text = f"mean relative norm {norm.value:.3g} {at}, {over_words(norm)}"
    if rate is None or not rate.known or rate.step != norm.step:
        return text
    return f"{text}, {rate.value:.3g} per unit of summed learning rate"


def norm_ratios(
    looks: Sequence[Run],
    norms: Mapping[str, Norm | None],
    rates: Mapping[str, Norm | None],
    runs: pd.DataFrame | None,
) -> list[str]:
    """For each pair of runs, how many times as far one moved, before and after the rate is divided.

    With the steps and the learning rate of both, on which the norm depends, and what of them is
    unequal or unknown. Only where both were compared in full: a mean over fewer matrices is another
    mean.
    """
    sentences = []
    for i, one in enumerate(looks):
        for other in looks[i + 1 :]:
            a, b = norms[one.run_id], norms[other.run_id]
            if a is None or b is None or a.cells != b.cells:
                continue
            if not a.known == a.cells == b.known or 0 in (a.value, b.value):
                continue
            (far, top), (near, down) = sorted(
                ((one, a), (other, b)), key=lambda pair: pair[1].value, reverse=True
            )
            lengths = [_length(run, norm, runs) for run, norm in ((far, top), (near, down))]
            speeds = [text_of(column_of(runs, run.run_id, "learning_rate")) for run in (far, near)]
            terms = [f"{a}, learning rate {b}" for a, b in zip(lengths, speeds, strict=True)]
            text = (
                f"{far.name} ({terms[0]}) has {top.value / down.value:.3g} times the mean relative "
                f"norm of {near.name} ({terms[1]})"
            )
            c, d = rates[far.run_id], rates[near.run_id]
            if c is None or d is None or (c.step, d.step) != (top.step, down.step):
                c = d = None
            if c is not None and d is not None and c.known and d.value > 0:
                text += f", and {c.value / d.value:.3g} times its norm per unit of summed "
                text += "learning rate"
            sentences.append(f"{text}{_unlike(lengths, speeds)}.")
    return sentences


def _length(run: Run, norm: Norm, runs: pd.DataFrame | None) -> str:
    """How long the run was trained up to the checkpoint that was compared."""
    return f"steps {ABSENT}" if stepless([run.run_id], runs) else f"{norm.step:g} steps"


def _unlike(lengths: Sequence[str], speeds: Sequence[str]) -> str:
    """What keeps the plain ratio from being one of the algorithms; "" for equal steps and rates."""
    why = []
    for name, said in (("length", lengths), ("learning rate", speeds)):
        if any(ABSENT in one for one in said):
            why.append(f"unknown {name}")
        elif len(set(said)) > 1:
            why.append(f"unequal {name}")
    if not why:
        return ""
    return f"; runs of {' and '.join(why)}, which the plain ratio measures as well"
