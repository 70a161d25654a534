"""The rule by which a learning rate is chosen before any comparison is looked at."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from mlflow_scalpel.errors import ScalpelError

PARTS = 10  # the run is judged by means over tenths of it, since single steps are noisy
TOLERANCE = 0.1

# What a stage is judged by, and whether more of it is better.
JUDGED_BY = {"grpo": ("reward", True), "sft": ("loss", False)}


def collapsed(history: Sequence[float], *, more_is_better: bool) -> bool:
    """Whether training fell back: its last tenth is over 10 % worse than its best tenth.

    `history` holds the reward (more is better) or the loss of every step. A value that is not
    finite is a collapse too, and so is a last tenth that is worse than the first.
    """
    if not history or not all(map(math.isfinite, history)):
        return True
    cuts = [round(len(history) * part / PARTS) for part in range(PARTS + 1)]
    means = [sum(history[a:b]) / (b - a) for a, b in itertools.pairwise(cuts) if b > a]
    last, first = means[-1], means[0]
    if more_is_better:
        best = max(means)
        return last < best - TOLERANCE * abs(best) or last < first
    best = min(means)
    return last > best + TOLERANCE * abs(best) or last > first


def choose(histories: Mapping[float, Sequence[float]], *, more_is_better: bool) -> float:
    """The largest learning rate whose training did not collapse.

    Raises ScalpelError where all did.
    """
    steady = [
        rate
        for rate, history in histories.items()
        if not collapsed(history, more_is_better=more_is_better)
    ]
    if not steady:
        raise ScalpelError(
            f"training collapsed at every learning rate tried ({', '.join(map(str, histories))}); "
            "add smaller ones to learning_rates"
        )
    return max(steady)
