"""Files of a run beside its tidy table: tokens with their KL, and problems with answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from mlflow.entities import Run

from mlflow_scalpel.comparison.run_queries import (
    LEDGER,
    TOKENS,
    Source,
    claims,
    comparisons_of,
    ledger_run,
    read_artifact,
)
from mlflow_scalpel.comparison.table import read_ledger, read_tokens, token_step
from mlflow_scalpel.credentials import shortened
from mlflow_scalpel.errors import ScalpelError

NO_TOKENS = (
    "No tokens are stored of these runs. Training with the stages of this project stores them, and "
    "mlflow-scalpel compare BASE runs:/RUN --metrics kl --texts FILE --log."
)
NO_LEDGER = "No problems are stored of these runs. They come from: mlflow run . -e evaluate."
_STATUSES = (
    ("", "all"),
    ("lost", "lost"),
    ("gained", "gained"),
    ("kept", "kept"),
    ("never", "never"),
)
_RANKING = ("", "the tokens of the largest KL")

Choices = Sequence[tuple[str, str]]


def tokens(source: Source, runs: Sequence[Run], wanted: Mapping[str, str]) -> dict[str, Any]:
    """A problem's tokens coloured by KL, or those of the largest KL, as HTML and fields to choose.

    `wanted` holds what was chosen: run, step, texts, problem.
    """
    from mlflow_scalpel.views.divergence.tokens import token_ranking, token_reader

    stored = {run.info.run_id: _token_files(source, run) for run in runs}
    fields = _Fields(wanted)
    run_id = fields.choose("run", "run", _names(run for run in runs if stored[run.info.run_id]))
    if run_id is None:
        return {"empty": NO_TOKENS}
    files = stored[run_id]
    steps = [(str(step), f"step {step}") for step in sorted(files)]
    step = fields.choose("step", "checkpoint", steps, last=True)
    (run,) = (one for one in runs if one.info.run_id == run_id)
    table = _token_table(source, run, files[int(step or 0)])
    texts = fields.choose(
        "texts", "texts", [(one, one.split()[0]) for one in _distinct(table, "texts")]
    )
    rows = table[table["texts"] == texts]
    numbers = [(str(number), f"problem {number}") for number in sorted(set(rows["problem"]))]
    problem = fields.choose("problem", "show", [_RANKING, *numbers])
    html = (
        token_reader(table, problem=int(problem), texts=texts)
        if problem
        else token_ranking(table, texts=texts)
    )
    return {"fields": fields.shown, "html": str(html)}


def problems(source: Source, runs: Sequence[Run], wanted: Mapping[str, str]) -> dict[str, Any]:
    """The problems of a ledger with both models' answers, as HTML and fields to choose.

    `wanted` holds what was chosen: run, benchmark, step, status.
    """
    from mlflow_scalpel.views.capabilities.problems import problem_table

    owners = {run.info.run_id: ledger_run(source, run) for run in runs}
    fields = _Fields(wanted)
    run_id = fields.choose("run", "run", _names(run for run in runs if owners[run.info.run_id]))
    owner = owners.get(run_id or "")
    if owner is None:
        return {"empty": NO_LEDGER}
    table = read_artifact(source, owner, LEDGER, read_ledger)
    keys = table["domain"] + "/" + table["label"] + "/" + table["kind"]
    benchmark = fields.choose("benchmark", "benchmark", [(key, key) for key in dict.fromkeys(keys)])
    rows = table[keys == benchmark]
    steps = [(f"{step:g}", f"step {step:g}") for step in sorted(set(rows["step"].dropna()))]
    step = fields.choose("step", "checkpoint", steps, last=True)
    status = fields.choose("status", "problems", _STATUSES)
    html = problem_table(
        table, status=status or None, benchmark=benchmark, step=float(step) if step else None
    )
    return {"fields": fields.shown, "html": str(html)}


DETAILS: dict[str, Callable[[Source, Sequence[Run], Mapping[str, str]], dict[str, Any]]] = {
    "tokens": tokens,
    "problems": problems,
}


class _Fields:
    """Fields to choose from, in the order in which one depends on another, with what was chosen."""

    def __init__(self, wanted: Mapping[str, str]) -> None:
        self._wanted = wanted
        self.shown: list[dict[str, Any]] = []

    def choose(self, name: str, label: str, choices: Choices, *, last: bool = False) -> str | None:
        """The value that was asked for, where it is among the choices; the first (last) else."""
        values = [value for value, _ in choices]
        if not values:
            return None
        wanted = self._wanted.get(name, "")
        value = wanted if wanted in values else values[-1 if last else 0]
        self.shown.append(
            {
                "name": name,
                "label": label,
                "choices": [list(one) for one in choices],
                "value": value,
            }
        )
        return value


def _names(runs: Iterable[Run]) -> list[tuple[str, str]]:
    return [(run.info.run_id, str(run.info.run_name or run.info.run_id)[:200]) for run in runs]


def _distinct(table: pd.DataFrame, column: str) -> list[str]:
    return [str(one) for one in dict.fromkeys(table[column].dropna())]


def _token_files(source: Source, run: Run) -> dict[int, list[tuple[str, str]]]:
    """Step -> (run ID, path) of the tables of tokens: the run's rows, then those of comparisons."""
    files: dict[int, list[tuple[str, str]]] = {}
    compared = claims(comparisons_of(source, [run]), [run])
    for one in (run, *(claim.run for claim in compared if claim.counts_for)):
        for path in source.files(one.info.run_id, TOKENS):
            step = token_step(path)
            if step is not None:
                files.setdefault(step, []).append((one.info.run_id, path))
    return files


def _token_table(source: Source, run: Run, files: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """The tokens of a run's checkpoint over all texts; of the same texts the first file's."""
    models = {made.model_id for made in (run.outputs.model_outputs if run.outputs else ())}
    tables: list[pd.DataFrame] = []
    bad: ScalpelError | None = None
    for run_id, path in files:
        try:
            table = read_artifact(source, run_id, path, read_tokens)
        except ScalpelError as error:  # the others are shown
            bad = error
            continue
        if run_id != run.info.run_id:  # which may hold models of other runs too
            table = table[table["model_id"].isin(models)]
        known = {texts for one in tables for texts in one["texts"]}
        tables.append(table[~table["texts"].isin(known)])
    if bad is not None and not tables:
        raise bad
    return pd.concat(tables, ignore_index=True)


def details(
    kind: str, source: Source, runs: Sequence[Run], wanted: Mapping[str, str]
) -> dict[str, Any]:
    """One of DETAILS; raises ScalpelError for another name, and for a file that cannot be read."""
    if kind not in DETAILS:
        raise ScalpelError(f"details {kind[:40]!r}: do not exist; there are {', '.join(DETAILS)}")
    try:
        return DETAILS[kind](source, runs, wanted)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ScalpelError(
            f"the {kind} of this run cannot be shown: their file is damaged, or of a version in "
            f"which something is missing ({type(error).__name__}: {shortened(error, 200)}); "
            "measure the run anew, or choose another one"
        ) from error
