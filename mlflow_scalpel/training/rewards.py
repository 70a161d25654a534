"""The rewards of GRPO, with everything that goes wrong in them counted.

The functions have the signature that `trl.GRPOTrainer` calls; their names are what its metrics
carry (`rewards/accuracy/mean`). What they count goes to the same charts as `reward_checks/...`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mlflow_scalpel.evaluation.grading import math_correct

_BLOCKS = re.compile(r"<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>", re.DOTALL)

Messages = list[dict[str, str]]


class Rewards:
    """The rewards of one run, and what they have seen so far.

    `opening` is what the prompt writes of each completion already (`<think>` and a line break,
    where the chat template of a reasoning model does).
    """

    def __init__(self, *, opening: str = "") -> None:
        self._opening = opening
        self.completions = 0
        self.tokens_generated = 0
        self.correct = 0
        self.boxed = 0

    def accuracy(
        self,
        completions: list[Messages],
        answer: list[str],
        completion_ids: list[list[int]],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float | None]:
        r"""1 where the completion's \boxed answer equals the gold one by math-verify, else 0.

        None where the gold answer does not parse: the sample then counts for the other rewards
        only, and `reward_checks/gold_unparsable` says how often that was.
        """
        texts = [completion[0]["content"] for completion in completions]
        verdicts = [math_correct(text, gold) for text, gold in zip(texts, answer, strict=True)]
        boxed = sum("\\boxed" in text for text in texts)
        self.completions += len(texts)
        self.tokens_generated += sum(len(ids) for ids in completion_ids)
        self.correct += sum(verdict is True for verdict in verdicts)
        self.boxed += boxed
        log_metric("reward_checks/gold_unparsable", _share(v is None for v in verdicts))
        log_metric("reward_checks/empty_completions", _share(not t.strip() for t in texts))
        log_metric("reward_checks/boxed", boxed / len(texts))
        return [None if verdict is None else float(verdict) for verdict in verdicts]

    def format(self, completions: list[Messages], **_: Any) -> list[float]:
        """1 for <think>...</think> and then <answer>...</answer>, each on lines of its own.

        Judged together with what the prompt opens: there <think> may be left out.
        """
        texts = [self._opening + completion[0]["content"] for completion in completions]
        return [float(bool(_BLOCKS.fullmatch(text.strip()))) for text in texts]

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
