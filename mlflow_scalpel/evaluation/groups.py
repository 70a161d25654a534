"""The number that lm-eval gives a group of tasks, beside the one over all of its problems."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lm_eval.api.group import Group

from mlflow_scalpel.evaluation.suite import SuiteTask
from mlflow_scalpel.metrics.capabilities.intervals import clustered_mean


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
    """What lm-eval reports for a group whose tasks have these scores, a list for each problem.

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
            said = "N/A" if math.isnan(stderr) else stderr
            error = {f"{entry.metric}_stderr,{entry.filter}": said}
            results[task] = {key: value, **error, "sample_len": len(problems)}
    found = dict(group.aggregate(results))  # type: ignore[arg-type]  # keys are the metrics' names
    if key not in found:
        return None
    error = found[f"{entry.metric}_stderr,{entry.filter}"]
    return GroupScore(float(found[key]), math.nan if error == "N/A" else float(error), len(results))
