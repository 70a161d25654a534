"""Scores of a task's completions: lm-eval's graders one by one, this project's in one batch.

Scores of a group of tasks stand beside them as lm-eval itself makes one number of its tasks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.evaluation import grading
from mlflow_scalpel.evaluation.grading import Verdict, fallback_of, grade_many
from mlflow_scalpel.evaluation.grading.answers import last_boxed
from mlflow_scalpel.evaluation.suite import SuiteTask
from mlflow_scalpel.metrics.capabilities.intervals import clustered_mean

UNREADABLE = "ungraded"
TOO_LONG = "not graded"
_OURS = {
    grading.math_answer.__name__: "math_verify",
    grading.math_answer_or_number.__name__: "math_verify_or_number",
}

Grades = list[dict[int, list[float]]]


def grades_of(task: Any, entry: SuiteTask) -> tuple[Grades, dict[tuple[int, int], str]]:
    """(The scores of each sample by document, why some have none by sample and document).

    A document has several scores where its metric gives several.
    """
    grader = _own_grader(task, entry)
    samples = [_answered(task, entry, sample) for sample in range(entry.samples)]
    if grader is None:
        return [_by_task(task, entry, groups) for groups in samples], {}
    texts, golds = {}, {}
    for sample, groups in enumerate(samples):
        for number, requests in groups.items():
            first = requests[0]
            if entry.grader == "task":
                texts[sample, number] = first.filtered_resps[entry.filter]
                golds[sample, number] = str(first.doc["answer"])
            else:
                texts[sample, number] = first.resps[0]
                golds[sample, number] = gold_within(target_of(task, first.doc, entry), entry)
    found = grade_many(list(texts.values()), list(golds.values()), fallback=fallback_of(grader))
    grades: Grades = [{} for _ in samples]
    unscored = {}
    for (sample, number), verdict in zip(texts, found, strict=True):
        grades[sample][number] = [np.nan if verdict.score is None else verdict.score]
        if verdict.score is None:
            too_long = verdict is Verdict.NOT_GRADED
            unscored[sample, number] = TOO_LONG if too_long else UNREADABLE
    return grades, unscored


def target_of(task: Any, doc: dict[str, Any], entry: SuiteTask) -> str:
    """A document's answer as the task gives it, which may be a complete solution."""
    target = doc.get("answer") if entry.generation is not None else None
    if target is None:
        target = task.doc_to_target(doc)
        if isinstance(target, int) and task.OUTPUT_TYPE == "multiple_choice":
            target = task.doc_to_choice(doc)[target]
    return str(target)


def gold_within(target: str, entry: SuiteTask) -> str:
    """The answer within a task's target: what the suite's pattern finds, a boxed one, or all."""
    found = re.search(entry.gold_pattern, target) if entry.gold_pattern is not None else None
    if found is not None:
        return found.group(1).strip()
    boxed = last_boxed(target)
    return target if boxed is None else boxed


def left_out_words(metric: str, unreadable: int, too_long: int, of: int) -> str:
    """A note for readers of a score on the problems that it leaves out."""
    parts = []
    if unreadable:
        parts.append(f"the gold answer of {unreadable} of {of} problems cannot be read")
    if too_long:
        parts.append(f"{too_long} of {of} problems have an answer that takes too long to compare")
    return f"{metric}: {' and '.join(parts)}; they are left out"


def _own_grader(task: Any, entry: SuiteTask) -> str | None:
    """The grader of this project that scores the task, named by the suite or by the task's YAML."""
    if entry.grader != "task":
        return entry.grader
    function = task.config.process_results
    # lm-eval may have loaded the module a second time, so the function is known by its name
    if getattr(function, "__module__", None) != grading.__name__:
        return None
    grader = _OURS.get(function.__name__)
    return grader if grader == entry.metric else None


def _answered(task: Any, entry: SuiteTask, sample: int) -> dict[int, list[Instance]]:
    """The requests of each document with one sample of their answers, filtered."""
    clones = [replace(one, resps=[one.resps[sample]], filtered_resps={}) for one in task.instances]
    for ensemble in task._filters:
        if ensemble.name == entry.filter:
            ensemble.apply(clones)
    groups: dict[int, list[Instance]] = {}
    for clone in clones:
        groups.setdefault(clone.doc_id, []).append(clone)
    for requests in groups.values():
        requests.sort(key=lambda request: request.idx)
    return groups


def _by_task(
    task: Any, entry: SuiteTask, groups: dict[int, list[Instance]]
) -> dict[int, list[float]]:
    scores = {}
    for number, requests in groups.items():
        filtered = [request.filtered_resps[entry.filter] for request in requests]
        value = task.process_results(requests[0].doc, filtered)[entry.metric]
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(v, bool | int | float | np.number) for v in values):
            raise ScalpelError(
                f"{entry.metric_name}: metric {entry.metric} of the task {entry.task} is "
                f"{value!r} for a problem and no accuracy; name another metric"
            )
        scores[number] = [float(v) for v in values]
    return scores


@dataclass(frozen=True)
class GroupScore:
    """Value and standard error of a group by lm-eval's own aggregation."""

    value: float
    stderr: float
    """NaN where a task of the group has a single problem."""
    tasks: int


def group_score(
    group: Group, entry: SuiteTask, scores: Mapping[str, Sequence[Sequence[float]]]
) -> GroupScore | None:
    """The number that lm-eval reports for a group; `scores` has a list for each problem of a task.

    By default that is the mean weighted by the tasks' sizes, with the standard errors of the tasks
    pooled (lm_eval.api.metrics.pooled_sample_stderr), which leaves out how far the tasks lie apart:
    it is smaller than the error over all problems. A group may ask for the plain mean of its tasks
    (`weight_by_size: false`), which is another value. None where the group's file asks for no
    number of this metric.
    """
    key = f"{entry.metric},{entry.filter}"
    results = {}
    for task, problems in scores.items():
        value, stderr = clustered_mean(problems)
        if problems:
            error = "N/A" if math.isnan(stderr) else stderr
            error_cell = {f"{entry.metric}_stderr,{entry.filter}": error}
            results[task] = {key: value, **error_cell, "sample_len": len(problems)}
    found = dict(group.aggregate(results))  # type: ignore[arg-type]  # keys are the metrics' names
    if key not in found:
        return None
    error = found[f"{entry.metric}_stderr,{entry.filter}"]
    return GroupScore(float(found[key]), math.nan if error == "N/A" else float(error), len(results))
