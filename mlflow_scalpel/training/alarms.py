"""GRPO's failures, named while they happen: pure rules on what the trainer logs.

Each rule has a level, the quantity that it watches divided by its threshold: 1 and above raises the
alarm. Levels go to the charts as `alarms/<name>`; the first step of each alarm is a tag of the run.

==================== ============================================================================
no_reward_variance   mean of `frac_reward_zero_std` / threshold
reward_collapse      threshold x best windowed mean of `reward` so far / windowed mean now
entropy_collapse     threshold x mean of `entropy` over the first window / windowed mean now
length_explosion     windowed mean of `completions/mean_length` / first window's / threshold
truncation           mean of `completions/clipped_ratio` / threshold
not_finite           1 where `loss`, `grad_norm` or `reward` is NaN or infinite, else 0
exploding_gradient   `grad_norm` / median of those above 0 in the window before / threshold
kl_runaway           `kl`, or the largest `kl/all_tokens/...`, / threshold
generator_mismatch   `sampling/sampling_logp_difference/mean` / threshold
==================== ============================================================================

Rules pass over a step without the key that they read. A rule that compares has no level
until there is something to compare with: twice the window, for those with the first window.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mlflow_scalpel.recipes.alarms import AlarmName, Alarms
from mlflow_scalpel.run_warnings import ALARM_PREFIX

PREFIX = "alarms/"
ENDLESS = (
    "either max_completion_length is too short, or the model does not stop, because it never "
    "learned to or because the token that it ends with is not an end token (eos_token of the "
    "recipe)"
)
_HIGHEST_LEVEL = 1000.0  # shown for any above it (a division by 0)
_FINITE = ("loss", "grad_norm", "reward")
_MEANS = (
    "frac_reward_zero_std",
    "reward",
    "entropy",
    "completions/mean_length",
    "completions/clipped_ratio",
)


@dataclass(frozen=True)
class Alarm:
    """A rule whose level has reached 1 for the first time."""

    name: AlarmName
    step: int
    message: str

    @property
    def tag(self) -> dict[str, str]:
        """The tag of the run that names it."""
        return {f"{ALARM_PREFIX}{self.name}": f"step {self.step}: {self.message}"}


class AlarmMonitor:
    """Sees the logs of a run step by step, and says which alarms they raise.

    The same logs in the same order always give the same levels: a run that is resumed is shown
    its history again.
    """

    def __init__(self, settings: Alarms) -> None:
        self.settings = settings
        self.levels: dict[str, float] = {}
        """Level of each rule at the step that was seen last, as metrics."""
        self._recent = {key: deque[float](maxlen=settings.window) for key in _MEANS}
        self._first: dict[str, float] = {}  # mean over the first window
        self._seen: dict[str, int] = {}
        self._best_reward = -math.inf
        self._gradients = deque[float](maxlen=settings.window)
        self._raised: set[str] = set()
        self._with_completions = self._with_finished = 0  # logged steps

    def see(self, step: int, logs: Mapping[str, float]) -> list[Alarm]:
        """Take in what was logged at a step; the alarms that it raises for the first time."""
        for key in _MEANS:
            value = logs.get(key)
            if value is not None and math.isfinite(value):
                self._recent[key].append(value)
                self._seen[key] = self._seen.get(key, 0) + 1
                if self._seen[key] == self.settings.window:
                    self._first[key] = statistics.fmean(self._recent[key])
        cut = logs.get("completions/clipped_ratio")
        if cut is not None:
            self._with_completions += 1
            self._with_finished += cut < 1.0
        self.levels, raised = {}, []
        for name, level, message in self._rules(logs):
            self.levels[f"{PREFIX}{name}"] = min(level, _HIGHEST_LEVEL)
            if level >= 1.0 and name not in self._raised:
                self._raised.add(name)
                raised.append(Alarm(name, step, message))
        return raised

    def unfinished(self) -> str | None:
        """A warning where no completion has ended so far and no alarm covers it."""
        if not self._with_completions or self._with_finished or "truncation" in self._raised:
            return None
        return f"no completion of {self._with_completions} logged steps ended: {ENDLESS}"

    def _rules(self, logs: Mapping[str, float]) -> Iterator[tuple[AlarmName, float, str]]:
        """Name, level and message of each rule that has a level now."""
        limits = self.settings
        yield from self._not_finite(logs)
        same = self._mean("frac_reward_zero_std", logs)
        if same is not None and limits.no_reward_variance is not None:
            yield (
                "no_reward_variance",
                same / limits.no_reward_variance,
                f"in {same:.0%} of the groups all completions have the same reward, so that they "
                "teach nothing; take problems that are solved sometimes, or more generations",
            )
        reward = self._mean("reward", logs)
        if reward is not None:
            if limits.reward_collapse is not None and self._best_reward > 0:
                yield (
                    "reward_collapse",
                    _ratio(limits.reward_collapse * self._best_reward, reward),
                    f"the mean reward is {reward:.3g}, after {self._best_reward:.3g}; "
                    "take a smaller learning rate, or the checkpoint before",
                )
            self._best_reward = max(self._best_reward, reward)
        now, first = self._compared("entropy", logs)
        if now is not None and first is not None and limits.entropy_collapse is not None:
            yield (
                "entropy_collapse",
                _ratio(limits.entropy_collapse * first, now),
                f"the mean entropy is {now:.3g} nats, after {first:.3g}: sampling gives the same "
                "completion again and again; take a higher temperature or a smaller learning rate",
            )
        now, first = self._compared("completions/mean_length", logs)
        if now is not None and first is not None and limits.length_explosion is not None:
            yield (
                "length_explosion",
                _ratio(now, first) / limits.length_explosion,
                f"completions have {now:.0f} tokens, after {first:.0f}; look at them for "
                "repetitions",
            )
        cut = self._mean("completions/clipped_ratio", logs)
        if cut is not None and limits.truncation is not None:
            message = (
                f"{cut:.0%} of the completions are cut off; raise max_completion_length "
                "(masked ones teach nothing)"
            )
            if cut >= 1.0:
                message = f"no completion of the last {limits.window} logged steps ended: {ENDLESS}"
            yield "truncation", cut / limits.truncation, message
        yield from self._gradient(logs)
        yield from self._kl(logs)
        apart = logs.get("sampling/sampling_logp_difference/mean")
        if apart is not None and limits.generator_mismatch is not None:
            yield (
                "generator_mismatch",
                apart / limits.generator_mismatch,
                f"log-probabilities of the samples differ by {apart:.3g} nats a token between "
                "vLLM and the trainer, so that it learns from another model's samples; look "
                "whether vLLM has loaded this model, and takes each update",
            )

    def _not_finite(self, logs: Mapping[str, float]) -> Iterator[tuple[AlarmName, float, str]]:
        given = {key: logs[key] for key in _FINITE if key in logs}
        bad = [key for key, value in given.items() if not math.isfinite(value)]
        if given:
            what = f"{bad[0]} is {given[bad[0]]}" if bad else ""
            message = f"{what}: the weights are lost from here on; take a smaller learning rate"
            yield "not_finite", float(bool(bad)), message

    def _gradient(self, logs: Mapping[str, float]) -> Iterator[tuple[AlarmName, float, str]]:
        norm = logs.get("grad_norm")
        if norm is None or not math.isfinite(norm):
            return
        limit = self.settings.exploding_gradient
        if limit is not None and len(self._gradients) == self.settings.window:
            usual = statistics.median(self._gradients)
            yield (
                "exploding_gradient",
                norm / usual / limit,
                f"the norm of the gradient is {norm:.3g}, after {usual:.3g}; it is clipped at "
                "max_grad_norm, but its direction is what one batch says",
            )
        if norm > 0:  # a batch without reward variance has none
            self._gradients.append(norm)

    def _kl(self, logs: Mapping[str, float]) -> Iterator[tuple[AlarmName, float, str]]:
        limit = self.settings.kl_runaway
        found = [v for key, v in logs.items() if key == "kl" or key.startswith("kl/all_tokens/")]
        if limit is not None and found:
            yield (
                "kl_runaway",
                max(found) / limit,
                f"KL from the base is {max(found):.3g} nats per token; take a smaller learning "
                "rate, or a beta above 0",
            )

    def _mean(self, key: str, logs: Mapping[str, float]) -> float | None:
        """Mean over a full window that ends at this step; None before there is one."""
        recent = self._recent[key]
        if key not in logs or len(recent) < self.settings.window:
            return None
        return statistics.fmean(recent)

    def _compared(self, key: str, logs: Mapping[str, float]) -> tuple[float | None, float | None]:
        """Means over the last and the first window, once these share no step."""
        if self._seen.get(key, 0) < 2 * self.settings.window:
            return None, None
        return self._mean(key, logs), self._first[key]


def _ratio(above: float, below: float) -> float:
    """above / below; infinite where below is 0 or less and above is not."""
    if below > 0:
        return above / below
    return math.inf if above > 0 else 0.0
