"""Recipes of the `sft` and `grpo` stages.

The fields of `train` carry the names of TRL's `SFTConfig` and `GRPOConfig`, so that what a paper or
a TRL example states can be written down as it stands. Defaults are stated here, not inherited:
TRL's change between versions.
"""

from __future__ import annotations

import math
from datetime import date
from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
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
    Dtype,
    Fraction,
    Recipe,
    Strict,
    template_text,
)
from mlflow_scalpel.recipes.freezing import Freeze
from mlflow_scalpel.recipes.schedules import check_schedule


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


class Train(Strict):
    """Training fields that SFT and GRPO share; names and meanings are TRL's."""

    learning_rate: PositiveFloat
    lr_scheduler_type: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_min_lr"
    ] = "constant_with_warmup"
    lr_scheduler_kwargs: dict[str, float] = {}
    """What the schedule takes besides: `num_cycles` of the cosines; of cosine_with_min_lr the rate
    that it ends with, as `min_lr` or as `min_lr_rate`, a share of learning_rate."""
    warmup_steps: NonNegativeFloat = 0.1
    """A number of steps, or a fraction of the run where it is below 1."""
    max_steps: PositiveInt | None = None
    num_train_epochs: PositiveFloat | None = None
    """Length of the run in epochs; give either this or max_steps."""
    per_device_train_batch_size: PositiveInt = 8
    """Sequences a process and micro-step: completions for GRPO, worked solutions for SFT."""
    gradient_accumulation_steps: PositiveInt = 1
    max_grad_norm: PositiveFloat = 1.0
    weight_decay: NonNegativeFloat = 0.0
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.999
    optim: Literal["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"] = "adamw_torch_fused"
    seed: NonNegativeInt = 42
    dtype: Dtype = "float32"
    """The dtype in which the weights are held, updated and saved: it decides how much a small
    learning rate can change (an update below half a unit in the last place is lost)."""
    bf16: bool = False
    """bfloat16 autocast of the forward pass, on top of `dtype`."""
    gradient_checkpointing: bool = False
    """Compute activations a second time in place of keeping them."""
    use_liger_kernel: bool = False
    """Fused kernels of the package liger-kernel in the layers; needs a GPU."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    logging_steps: PositiveInt = 1
    freeze: Freeze | None = None
    """Which weights stay as they are in the base; null trains all."""

    @model_validator(mode="after")
    def _schedule_has_what_it_takes(self) -> Train:
        check_schedule(self.lr_scheduler_type, self.lr_scheduler_kwargs, self.learning_rate)
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if (self.max_steps is None) == (self.num_train_epochs is None):
            raise ValueError(
                "exactly one of max_steps and num_train_epochs must be given; "
                "set the other one to null"
            )
        return self


class SftTrain(Train):
    """Fields of supervised fine-tuning."""

    max_length: PositiveInt | None = None
    """Longest sequence in tokens: longer ones are cut there, counted and warned of, and what has a
    prompt that fills it is left out; null cuts nothing."""
    padding_free: bool = False
    """One long row a batch, without padding; needs flash_attention_2 and no max_length."""
    loss_on: Literal["completion", "all"] = "completion"
    """Whether the prompt's tokens are learned too."""

    @model_validator(mode="after")
    def _padding_free_as_trl_takes_it(self) -> SftTrain:
        if self.padding_free and self.attn_implementation != "flash_attention_2":
            raise ValueError(
                f"padding_free = true with attn_implementation = {self.attn_implementation} would "
                "let sequences see one another; set attn_implementation=flash_attention_2"
            )
        if self.padding_free and self.max_length is not None:
            raise ValueError(
                f"padding_free = true does not cut at max_length = {self.max_length}; set "
                "max_length=null, and filter the data with data.max_solution_tokens"
            )
        return self


class GrpoTrain(Train):
    """Fields of group relative policy optimisation."""

    num_generations: PositiveInt = Field(default=8, ge=2)
    """Completions a problem, compared with one another."""
    max_completion_length: PositiveInt = 256
    temperature: PositiveFloat = 1.0
    top_p: Fraction = 1.0
    top_k: NonNegativeInt = 0
    """0 samples from the whole vocabulary."""
    beta: NonNegativeFloat = 0.0
    """Weight of the KL term towards the base; 0 needs no reference model."""
    epsilon: PositiveFloat = 0.2
    num_iterations: PositiveInt = 1
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo"] = "dr_grpo"
    scale_rewards: Literal["group", "batch", "none"] = "none"
    mask_truncated_completions: bool = True
    disable_dropout: bool = False
    use_vllm: bool = False
    """Generate with vLLM, the extra `mlflow-scalpel[vllm]`, in place of Transformers."""
    vllm_mode: Literal["server", "colocate"] = "colocate"
    """`server`: on GPUs of its own; `colocate`: within the training processes, and then in bfloat16
    where the base is float32 (TRL gives vLLM no dtype)."""
    vllm_importance_sampling_correction: bool = False
    """Weigh each sequence by how its probability under the trainer and under vLLM differ."""
    vllm_gpu_memory_utilization: Fraction = 0.3
    """Share of a GPU's memory that vLLM takes."""
    vllm_tensor_parallel_size: PositiveInt = 1
    """GPUs that one copy of the model is split over."""
    vllm_max_model_length: PositiveInt | None = None
    """Longest prompt and completion together, in tokens; null takes the model's context."""
    vllm_server_port: PositiveInt = 8000
    vllm_server_timeout: PositiveFloat = 600.0
    """Seconds that the server may take until it answers."""


class Rewards(Strict):
    """Weight of each reward in GRPO's sum; 0 leaves one out."""

    accuracy: NonNegativeFloat = 1.0
    """1 where the completion's answer is the gold one: in <answer> tags, boxed, or LaTeX after
    the word "answer"; never a number that merely stands somewhere (docs/explanation/grading.md)."""
    format: NonNegativeFloat = 0.2
    """1 for <think>...</think> and then <answer>...</answer>, each on lines of its own."""

    @model_validator(mode="after")
    def _some(self) -> Rewards:
        if self.accuracy == 0 and self.format == 0:
            raise ValueError("all weights are 0, so nothing can be learned; give one a weight")
        return self


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
    whole copy in each."""
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
    rewards: Rewards = Rewards()
    alarms: Alarms = Alarms()
    heatmap_maximum: PositiveFloat = 0.05

    @model_validator(mode="after")
    def _data_has_answers(self) -> GrpoRecipe:
        if self.data.columns.answer is None and self.rewards.accuracy > 0:
            raise ValueError(
                "data.columns.answer is null, but the accuracy reward compares with it; "
                "name the column, or set rewards.accuracy=0"
            )
        return self

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
