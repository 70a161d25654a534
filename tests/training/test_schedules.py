"""Every choice that a recipe may make can be made: optimizers, schedules, losses, dtypes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from trl import GRPOConfig, SFTConfig

from mlflow_scalpel.errors import RecipeError
from mlflow_scalpel.recipes import load_recipe
from mlflow_scalpel.recipes.trainers import GrpoTrain, SftTrain, Train
from mlflow_scalpel.training.arguments import grpo_fields, sft_fields

PROJECTS = Path(__file__).parents[2] / "projects"
RATE, STEPS, WARM_UP = 0.5, 10, 2


def choices(model: type[Train], field: str) -> tuple:
    return get_args(model.model_fields[field].annotation)


def recipe_of(settings: str, stage: str = "sft"):
    return load_recipe("tiny", PROJECTS / stage / "recipes", stage=stage, settings=settings)


def trainer_of(settings: str, folder: Path) -> Trainer:
    """A trainer with the recipe's arguments, optimizer and schedule."""
    recipe = recipe_of(f"train.max_steps={STEPS} checkpoints.count=1 {settings}")
    fields = sft_fields(recipe, folder, rows=1000)
    known = set(TrainingArguments.__dataclass_fields__)
    arguments = TrainingArguments(**{k: v for k, v in fields.items() if k in known})
    trainer = Trainer(model=torch.nn.Linear(2, 1), args=arguments)
    trainer.create_optimizer_and_scheduler(num_training_steps=STEPS)
    return trainer


@pytest.mark.parametrize("optim", choices(Train, "optim"))
def test_every_optimizer_takes_a_step(optim, tmp_path):
    trainer = trainer_of(f"train.optim={optim} train.warmup_steps=0", tmp_path)
    before = trainer.model.weight.clone()
    trainer.model(torch.ones(1, 2, device=before.device)).sum().backward()
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    assert not torch.equal(before, trainer.model.weight)


def cosine(step: int, end: float) -> float:
    """From 1 to `end` by half a cosine, as SGDR has it (arXiv 1608.03983, eq. 5)."""
    share = (step - WARM_UP) / (STEPS - WARM_UP)
    return end + (1 - end) * (1 + math.cos(math.pi * share)) / 2


EXPECTED = {
    "constant": lambda step: 1.0,
    "constant_with_warmup": lambda step: 1.0,
    "linear": lambda step: 1 - (step - WARM_UP) / (STEPS - WARM_UP),
    "cosine": lambda step: cosine(step, 0.0),
    "cosine_with_min_lr": lambda step: cosine(step, 0.1),
}


@pytest.mark.parametrize("kind", choices(Train, "lr_scheduler_type"))
def test_every_schedule_is_the_one_of_its_name(kind, tmp_path):
    """open-r1's recipe is `cosine_with_min_lr` with `min_lr_rate: 0.1`."""
    kwargs = "'train.lr_scheduler_kwargs={min_lr_rate: 0.1}'" if "min_lr" in kind else ""
    trainer = trainer_of(
        f"train.learning_rate={RATE} train.lr_scheduler_type={kind} "
        f"train.warmup_steps={WARM_UP} {kwargs}",
        tmp_path,
    )
    rates = []
    for _ in range(STEPS):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    warm = [1.0, 1.0] if kind == "constant" else [0.0, 0.5]
    expected = warm + [EXPECTED[kind](step) for step in range(WARM_UP, STEPS)]
    assert rates == pytest.approx([RATE * share for share in expected])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("train.lr_scheduler_type=cosine_with_min_lr", r"min_lr_rate: 0\.1"),
        (
            "train.lr_scheduler_type=cosine_with_min_lr "
            "'train.lr_scheduler_kwargs={min_lr: 0.1, min_lr_rate: 0.1}'",
            "exactly one of min_lr and min_lr_rate",
        ),
        (
            "'train.lr_scheduler_kwargs={min_lr_rate: 0.1}'",
            "constant_with_warmup takes no min_lr_rate",
        ),
        (
            "train.lr_scheduler_type=cosine 'train.lr_scheduler_kwargs={cycles: 2}'",
            "cosine takes no cycles, but num_cycles",
        ),
        (
            "train.lr_scheduler_type=cosine_with_min_lr 'train.lr_scheduler_kwargs={min_lr: 2}'",
            "would end above learning_rate",
        ),
        (
            "train.lr_scheduler_type=cosine 'train.lr_scheduler_kwargs={num_cycles: -1}'",
            "num_cycles is below 0",
        ),
    ],
)
def test_a_schedule_that_cannot_be_made_is_refused(settings, said):
    with pytest.raises(RecipeError, match=said):
        recipe_of(settings)


@pytest.mark.parametrize("dtype", choices(Train, "dtype"))
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_opens_in_every_dtype(first_model, dtype, attention):
    model = AutoModelForCausalLM.from_pretrained(
        first_model, dtype=dtype, attn_implementation=attention
    )
    assert model.dtype == getattr(torch, dtype)


def test_every_attention_is_one_of_transformers():
    known = {"sdpa", "eager", *transformers.AttentionInterface().valid_keys()}
    assert set(choices(Train, "attn_implementation")) <= known


@pytest.mark.parametrize("field", ["loss_type", "scale_rewards", "vllm_mode"])
def test_every_choice_of_grpo_is_taken(field, tmp_path):
    for choice in choices(GrpoTrain, field):
        recipe = recipe_of(f"train.{field}={choice}", stage="grpo")
        assert getattr(GRPOConfig(**grpo_fields(recipe, tmp_path, 1000)), field) == choice


def test_every_choice_of_sft_is_taken(tmp_path):
    for choice in choices(SftTrain, "loss_on"):
        config = SFTConfig(**sft_fields(recipe_of(f"train.loss_on={choice}"), tmp_path, 1000))
        assert config.completion_only_loss == (choice == "completion")
