"""Recipes of the `sft` and `grpo` stages.

The fields of `train` are in `trainers`, those of `alarms` in `alarms`.
"""

from __future__ import annotations

import math
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from mlflow_scalpel.metrics.registry import GROUPS
from mlflow_scalpel.recipes.alarms import Alarms
from mlflow_scalpel.recipes.fields import (
    TEMPLATE_DATE,
    Data,
    Recipe,
    Strict,
    template_text,
)
from mlflow_scalpel.recipes.trainers import GrpoTrain, SftTrain, Train


class Checkpoints(Strict):
    """Which checkpoints a run saves, and under which name they are registered."""

    count: PositiveInt = 20
    """How many checkpoints, evenly spaced, the last one at the end of the run."""
    registered_model: str = Field(default="{recipe}-{algorithm}", min_length=1)
    """Template of the registered model's name; knows {recipe}, {algorithm} and {base}."""
    keep_local: PositiveInt = 1
    """How many checkpoint directories stay under the output directory once they are logged."""
    link: Literal["reflink", "hard", "copy"] | None = None
    """How files get into a local artifact store; null takes the first of these that works."""
    trainer_state: bool = False
    """Store optimizer, scheduler and RNG state with each checkpoint, twice the weights and more."""
    best: str | None = None
    """A metric that is logged with the checkpoints (reward, loss, kl/all_tokens/...): the alias
    best-<run ID> of the registered model goes to the version with the best value."""
    best_is: Literal["max", "min"] = "max"

    def save_steps(self, total_steps: int) -> int:
        """The interval in steps that gives `count` checkpoints of a run of `total_steps`.

        A trainer saves at every multiple of the interval and at the end, so not every count can be
        had: raises ValueError with the nearest lengths that would do.
        """
        interval = math.ceil(total_steps / self.count)
        saved = math.ceil(total_steps / interval)
        if saved == self.count:
            return interval
        fitting = f"{(total_steps // self.count) * self.count or self.count} or "
        fitting += f"{math.ceil(total_steps / self.count) * self.count}"
        raise ValueError(
            f"{self.count} checkpoints of a run of {total_steps} steps would be saved every "
            f"{interval} steps, which gives {saved}; train for {fitting} steps, "
            f"or set checkpoints.count={saved}"
        )


def _weight_or_arguments(value: Any) -> float | dict[str, Any]:
    """A weight, or a mapping with a weight and the reward's own arguments."""
    if isinstance(value, dict):
        if "weight" not in value:
            raise ValueError("is missing a weight; write {weight: 0.1, ...}")
        return {**value, "weight": _weight_or_arguments(value["weight"])}
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(
            "is not a weight; write a number, or {weight: 0.1, limit: 200} for a reward that takes "
            "a limit"
        )
    if not 0 <= value < math.inf:
        raise ValueError("is not a weight of 0 or more; 0 leaves the reward out")
    return float(value)


class TrainingData(Data):
    """Data that is learned from; what is too long is left out, and how much that was is logged."""

    max_prompt_tokens: PositiveInt | None = None
    """Keep problems whose prompt (chat template and system prompt included) is no longer."""
    max_solution_tokens: PositiveInt | None = None
    """Keep problems whose solution is no longer; for GRPO too, so that both have one pool."""

    @model_validator(mode="after")
    def _solutions_to_count(self) -> TrainingData:
        if self.max_solution_tokens is not None and self.columns.solutions is None:
            raise ValueError(
                f"max_solution_tokens = {self.max_solution_tokens}, but columns.solution is null; "
                "name the column that holds the solutions, or set max_solution_tokens to null"
            )
        return self


class TrainingRecipe(Recipe):
    """What `sft` and `grpo` have in common."""

    model: str = Field(min_length=1)
    """The base: a hub name, a local directory, or a models:/ URI."""
    system_prompt: str | None = None
    """Goes before every problem, in training, probes and evaluation alike; null leaves what the
    chat template says by itself, "" switches that off."""
    chat_template: str | None = None
    """Jinja text, or the path of a .jinja file, in place of the base's chat template: in training,
    probes, evaluation and every checkpoint."""
    eos_token: str | None = Field(default=None, min_length=1)
    """A token of the base that ends a turn, in place of its own end token; where the chat template
    ends turns with another token than that, nothing that is generated would stop."""
    template_date: date = TEMPLATE_DATE
    """What chat templates write that ask for the current date: else texts would differ from day to
    day."""
    data: TrainingData
    probes: dict[str, Data] = {}
    """Texts fixed in advance on which KL(base || checkpoint) is measured at every checkpoint."""
    metrics: list[str] = Field(
        default=["weights", "kl/all_tokens", "kl/answer_tokens"], min_length=1
    )
    """Names of metrics or groups that are measured at every checkpoint, as `mlflow-scalpel metrics`
    lists them; those that need texts are measured on the probes."""
    rare_metrics: list[str] = []
    """More of them, of other groups, that cost too much for every checkpoint."""
    rare_every: PositiveInt = 5
    """The rare ones are measured at every so many checkpoints, and at the last."""
    checkpoints: Checkpoints = Checkpoints()
    processes: PositiveInt = 1
    """Training processes; more than one are started with `accelerate launch`."""
    sharding: Literal["zero2", "zero3", "fsdp"] | None = None
    """How a model is spread over the processes: a file under projects/accelerate/; null keeps a
    full copy in each."""
    heatmap_maximum: PositiveFloat
    """Top of the colour scale of the heat maps logged while training; the same for all runs of an
    algorithm, so that their pictures can be compared."""
    train: Train

    @field_validator("chat_template")
    @classmethod
    def _template_text(cls, value: str | None) -> str | None:
        return None if value is None else template_text(value)

    @field_validator("metrics", "rare_metrics")
    @classmethod
    def _of_one_checkpoint(cls, metrics: list[str]) -> list[str]:
        # Names in full are checked when training begins: listing them takes seconds.
        for name in metrics:
            group = name.partition("/")[0]
            if group not in GROUPS:
                raise ValueError(f"{name} is of no group; write one of {', '.join(GROUPS)}")
            if group in ("pairs", "capabilities"):
                raise ValueError(
                    f"{name} is not of one checkpoint; leave it to `mlflow-scalpel compare` "
                    "or to the stage evaluate"
                )
        return metrics

    @model_validator(mode="after")
    def _rare_groups(self) -> TrainingRecipe:
        often = {name.partition("/")[0] for name in self.metrics}
        for name in self.rare_metrics:
            if name.partition("/")[0] in often:
                raise ValueError(
                    f"rare_metrics = {name}: metrics has some of its group, which is measured at "
                    "every checkpoint as a whole; write it in one of them"
                )
        return self

    @model_validator(mode="after")
    def _evenly_spaced(self) -> TrainingRecipe:
        if self.train.max_steps is not None:
            self.checkpoints.save_steps(self.train.max_steps)
        return self

    @model_validator(mode="after")
    def _spread_over_processes(self) -> TrainingRecipe:
        if self.sharding is not None and self.processes == 1:
            raise ValueError(
                f"sharding = {self.sharding} spreads the model over processes, and processes = 1; "
                "set processes to the number of GPUs, or sharding to null"
            )
        return self

    @model_validator(mode="after")
    def _probes_have_solutions(self) -> TrainingRecipe:
        for name, probe in self.probes.items():
            if probe.columns.solutions is None:
                raise ValueError(
                    f"probes.{name}.columns.solution is null, but KL is measured on solutions; "
                    "name the column that holds them"
                )
        return self


class SftRecipe(TrainingRecipe):
    """A recipe of `mlflow run . -e sft`."""

    stage: Literal["sft"]
    train: SftTrain
    heatmap_maximum: PositiveFloat = 0.2

    @model_validator(mode="after")
    def _data_has_solutions(self) -> SftRecipe:
        if self.data.columns.solutions is None:
            raise ValueError(
                "data.columns.solution is null, but SFT learns from solutions; "
                "name the column that holds them"
            )
        return self


class GrpoRecipe(TrainingRecipe):
    """A recipe of `mlflow run . -e grpo`."""

    stage: Literal["grpo"]
    train: GrpoTrain
    rewards: dict[str, Annotated[Any, AfterValidator(_weight_or_arguments)]] = {
        "accuracy": 1.0,
        "format": 0.2,
    }
    """Weight of each reward in GRPO's sum, by name; 0 leaves one out. `accuracy` is 1 where the
    completion's answer is the gold one: in <answer> tags, boxed, or LaTeX after the word "answer";
    never a number that merely stands somewhere (docs/explanation/grading.md). `format` is 1 for
    <think>...</think> and then <answer>...</answer>, each on lines of its own. Others are functions
    of one's own, as package.module:function, from the recipe's folder or the Python path. What
    takes arguments is given them beside its weight: {weight: 0.1, limit: 200}."""
    alarms: Alarms = Alarms()
    heatmap_maximum: PositiveFloat = 0.05

    @property
    def reward_weights(self) -> dict[str, float]:
        """The weight of each reward, also where it is 0."""
        return {
            name: value["weight"] if isinstance(value, dict) else value
            for name, value in self.rewards.items()
        }

    def reward_arguments(self, name: str) -> dict[str, Any]:
        """What the recipe gives a reward beside its weight."""
        value = self.rewards[name]
        given = value if isinstance(value, dict) else {}
        return {key: one for key, one in given.items() if key != "weight"}

    @field_validator("rewards")
    @classmethod
    def _some_weight(cls, rewards: dict[str, Any]) -> dict[str, Any]:
        weights = [one["weight"] if isinstance(one, dict) else one for one in rewards.values()]
        if not any(weights):
            raise ValueError("all weights are 0, so nothing can be learned; give one a weight")
        return rewards

    @model_validator(mode="after")
    def _groups_fill_the_batch(self) -> GrpoRecipe:
        train = self.train
        batch = train.per_device_train_batch_size * train.gradient_accumulation_steps
        batch *= self.processes
        if batch % train.num_generations:
            fitting = [n for n in range(2, batch + 1) if batch % n == 0]
            near = sorted(fitting, key=lambda n: abs(n - train.num_generations))[:3]
            raise ValueError(
                f"train.num_generations = {train.num_generations} does not divide the batch of "
                f"{batch} completions a step (per_device_train_batch_size "
                f"{train.per_device_train_batch_size} x gradient_accumulation_steps "
                f"{train.gradient_accumulation_steps} x processes {self.processes}); "
                f"use {' or '.join(map(str, sorted(near))) or 'a larger batch'} generations, "
                "or change the batch"
            )
        return self
