"""The part `train` of a recipe: fields of TRL's trainers, and which weights are trained.

Fields carry the names of TRL's `SFTConfig` and `GRPOConfig`, so that what a paper or a TRL example
states can be written down as it stands. Defaults are stated here, not inherited: TRL's change
between versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from mlflow_scalpel.recipes.fields import Dtype, Fraction, Strict
from mlflow_scalpel.tensors.names import parse_layers

_SCHEDULE_ARGUMENTS = {
    "cosine": ("num_cycles",),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate", "num_cycles"),
}


class Freeze(Strict):
    """Which weights stay as they are in the base, bit for bit.

    `layers` and `modules` choose weights of the decoder layers. Those that are outside of the
    layers have a field of their own, which must be given; the norm after the last layer
    goes with what was not chosen.
    """

    mode: Literal["freeze", "only"]
    """`freeze`: the chosen weights are frozen, all others of the layers are trained. `only`: the
    chosen weights are trained, all others of the layers are frozen."""
    layers: str | None = None
    """Numbers of layers, both ends included, such as "19-25" or "0-3,7"; null takes all."""
    modules: list[str] | None = Field(default=None, min_length=1)
    """Names of modules within a layer, such as q_proj or mlp; null takes all."""
    embeddings: Literal["frozen", "trained"]
    """The input embeddings."""
    lm_head: Literal["frozen", "trained"]
    """The output embeddings, which are the input embeddings where the model ties them."""

    @field_validator("layers", mode="before")
    @classmethod
    def _one_layer(cls, value: Any) -> Any:
        return str(value) if type(value) is int else value

    @field_validator("layers")
    @classmethod
    def _numbers(cls, value: str | None) -> str | None:
        if value is not None:
            parse_layers(value)
        return value


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


def check_schedule(kind: str, given: Mapping[str, float], learning_rate: float) -> None:
    """Raise ValueError where Transformers could not make the schedule, or it would end higher."""
    taken = _SCHEDULE_ARGUMENTS.get(kind, ())
    for name, value in given.items():
        if name not in taken:
            raise ValueError(
                f"lr_scheduler_kwargs = {given}: {kind} takes no {name}"
                f"{', but ' + ', '.join(taken) if taken else ''}; remove it"
            )
        if value < 0:
            raise ValueError(f"lr_scheduler_kwargs = {given}: {name} is below 0; raise it")
    if kind != "cosine_with_min_lr":
        return
    if ("min_lr" in given) == ("min_lr_rate" in given):
        raise ValueError(
            f"lr_scheduler_type = {kind} needs exactly one of min_lr and min_lr_rate; set for "
            "example lr_scheduler_kwargs: {min_lr_rate: 0.1}, a tenth of learning_rate"
        )
    if given.get("min_lr", 0.0) > learning_rate or given.get("min_lr_rate", 0.0) > 1:
        raise ValueError(
            f"lr_scheduler_kwargs = {given}: the schedule would end above learning_rate = "
            f"{learning_rate}; lower it (min_lr_rate is a share of learning_rate)"
        )
