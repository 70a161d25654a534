"""Calls the rewards of a run, and counts what goes through them.

What is counted goes to the same charts as the trainer's metrics, as `reward_checks/...`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.training.rewards.registry import OPENING, ChosenReward, Messages, RewardFunction


class RewardMonitor:
    """The rewards of one run as its trainer calls them, and what they have seen so far.

    `prompt_opening` is what the prompt writes of each completion already (`<think>` and a line
    break, where the chat template of a reasoning model does).
    """

    def __init__(self, rewards: Sequence[ChosenReward], *, prompt_opening: str = "") -> None:
        self._opening = prompt_opening
        self.completions = 0
        self.tokens_generated = 0
        self.boxed = 0
        self.judged: dict[str, int] = {one.name: 0 for one in rewards}
        """Completions to which each reward gave a value, whichever."""
        self.rewarded: dict[str, int] = {one.name: 0 for one in rewards}
        """Of those, the ones with a value other than 0."""
        self._shares: defaultdict[str, float] = defaultdict(
            float
        )  # completions, by the metric that a reward logs
        self._graded = [one.name for one in rewards if one.reward.answers_are_mathematics]
        self.functions = [
            self._counted(one, is_first=number == 0) for number, one in enumerate(rewards)
        ]
        """For the trainer; their names are what its metrics carry (`rewards/accuracy/mean`)."""
        self.weights = [one.weight for one in rewards]

    @property
    def not_graded(self) -> int:
        """Completions whose answer took too long to compare."""
        return round(self._shares["reward_checks/not_graded"])

    def warnings(self) -> dict[str, str | None]:
        """What a user must know about the rewards, by code; None where there is nothing to say."""
        return {
            "no_reward": self._no_reward(),
            "not_graded": self._not_graded(),
            "no_reward_value": self._no_value(),
        }

    def _counted(self, chosen: ChosenReward, *, is_first: bool) -> RewardFunction:
        """The reward as the trainer calls it; the first one of a batch counts the batch."""
        name = chosen.name

        def counted(**given: Any) -> list[float | None]:
            completions = given["completions"]
            if is_first:
                self._count(completions, given["completion_ids"], given["log_metric"])
            log_metric = self._logging(given["log_metric"], len(completions))
            try:
                values = chosen.reward.call(
                    {**given, "log_metric": log_metric, OPENING: self._opening}, chosen.arguments
                )
            except Exception as error:
                error.add_note(f"raised by the reward {name}")
                raise
            checked = _checked(name, values, completions)
            self.judged[name] += sum(value is not None for value in checked)
            self.rewarded[name] += sum(value is not None and value != 0 for value in checked)
            return checked

        counted.__name__ = name
        return counted

    def _count(
        self,
        completions: list[Messages],
        completion_ids: list[list[int]],
        log_metric: Callable[[str, float], None],
    ) -> None:
        texts = [completion[0]["content"] for completion in completions]
        boxed = sum("\\boxed" in text for text in texts)
        self.completions += len(texts)
        self.tokens_generated += sum(len(ids) for ids in completion_ids)
        self.boxed += boxed
        empty = sum(not text.strip() for text in texts)
        log_metric("reward_checks/empty_completions", empty / len(texts))
        log_metric("reward_checks/boxed", boxed / len(texts))

    def _logging(
        self, log_metric: Callable[[str, float], None], completions: int
    ) -> Callable[[str, float], None]:
        def log(name: str, value: float) -> None:
            self._shares[name] += value * completions
            log_metric(name, value)

        return log

    def _not_graded(self) -> str | None:
        if not self.not_graded or not any(self.judged[name] for name in self._graded):
            return None  # where none was graded, `no_reward` says so
        return (
            f"{self.not_graded} of {self.completions} completions were not graded, because "
            "comparing their answers takes too long: the accuracy reward leaves them out, and only "
            "the other rewards count for them. docs/explanation/grading.md has the limits; plain "
            "numbers as gold answers, or a system prompt that asks for simplified ones, keep "
            "within them"
        )

    def _no_value(self) -> str | None:
        """A reward that left completions out: of `accuracy` the other warnings say why."""
        missing = {
            name: self.completions - judged
            for name, judged in self.judged.items()
            if name not in self._graded and judged < self.completions
        }
        if not missing:
            return None
        counts = " and ".join(f"the {name} reward for {count}" for name, count in missing.items())
        return (
            f"no value (None) was given by {counts} of {self.completions} completions: only the "
            "other rewards count for them, and where there is none, nothing"
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
            others = " and ".join(name for name in self.rewarded if name != "accuracy")
            return (
                f"the accuracy reward was 0 for {seen} ({self.boxed} of them hold a \\boxed "
                f"answer): GRPO has nothing to amplify, and what changes comes from the {others} "
                "reward or from noise. Use a base that solves some problems, easier problems, or a "
                "system prompt that asks for \\boxed{...}"
            )
        return None


def _checked(name: str, values: Any, completions: list[Messages]) -> list[float | None]:
    """The values of a reward as numbers; raises ScalpelError where they are not one for each."""
    try:
        found = list(values)
    except TypeError as error:
        raise ScalpelError(
            f"the reward {name} gave a {type(values).__name__}; return a list with a number or "
            "None for each completion"
        ) from error
    if len(found) != len(completions):
        raise ScalpelError(
            f"the reward {name} gave {len(found)} values for {len(completions)} completions; "
            "return a number or None for each, in their order"
        )
    return [
        None if value is None else _number(name, value, completion)
        for value, completion in zip(found, completions, strict=True)
    ]


def _number(name: str, value: Any, completion: Messages) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ScalpelError(
            f"the reward {name} gave {value!r} for the completion "
            f"{completion[0]['content'][:60]!r}, which is not a finite number; return one, or None "
            "where the other rewards alone are to count"
        )
    return number
