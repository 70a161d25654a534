"""The part of a GRPO recipe that says when something goes wrong, and what then."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from mlflow_scalpel.recipes.fields import Strict

AlarmName = Literal[
    "no_reward_variance",
    "reward_collapse",
    "entropy_collapse",
    "length_explosion",
    "truncation",
    "not_finite",
    "exploding_gradient",
    "kl_runaway",
    "generator_mismatch",
]
_Share = Annotated[float, Field(gt=0.0, le=1.0)]
_Factor = Annotated[float, Field(gt=1.0)]


class Alarms(Strict):
    """Thresholds of the failures that are named while they happen; null switches one off.

    Means are over the last `window` logged steps, since single steps are noisy.
    """

    window: PositiveInt = 10
    """Logged steps that a mean is over; the first so many are what later ones are compared with."""
    no_reward_variance: _Share | None = 0.9
    """Share of groups whose completions all have the same reward, from which nothing is learned."""
    reward_collapse: _Share | None = 0.5
    """The mean reward falls to this share of the best that a window had."""
    entropy_collapse: _Share | None = 0.05
    """The mean entropy falls to this share of that of the first window."""
    length_explosion: _Factor | None = 3.0
    """Completions become so many times as long as in the first window."""
    truncation: _Share | None = 0.5
    """Share of completions that are cut off at max_completion_length."""
    exploding_gradient: _Factor | None = 50.0
    """The norm of a gradient is so many times the median of the window before it."""
    kl_runaway: PositiveFloat | None = 1.0
    """KL from the base in nats per token: the trainer's own where train.beta is above 0, and the
    largest of the probes (all tokens) at each checkpoint."""
    generator_mismatch: PositiveFloat | None = 0.5
    """Mean difference of a token's log-probability under vLLM and under the trainer, in nats: vLLM
    has other weights than the trainer. TRL logs it with train.vllm_importance_sampling_correction
    only."""
    stop: list[AlarmName] = ["generator_mismatch"]
    """Alarms that fail the run at once, before the next checkpoint is saved. A loss or gradient
    that is not a finite number always raises `not_finite`."""
