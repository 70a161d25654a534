"""How far weights moved, in words: means at the last checkpoint, and their ratios between runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from mlflow_scalpel.views.common.style import Run
from mlflow_scalpel.views.common.table import Measurements, at_step, whole_matrices
from mlflow_scalpel.views.common.text import reasons
from mlflow_scalpel.views.summary.differences import ABSENT, text_of
from mlflow_scalpel.views.weights.norms import NOT_TRAINED


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


def when(data: Measurements, run_id: str, step: float) -> str:
    """Which checkpoint; and where it is not the run's last, which that is.

    A published model of unknown training has no step.
    """
    if data.stepless([run_id]):
        return "at its end (step not recorded)"
    end = data.end(run_id)
    later = f", and the run's last is {end:g}" if step < end else ""
    return f"at step {step:g}{later}"


def mean_norms(data: Measurements, metric: str) -> dict[str, Norm]:
    """The mean of a metric at each run's last compared checkpoint, by run ID, where it has rows."""
    every = data.checkpoints(metric)
    found = {}
    for run_id, own in at_step(whole_matrices(every)).groupby("run_id", sort=False):
        step = float(own["step"].iloc[0])
        trained = own[own["status"] != NOT_TRAINED]
        known = trained[trained["value"].notna()]
        found[str(run_id)] = Norm(
            float(known["value"].mean()),
            step,
            len(known),
            len(trained),
            "" if len(known) else reasons(own["reason"]),
            len(own) - len(trained),
            share_of(known, every[(every["run_id"] == run_id) & (every["step"] == step)]),
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


def share_text(share: float) -> str:
    """`, 86 % of the parameters`; "" where the share is not known."""
    return "" if math.isnan(share) else f", {100 * share:.3g} % of the parameters"


def over_text(norm: Norm) -> str:
    """Over how many matrices of the layers a mean is, and their share of the parameters."""
    matrices = f"{norm.known}" if norm.known == norm.cells else f"{norm.known} of {norm.cells}"
    untrained = f" ({norm.untrained} more are not trained)" if norm.untrained else ""
    return f"over {matrices} matrices{untrained}{share_text(norm.share)}"


def norm_text(norm: Norm | None, rate: Norm | None, at: str) -> str:
    """The mean relative norm, and the same for each unit of learning rate spent.

    `at` says of which checkpoint they are.
    """
    if norm is None:
        return "weights not compared"
    if not norm.known:
        return f"the mean relative norm has no value {at}: {norm.why}"
    text = f"mean relative norm {norm.value:.3g} {at}, {over_text(norm)}"
    if rate is None or not rate.known or rate.step != norm.step:
        return text
    return f"{text}, {rate.value:.3g} per unit of summed learning rate"


def norm_ratios(
    data: Measurements, norms: Mapping[str, Norm], rates: Mapping[str, Norm]
) -> list[str]:
    """For each pair of runs, how many times as far one moved, before and after the rate is divided.

    With the steps and the learning rate of both, on which the norm depends, and what of them is
    unequal or unknown. Only where both were compared in full: a mean over fewer matrices is another
    mean.
    """
    sentences = []
    for one, other in itertools.combinations(data.styles.values(), 2):
        a, b = norms.get(one.run_id), norms.get(other.run_id)
        if a is None or b is None or a.cells != b.cells:
            continue
        if not a.known == a.cells == b.known or 0 in (a.value, b.value):
            continue
        (far, top), (near, down) = sorted(
            ((one, a), (other, b)), key=lambda pair: pair[1].value, reverse=True
        )
        lengths = [_length(data, run, norm) for run, norm in ((far, top), (near, down))]
        speeds = [text_of(data.parameter(run.run_id, "learning_rate")) for run in (far, near)]
        terms = [f"{a}, learning rate {b}" for a, b in zip(lengths, speeds, strict=True)]
        text = (
            f"{far.name} ({terms[0]}) has {top.value / down.value:.3g} times the mean relative "
            f"norm of {near.name} ({terms[1]})"
        )
        c, d = rates.get(far.run_id), rates.get(near.run_id)
        if c is None or d is None or (c.step, d.step) != (top.step, down.step):
            c = d = None
        if c is not None and d is not None and c.known and d.value > 0:
            text += f", and {c.value / d.value:.3g} times its norm per unit of summed "
            text += "learning rate"
        sentences.append(f"{text}{_unlike(lengths, speeds)}.")
    return sentences


def _length(data: Measurements, run: Run, norm: Norm) -> str:
    """How long the run was trained up to the checkpoint that was compared."""
    return f"steps {ABSENT}" if data.stepless([run.run_id]) else f"{norm.step:g} steps"


def _unlike(lengths: Sequence[str], speeds: Sequence[str]) -> str:
    """Why the plain ratio is not one of the algorithms alone; "" for equal steps and rates."""
    why = []
    for name, texts in (("length", lengths), ("learning rate", speeds)):
        if any(ABSENT in one for one in texts):
            why.append(f"unknown {name}")
        elif len(set(texts)) > 1:
            why.append(f"unequal {name}")
    if not why:
        return ""
    return f"; runs of {' and '.join(why)}, which the plain ratio measures as well"
