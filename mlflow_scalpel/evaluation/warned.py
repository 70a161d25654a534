"""What may be wrong with an evaluation: kept on its own run, and on the run that it evaluates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from mlflow_scalpel.comparison import MeasuredModel
from mlflow_scalpel.evaluation.finished import crowded_words, unfinished_words
from mlflow_scalpel.evaluation.harness import Evaluation
from mlflow_scalpel.evaluation.record import Plan, rows_of
from mlflow_scalpel.evaluation.scoring import left_out_words
from mlflow_scalpel.evaluation.suite import Suite
from mlflow_scalpel.run_warnings import warn, withdraw


def keep_warnings(said: Mapping[str, str | None], suite: Suite, plan: Plan, run_id: str) -> None:
    """Warn of what is said, by what it is about; None takes back what an earlier evaluation said.

    The codes are `evaluation_SUITE_...`: an evaluation replaces the warnings of earlier ones with
    the same suite, and leaves those of others.
    """
    runs = [run_id, *([] if plan.run is None else [plan.run.info.run_id])]
    for about, message in said.items():
        code = f"evaluation_{suite.name}_{about}"
        if message is None:
            withdraw(code, *runs)
        else:
            warn(code, message, *runs)


def warnings_of_results(
    found: list[tuple[Evaluation, MeasuredModel]], unreadable: Mapping[str, int]
) -> dict[str, str | None]:
    """What is to be said of the results of all models, by what it is about; None for nothing.

    `unreadable` has the unreadable gold answers, by score, of which the user was warned before.
    """
    rows = pd.concat([rows_of(*one) for one in found], ignore_index=True)
    scores = [(subject.step or 0, score) for one, subject in found for score in one.scores]
    return {
        "left_out": _left_out((evaluation for evaluation, _ in found), unreadable),
        "unfinished": unfinished_words(rows),
        "short_of_context": crowded_words(scores),
    }


def _left_out(evaluations: Iterable[Evaluation], unreadable: Mapping[str, int]) -> str | None:
    most: dict[str, tuple[int, int, int]] = {}  # of a model: unreadable, too long, all
    for score in (score for evaluation in evaluations for score in evaluation.scores):
        new = 0 if score.ungraded <= unreadable.get(score.metric, 0) else score.ungraded
        before = most.get(score.metric, (0, 0, 0))
        most[score.metric] = (
            max(before[0], new),
            max(before[1], score.not_graded),
            max(before[2], score.n + score.ungraded + score.not_graded),
        )
    words = [left_out_words(metric, *counts) for metric, counts in most.items() if any(counts[:2])]
    return "; ".join(words) or None
