"""The rewards that come with the package: a right answer, and the form that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mlflow_scalpel.training.rewards.registry import Messages, reward

_FIRST, _BETWEEN, _LAST = "<think>\n", "\n</think>\n<answer>\n", "\n</answer>"


@reward("accuracy", answers_are_mathematics=True)
def accuracy(
    completions: list[Messages], answer: list[str], log_metric: Callable[[str, float], None]
) -> list[float | None]:
    r"""1 where the completion's answer equals the gold one (`evaluation.grading`), else 0.

    None where the gold answer cannot be read, or where comparing takes too long: the sample then
    counts for the other rewards only, and `reward_checks/gold_unparsable` and
    `reward_checks/not_graded` are the shares of the completions where that was so.
    """
    from mlflow_scalpel.evaluation.grading import Verdict, grade_many

    verdicts = grade_many([completion[0]["content"] for completion in completions], answer)
    unreadable = _share(verdict is Verdict.GOLD_UNREADABLE for verdict in verdicts)
    log_metric("reward_checks/gold_unparsable", unreadable)
    log_metric("reward_checks/not_graded", _share(v is Verdict.NOT_GRADED for v in verdicts))
    return [verdict.score for verdict in verdicts]


@reward("format")
def format_of_answer(completions: list[Messages], prompt_opening: str = "") -> list[float]:
    """1 for <think>...</think> and then <answer>...</answer>, each on lines of its own.

    Judged together with what the prompt opens: there <think> may be left out.
    """
    texts = [prompt_opening + completion[0]["content"] for completion in completions]
    return [float(_has_blocks(text.strip())) for text in texts]


def _share(found: Iterable[Any]) -> float:
    values = list(found)
    return sum(values) / len(values)


def _has_blocks(text: str) -> bool:
    """Whether a text is a block of thought and one of the answer; takes time of its length."""
    # A pattern with two lazy stars would try each end of the one with each of the other.
    if not (text.startswith(_FIRST) and text.endswith(_LAST)):
        return False
    return _BETWEEN in text[len(_FIRST) : len(text) - len(_LAST)]
