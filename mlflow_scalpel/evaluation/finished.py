"""Completions that did not end by themselves, and prompts that left them little room: in words."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from mlflow_scalpel.evaluation.harness import Score

MANY = 0.5
"""Share of a task's completions cut at the token limit from which it is told."""
_LISTED = 6


def unfinished_words(rows: pd.DataFrame) -> str | None:
    """What to say of tasks most of whose completions were cut off; None where there are none.

    `rows` has a row a completion, with the columns label, kind, step and finished (null for tasks
    that generate nothing).
    """
    made = rows[rows["finished"].notna()]
    if not len(made):
        return None
    finished = made["finished"].astype(float).groupby([made["label"], made["kind"], made["step"]])
    counts = finished.agg(["sum", "count"]).reset_index()
    cut = counts[counts["sum"] <= (1.0 - MANY) * counts["count"]]
    if not len(cut):
        return None
    listed = [
        f"{row.label} ({row.kind}) at step {row.step}: {row.sum:.0f} of {row.count}"
        for row in cut.sort_values(["sum", "step"]).itertuples(index=False)
    ]
    more = f"; and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    none = " In some, none did." if (cut["sum"] == 0).any() else ""
    return (
        f"few completions ended before the token limit: {'; '.join(listed[:_LISTED])}{more}."
        f"{none} What is cut off is graded as it stands. Either max_new_tokens is too short, or "
        "the model does not stop: it never learned to, or the token that it ends with is not an "
        "end token of its tokenizer and generation config (eos_token of the training recipe)"
    )


def crowded_words(scores: Iterable[tuple[int, Score]]) -> str | None:
    """What to say of tasks whose prompts left less room than they allow; (step, score) each."""
    worst: dict[str, Score] = {}
    for _, score in scores:
        if score.crowded > (worst[score.metric].crowded if score.metric in worst else 0):
            worst[score.metric] = score
    if not worst:
        return None
    listed = [
        f"{name.removeprefix('eval/')}: {score.crowded} of {score.n + score.ungraded} problems"
        for name, score in worst.items()
    ]
    return (
        "prompts leave less of the model's context than max_new_tokens, so that completions are "
        f"cut at its end ({'; '.join(listed)}); take fewer shots, a shorter system prompt or "
        "fewer new tokens"
    )
