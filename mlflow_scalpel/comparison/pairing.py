"""Which checkpoints the group `pairs` sets side by side."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from mlflow_scalpel.comparison.measured_models import MeasuredModel


def pairs_of(checkpoints: Sequence[MeasuredModel]) -> list[tuple[int, int]]:
    """Indices of the checkpoints of each pair, the one that was given first in front.

    - Of two runs: those at the same step, and the last with the last. Early and late steps of two
      runs differ by how far they went, which says nothing about the runs.
    - Where all are of one run: each with the last one.

    A run is a run ID, or the folder that holds directories named by their step (`checkpoint-400`);
    any other model is a run of its own. The last is the one with the largest step.
    """
    runs: dict[str, list[int]] = {}
    for index, one in enumerate(checkpoints):
        runs.setdefault(_run_of(one), []).append(index)
    last = {run: max(found, key=lambda i: checkpoints[i].step or 0) for run, found in runs.items()}
    if len(runs) == 1:
        (end,) = last.values()
        return sorted((min(i, end), max(i, end)) for i in range(len(checkpoints)) if i != end)
    pairs = set()
    for run, other in itertools.combinations(runs, 2):
        pairs.add((last[run], last[other]))
        for first, second in itertools.product(runs[run], runs[other]):
            step = checkpoints[first].step
            if step is not None and step == checkpoints[second].step:
                pairs.add((first, second))
    return sorted((min(pair), max(pair)) for pair in pairs)


def _run_of(one: MeasuredModel) -> str:
    if one.run_id is not None:
        return one.run_id
    return one.model_id if one.step is None else str(one.directory.resolve().parent)
