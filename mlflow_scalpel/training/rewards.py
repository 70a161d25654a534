"""The rewards of GRPO, with everything that goes wrong in them counted.

The functions have the signature that `trl.GRPOTrainer` calls; their names are what its metrics
carry (`rewards/accuracy/mean`). What they count goes to the same charts as `reward_checks/...`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mlflow_scalpel.evaluation.grading import Verdict, grade_many

_BLOCKS = re.compile(r"<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>", re.DOTALL)

Messages = list[dict[str, str]]


class Rewards:
    """The rewards of one run, and what they have seen so far."""

    def __init__(self) -> None:
        self.completions = 0
        self.tokens_generated = 0
        self.correct = 0
        self.boxed = 0
        self.not_graded = 0

    def accuracy(
        self,
        completions: list[Messages],
        answer: list[str],
        completion_ids: list[list[int]],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float | None]:
        r"""1 where the completion's answer equals the gold one (`evaluation.grading`), else 0.

        None where the gold answer cannot be read, or where comparing takes too long: the sample
        then counts for the other rewards only, and `reward_checks/gold_unparsable` and
        `reward_checks/not_graded` say how often that was.
        """
        texts = [completion[0]["content"] for completion in completions]
        verdicts = grade_many(texts, answer)
        boxed = sum("\\boxed" in text for text in texts)
        self.completions += len(texts)
        self.tokens_generated += sum(len(ids) for ids in completion_ids)
        self.correct += verdicts.count(Verdict.RIGHT)
        self.not_graded += verdicts.count(Verdict.NOT_GRADED)
        self.boxed += boxed
        unreadable = _share(verdict is Verdict.GOLD_UNREADABLE for verdict in verdicts)
        log_metric("reward_checks/gold_unparsable", unreadable)
        log_metric("reward_checks/not_graded", _share(v is Verdict.NOT_GRADED for v in verdicts))
        log_metric("reward_checks/empty_completions", _share(not t.strip() for t in texts))
        log_metric("reward_checks/boxed", boxed / len(texts))
        return [verdict.score for verdict in verdicts]

    def format(self, completions: list[Messages], **_: Any) -> list[float]:
        """1 for <think>...</think> and then <answer>...</answer>, each on lines of its own."""
        return [float(bool(_BLOCKS.fullmatch(c[0]["content"].strip()))) for c in completions]

    def warning(self) -> str | None:
        """What a user must know about the accuracy reward, or None where it has worked."""
        if not self.completions or self.correct:
            return None
        return (
            f"the accuracy reward was 0 for all {self.completions} completions so far "
            f"({self.boxed} of them hold a \\boxed answer): GRPO has nothing to amplify, and what "
            "changes comes from the format reward or from noise. Use a base that solves some "
            "problems, easier problems, or a system prompt that asks for \\boxed{...}"
        )


def _share(verdicts: Any) -> float:
    found = list(verdicts)
    return sum(found) / len(found)
