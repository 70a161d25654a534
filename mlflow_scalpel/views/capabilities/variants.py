"""Freezing variants: their scores beside each other, and the check that what was frozen stayed."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from mlflow_scalpel.views.before_after import bars_of
from mlflow_scalpel.views.scores import before, scores
from mlflow_scalpel.views.style import Run, column_of, esc, isolated, nothing, styles
from mlflow_scalpel.views.tidy import number, read, reasons

TITLE = "Freezing variants"
METRIC = "frozen/changed_elements"
NONE = ("", "None", "none", "null", "{}", "0")


def frozen_words(runs: pd.DataFrame | None, run_id: str) -> str:
    """What a run froze, in the words of its parameters; "" where it says nothing of it."""
    for column in ("frozen", "freeze", "parameters_frozen"):
        said = column_of(runs, run_id, column)
        if said not in NONE:
            parsed = number(said)
            return said if parsed is None else f"{parsed:,.0f} parameters"
    return ""


def variants(
    clean: pd.DataFrame, runs: pd.DataFrame | None, looks: dict[str, Run]
) -> dict[str, str]:
    """Run ID -> what it froze, of those that did, and of those of the same algorithm that did not.

    Empty where no run froze anything: then there is nothing to compare.
    """
    checked = set(clean.loc[clean["metric"] == METRIC, "run_id"])
    frozen = {i: frozen_words(runs, i) for i in looks}
    with_some = {i for i, words in frozen.items() if words or i in checked}
    algorithms = {looks[i].algorithm for i in with_some}
    return {
        i: frozen[i] or ("not recorded" if i in checked else "nothing")
        for i, run in looks.items()
        if run.algorithm in algorithms
    }


def ablation_bars(table: pd.DataFrame, runs: pd.DataFrame | None = None) -> go.Figure:
    """Scores of freezing variants: the base, the runs that froze weights, and those that did not.

    A bar a variant, as in `scores_before_after`; runs of an algorithm of which no run froze
    anything are left out. What a run froze is read from its parameters `frozen`, `freeze` or
    `parameters_frozen`, or from its rows of `frozen/changed_elements`.

    Raises ValueError if columns are missing.
    """
    clean = read(table)
    looks = styles(clean, runs)
    found = variants(clean, runs, looks)
    rows = scores(clean)
    shown = [run for run in looks.values() if run.run_id in found]
    scored = set(rows.loc[rows["step"] > 0, "run_id"])
    if not any(run.run_id in scored for run in shown):
        return nothing(
            TITLE,
            "No evaluated run of this table froze weights: train with train.freeze in the recipe "
            "(or import with --frozen), and evaluate.",
        )
    own = rows.index[rows["run_id"].isin(found)]
    for run_id in found:
        own = own.union(before(rows, run_id).index)
    return bars_of(
        rows.loc[own],
        shown,
        title=TITLE,
        names={i: f"{looks[i].label}, frozen: {esc(words, 40)}" for i, words in found.items()},
    )


def frozen_table(table: pd.DataFrame, runs: pd.DataFrame | None = None) -> Markup:
    """Whether what each run froze stayed as it was, as an HTML table; "" where no run froze.

    Reads `run_id, step, value, n, status, reason` of `frozen/changed_elements`: the number of
    elements of frozen tensors that differ from the base, which must be 0 at every checkpoint.

    Raises ValueError if columns are missing.
    """
    clean = read(table)
    looks = styles(clean, runs)
    rows = clean[(clean["metric"] == METRIC) & (clean["step"] > 0)]
    body = Markup("")
    for run_id, words in variants(clean, runs, looks).items():
        own = rows[rows["run_id"] == run_id].sort_values("step")
        if words == "nothing" and not len(own):
            continue
        body += Markup('<tr class="{}"><th>{}</th><td>{}</td><td>{}</td><td>{}</td></tr>').format(
            *_verdict(own)[:1], isolated(looks[run_id].name), isolated(words), *_verdict(own)[1:]
        )
    if not body:
        return Markup("")
    return Markup(
        '<table class="frozen"><thead><tr><th>run</th><th>frozen</th><th>did it move?</th>'
        "<th>rests on</th></tr></thead><tbody>{}</tbody></table>"
    ).format(body)


def _verdict(own: pd.DataFrame) -> tuple[str, str, str]:
    """Class of the row, the answer, and what it rests on."""
    if not len(own):
        return "unknown", "not checked", "no frozen weight was compared with the base's"
    moved = own[own["value"] > 0]
    unknown = own[own["value"].isna()]
    tensors = number(own["n"].max())
    many = "tensors" if tensors is None else f"{tensors:g} tensors"
    at = f"{many}, bit for bit, at {len(own)} checkpoint{'s' * (len(own) != 1)}"
    if len(moved):
        first = moved.iloc[0]
        said = f"MOVED: {first['value']:,.0f} elements differ at step {first['step']:g}"
        return "moved", said, at
    if len(unknown):
        return "unknown", f"unknown at {len(unknown)} of them: {reasons(unknown['reason'])}", at
    return "still", "no: 0 elements differ", at
