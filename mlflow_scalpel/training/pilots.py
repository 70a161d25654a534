"""The rule by which a learning rate is chosen before any comparison is looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mlflow_scalpel.errors import ScalpelError

# What a stage is judged by, and whether more of it is better.
JUDGED_BY = {"grpo": ("reward", True), "sft": ("loss", False)}


def final_mean(history: Sequence[float]) -> float:
    """Mean over the last tenth of a run, as single steps are noisy; NaN where one was not finite.

    `history` holds the training reward or loss of every step, in order.
    """
    if not history or not all(map(math.isfinite, history)):
        return math.nan
    last = history[-math.ceil(len(history) / 10) :]
    return sum(last) / len(last)


def choose(histories: Mapping[float, Sequence[float]], *, more_is_better: bool) -> float:
    """The learning rate whose run ends with the best training reward or loss (`final_mean`).

    Training values only: neither held-out problems nor any comparison has a say. Raises
    ScalpelError where every run met a value that is not finite.
    """
    ends = {rate: final_mean(history) for rate, history in histories.items()}
    finite = {rate: end for rate, end in ends.items() if math.isfinite(end)}
    if not finite:
        raise ScalpelError(
            f"training broke down at every learning rate tried ({', '.join(map(str, histories))}); "
            "add smaller ones to learning_rates"
        )
    return (max if more_is_better else min)(finite, key=finite.__getitem__)
