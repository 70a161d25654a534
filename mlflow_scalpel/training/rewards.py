"""The rewards of GRPO, with everything that goes wrong in them counted.

The functions have the signature that `trl.GRPOTrainer` calls; their names are what its metrics
carry (`rewards/accuracy/mean`). What they count goes to the same charts as `reward_checks/...`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from mlflow_scalpel.evaluation.grading import Verdict, grade_many

_FIRST, _BETWEEN, _LAST = "<think>\n", "\n</think>\n<answer>\n", "\n</answer>"

Messages = list[dict[str, str]]
Reward = Callable[..., list[float | None]]


class Rewards:
    """The rewards of one run, and what they have seen so far.

    `opening` is what the prompt writes of each completion already (`<think>` and a line break,
    where the chat template of a reasoning model does).
    """

    def __init__(self, *, opening: str = "") -> None:
        self._opening = opening
        self.completions = 0
        self.tokens_generated = 0
        self.boxed = 0
        self.not_graded = 0
        self.judged: dict[str, int] = {}
        """Completions to which each reward gave a value, whichever."""
        self.rewarded: dict[str, int] = {}
        """Of those, the ones with a value above 0."""

    def functions(self, names: Sequence[str]) -> list[Reward]:
        """The rewards of these names, for the trainer; each batch is counted by the first."""
        return [
            self._counted(getattr(self, name), batch=number == 0)
            for number, name in enumerate(names)
        ]

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
        self.not_graded += verdicts.count(Verdict.NOT_GRADED)
        unreadable = _share(verdict is Verdict.GOLD_UNREADABLE for verdict in verdicts)
        log_metric("reward_checks/gold_unparsable", unreadable)
        log_metric("reward_checks/not_graded", _share(v is Verdict.NOT_GRADED for v in verdicts))
        return [verdict.score for verdict in verdicts]

    def format(self, completions: list[Messages], **_: Any) -> list[float]:
        """1 for <think>...</think> and then <answer>...</answer>, each on lines of its own.

        Judged together with what the prompt opens: there <think> may be left out.
        """
        texts = [self._opening + completion[0]["content"] for completion in completions]
        return [float(_has_blocks(text.strip())) for text in texts]

    def warnings(self) -> dict[str, str | None]:
        """What a user must know about the rewards, by code; None where there is nothing to say."""
        return {"no_reward": self._no_reward(), "not_graded": self._left_out()}

    def _left_out(self) -> str | None:
        if not self.not_graded or not self.judged.get("accuracy"):
            return None  # where none was graded, that is said of the reward
        return (
            f"{self.not_graded} of {self.completions} completions were not graded, because "
            "comparing their answers takes too long: the accuracy reward leaves them out, and only "
            "the other rewards count for them. docs/explanation/grading.md has the limits; plain "
            "numbers as gold answers, or a system prompt that asks for simplified ones, keep "
            "within them"
        )

    def _no_reward(self) -> str | None:
        if not self.completions:
            return None
        seen = f"all {self.completions} completions so far"
        if "accuracy" in self.judged and not self.judged["accuracy"]:
            unreadable = self.completions - self.not_graded
            return (
                f"the accuracy reward judged none of {seen}: for {unreadable} the gold answer "
                f"could not be read as mathematics, and {self.not_graded} took too long to "
                "compare; look at data.columns.answer and data.answer_pattern, and for answers "
                "that take too long at the limits in docs/explanation/grading.md"
            )
        if not any(self.rewarded.values()):
            names = " and ".join(self.rewarded)
            return (
                f"the {names} reward was 0 for {seen} ({self.boxed} of them hold a \\boxed "
                "answer): nothing can be learned, because no completion is better than another. "
                "Use a base that earns some reward, easier problems, or a system prompt that asks "
                "for what is rewarded (\\boxed{...}, <think> and <answer>)"
            )
        if self.rewarded.get("accuracy") == 0:
            return (
                f"the accuracy reward was 0 for {seen} ({self.boxed} of them hold a \\boxed "
                "answer): GRPO has nothing to amplify, and what changes comes from the format "
                "reward or from noise. Use a base that solves some problems, easier problems, or a "
                "system prompt that asks for \\boxed{...}"
            )
        return None

    def _counted(self, reward: Reward, *, batch: bool) -> Reward:
        """The reward, with its values counted, and the batch too where `batch` says so."""
        name = reward.__name__
        self.judged[name] = self.rewarded[name] = 0

        @functools.wraps(reward)
        def counted(**arguments: Any) -> list[float | None]:
            if batch:
                self._count(**arguments)
            values = reward(**arguments)
            self.judged[name] += sum(value is not None for value in values)
            self.rewarded[name] += sum(value is not None and value > 0 for value in values)
            return values

        return counted

    def _count(
        self,
        completions: list[Messages],
        completion_ids: list[list[int]],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> None:
        texts = [completion[0]["content"] for completion in completions]
        boxed = sum("\\boxed" in text for text in texts)
        self.completions += len(texts)
        self.tokens_generated += sum(len(ids) for ids in completion_ids)
        self.boxed += boxed
        log_metric("reward_checks/empty_completions", _share(not t.strip() for t in texts))
        log_metric("reward_checks/boxed", boxed / len(texts))


def _share(verdicts: Any) -> float:
    found = list(verdicts)
    return sum(found) / len(found)


def _has_blocks(text: str) -> bool:
    """Whether a text is a block of thought and one of the answer; takes time of its length."""
    # A pattern with two lazy stars would try each end of the one with each of the other.
    if not (text.startswith(_FIRST) and text.endswith(_LAST)):
        return False
    return _BETWEEN in text[len(_FIRST) : len(text) - len(_LAST)]
