"""The differences of the runs besides their algorithm, and the bases they were compared with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pandas as pd
from markupsafe import Markup, escape

from mlflow_scalpel.units import cost_words
from mlflow_scalpel.views.common.table import Measurements
from mlflow_scalpel.views.common.text import column_of, isolated, number, unique
from mlflow_scalpel.views.common.view import public, section_table

#: Shown in every comparison, whether they differ or not.
FIRST = ("learning_rate", "steps", "dtype", "data", "seed")
#: And the source of imported runs.
SHOWN = (*FIRST, "imported_from")
ABSENT = "not recorded"
#: The parameters that say which weights a run left alone.
FROZEN = ("frozen", "freeze", "parameters_frozen", "parameters_trained", "tensors_frozen")

_MODEL_ID = re.compile(r"(models:/)?m-[0-9a-f]{32}")
_DIGITS = 8  # of a digest, which tell models apart


def names_of(runs: pd.DataFrame) -> list[str]:
    """The runs' display names; runs that share one get the start of their id behind it."""
    ids = [str(index) for index in runs.index]
    names = [
        column_of(runs, i, "name") or f"{column_of(runs, i, 'algorithm') or 'run'} {i[:6]}"
        for i in ids
    ]
    return list(unique(dict(zip(ids, names, strict=True))).values())


def text_of(value: object) -> str:
    """A parameter as text; `1e-05` and `0.00001` read the same, and `300.0` reads 300."""
    if not pd.api.types.is_scalar(value):
        return str(value)
    if pd.isna(value) or str(value) == "":
        return ABSENT
    parsed = None if isinstance(value, bool) else number(value)
    return str(value) if parsed is None else f"{parsed:.15g}"


@public
def confounders(runs: pd.DataFrame, *, always: Sequence[str] = ()) -> pd.DataFrame:
    """Every parameter in which the runs differ: parameters as rows, a column per run.

    `runs` has a row per run (index: run id), the column `name` and any parameters. Numbers are
    compared as numbers; a parameter that is missing in one run reads "not recorded" and counts as a
    difference. learning_rate, steps, dtype, data and seed come first, the rest by name. `always`
    names parameters to show even where all runs agree.
    """
    names = names_of(runs)
    parameters = [str(c) for c in runs.columns if str(c) not in (*FIRST, "name", "warnings")]
    found: dict[str, list[str]] = {}
    for parameter in [*FIRST, *sorted(parameters)]:
        if parameter in runs.columns:
            texts = [text_of(value) for value in runs[parameter]]
        else:
            texts = [ABSENT] * len(names)
        if len(set(texts)) > 1 or parameter in always:
            found[parameter] = texts
    frame = pd.DataFrame.from_dict(found, orient="index", columns=names, dtype=object)
    return frame.rename_axis("parameter")


def question(runs: pd.DataFrame) -> tuple[str, ...]:
    """The parameters that the comparison is about, and in which its runs are meant to differ.

    The algorithm where it differs, else what was frozen; nothing where neither does.
    """
    for parameters in (("algorithm",), FROZEN):
        for parameter in parameters:
            if parameter in runs.columns and len({text_of(v) for v in runs[parameter]}) > 1:
                return parameters
    return ()


@public
def confounder_table(runs: pd.DataFrame, *, about: Sequence[str] | None = None) -> Markup:
    """`confounders` as an HTML table, with learning rate, steps, dtype, data and seed in any case.

    Rows that differ are bold, but for the parameters that the comparison is `about` (by default
    those of `question`). Every cell is escaped. Rows in which all runs agree have the class `same`;
    parameters that only some of the runs record stand in a part of their own, which opens on a
    click.
    """
    frame = confounders(runs, always=SHOWN)
    # SFT and GRPO each have dozens of settings that the other does not know: those stand apart.
    partial = (frame == ABSENT).any(axis=1) & ~frame.index.isin(SHOWN)
    some = frame[partial]
    about = question(runs) if about is None else about
    shown = _html_table(frame[~partial], about)
    if some.empty:
        return shown
    return shown + Markup(
        "<details><summary>{} more that only some of the runs record</summary>{}</details>"
    ).format(len(some), _html_table(some, about))


def _with_unit(parameter: str, text: str) -> str:
    """A cost as it is read (1.61 TFLOP); any other text as it is."""
    value = number(text) if parameter.startswith("cost/") else None
    return text if value is None else cost_words(parameter, value)


def _html_table(frame: pd.DataFrame, about: Sequence[str]) -> Markup:
    head = Markup("").join(Markup("<th>{}</th>").format(isolated(name)) for name in frame.columns)
    body = Markup("")
    for parameter, cells in zip(frame.index, frame.itertuples(index=False), strict=True):
        same = len(cells) > 1 and len(set(cells)) == 1
        bold = not same and len(cells) > 1 and parameter not in about
        texts = [_with_unit(str(parameter), text) for text in cells]
        inside = [Markup("<b>{}</b>" if bold else "{}").format(isolated(text)) for text in texts]
        body += Markup('<tr class="{}"><th>{}</th>{}</tr>').format(
            "same" if same else "differs",
            Markup("<b>{}</b>").format(parameter) if bold else escape(parameter),
            Markup("").join(Markup("<td>{}</td>").format(cell) for cell in inside),
        )
    return Markup(
        '<table class="confounders"><thead><tr><th>parameter</th>{}</tr></thead>'
        "<tbody>{}</tbody></table>"
    ).format(head, body)


@section_table("confounders")
def differences(data: Measurements) -> Markup:
    """`confounder_table` of a table's runs; "" where nothing is known of them."""
    known = data.runs is not None and len(data.runs)
    return confounder_table(data.runs) if known else Markup("")  # type: ignore[arg-type]


def base_text(data: Measurements) -> list[str]:
    """Each base of a table once, with its name and the first digits of its digest.

    One base that was logged in several experiments has an ID in each; its digest is one. The name
    is what the runs call it (`base_name`, else `base_model`), the ID where they only know that.
    Reads `base, base_digest, run_id`.
    """
    rows = data.table[data.table["base"] != ""]
    known = rows[rows["base_digest"] != ""]
    found, seen = [], set()
    for digest, own in known.groupby("base_digest", sort=False):
        ids = list(own["base"].unique())
        seen |= set(ids)
        names = [
            data.parameter(run_id, column)
            for column in ("base_name", "base_model")
            for run_id in own["run_id"].unique()
        ]
        name = _first_name([*names, *ids]) or ids[0]
        kind, _, digits = str(digest).rpartition(":")
        short = f"{kind}:{digits[:_DIGITS]}" if kind else digits[:_DIGITS]
        found.append(f"{name} ({short})")
    return [*found, *(base for base in rows["base"].unique() if base not in seen)]


def _first_name(names: Iterable[str]) -> str | None:
    """The first that is not an ID."""
    return next((name for name in names if name and not _MODEL_ID.fullmatch(name)), None)
