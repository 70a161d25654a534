"""The recipes of arXiv 2507.10616: each published field, and what differs between them."""

from __future__ import annotations

from pathlib import Path

import pytest
from trl import GRPOConfig, SFTConfig

from mlflow_scalpel.recipes import read_recipe
from mlflow_scalpel.recipes.fields import flatten
from mlflow_scalpel.recipes.load import read_yaml
from mlflow_scalpel.training.arguments import (
    grpo_fields,
    problems_a_step,
    sequences_a_step,
    sft_fields,
)

PROJECTS = Path(__file__).parents[2] / "projects"
POOL = 79_000  # problems, about

SHARED = {
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 0.1,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 4,
    "max_grad_norm": 0.2,
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "seed": 42,
    "gradient_checkpointing": True,
    "use_liger_kernel": True,
    "bf16": True,
}


def recipe_of(stage: str, name: str = "olmo2-7b"):
    return read_recipe(PROJECTS / stage / "recipes" / f"{name}.yaml")


@pytest.fixture
def sft(tmp_path) -> SFTConfig:
    return SFTConfig(**sft_fields(recipe_of("sft"), tmp_path, POOL))


@pytest.fixture
def grpo(tmp_path, monkeypatch) -> GRPOConfig:
    monkeypatch.setattr(GRPOConfig, "world_size", 7)
    return GRPOConfig(**grpo_fields(recipe_of("grpo"), tmp_path, POOL))


def assert_fields(config, fields):
    for name, value in fields.items():
        assert getattr(config, name) == value, name


def saves(config) -> int:
    steps = {s for s in range(1, config.max_steps + 1) if s % config.save_steps == 0}
    return len(steps | {config.max_steps})


def test_sft_is_the_papers(sft):
    model = {"dtype": "bfloat16", "attn_implementation": "flash_attention_2"}
    assert_fields(
        sft,
        SHARED
        | {
            "learning_rate": 5e-5,
            "max_steps": 462,
            "padding_free": True,
            "packing": False,
            "max_length": None,
            "completion_only_loss": False,
            "assistant_only_loss": False,
            "model_init_kwargs": model,
        },
    )
    recipe = recipe_of("sft")
    assert sequences_a_step(recipe) == 512
    assert round(462 * 512 / POOL) == 3  # epochs
    assert saves(sft) == 20


def test_grpo_is_the_papers(grpo):
    model = {"dtype": "bfloat16", "attn_implementation": "flash_attention_2"}
    assert_fields(
        grpo,
        SHARED
        | {
            "learning_rate": 1e-6,
            "max_steps": 571,
            "loss_type": "dr_grpo",
            "beta": 0.0,
            "epsilon": 0.2,
            "epsilon_high": None,
            "num_generations": 28,
            "num_iterations": 1,
            "generation_batch_size": 448,
            "max_completion_length": 1500,
            "reward_weights": [1.0, 0.2],
            "scale_rewards": "none",
            "mask_truncated_completions": True,
            "temperature": 0.6,
            "top_p": 1.0,
            "top_k": 0,
            "disable_dropout": True,
            "use_vllm": True,
            "vllm_mode": "server",
            "vllm_importance_sampling_correction": False,
            "importance_sampling_level": "token",
            "entropy_coef": 0.0,
            "model_init_kwargs": model,
        },
    )
    recipe = recipe_of("grpo")
    assert (problems_a_step(recipe), 571 * problems_a_step(recipe)) == (16, 9136)
    assert saves(grpo) == 20


def test_sft_and_grpo_differ_only_in_what_the_paper_says(sft, grpo):
    """In every field that both of TRL's configurations have."""
    one, other = sft.to_dict(), grpo.to_dict()
    differing = {name for name in one.keys() & other.keys() if one[name] != other[name]}
    of_the_paper = {"learning_rate", "max_steps", "save_steps"}
    # The trainers' own words for one thing: each counts tokens, shuffles and drops its columns.
    of_trl = {
        "include_num_input_tokens_seen",
        "loss_type",
        "remove_unused_columns",
        "shuffle_dataset",
        "steps_per_generation",
    }
    assert of_the_paper <= differing <= of_the_paper | of_trl


def test_the_recipes_of_both_share_all_but_their_own_lines():
    one, other = (
        flatten(read_yaml(PROJECTS / stage / "recipes" / "olmo2-7b.yaml"))
        for stage in ("sft", "grpo")
    )
    assert {name for name in one.keys() & other.keys() if one[name] != other[name]} == {
        "stage",
        "description",
        "processes",
        "train.learning_rate",
        "train.max_steps",
        "heatmap_maximum",
    }
    assert set(one.keys() - other.keys()) == {
        "train.padding_free",
        "train.max_length",
        "train.loss_on",
    }
    assert one["data.hub"] == other["data.hub"] == "open-r1/OpenR1-Math-220k"
    assert (one["data.max_prompt_tokens"], one["data.max_solution_tokens"]) == (512, 4096)


@pytest.mark.parametrize(
    ("variant", "lines"),
    [
        ("olmo2-7b-1-epoch", {"train.max_steps": 154}),
        ("olmo2-7b-matched", {"train.learning_rate": 1e-6, "heatmap_maximum": 0.002}),
        (
            "olmo2-7b-frozen-mlps",
            {
                "train.freeze.mode": "freeze",
                "train.freeze.layers": "19-25",
                "train.freeze.modules": ["gate_proj", "up_proj", "down_proj"],
                "train.freeze.embeddings": "trained",
                "train.freeze.lm_head": "trained",
            },
        ),
        (
            "olmo2-7b-only-qk",
            {
                "train.freeze.mode": "only",
                "train.freeze.modules": ["q_proj", "k_proj"],
                "train.freeze.embeddings": "frozen",
                "train.freeze.lm_head": "trained",
            },
        ),
    ],
)
def test_a_variant_is_the_lines_that_differ(variant, lines):
    plain, varied = (
        flatten(read_yaml(PROJECTS / "sft" / "recipes" / f"{name}.yaml"))
        for name in ("olmo2-7b", variant)
    )
    differing = {name: varied[name] for name in varied if varied[name] != plain.get(name)}
    assert differing.pop("description")
    assert differing == lines
    assert recipe_of("sft", variant).checkpoints.save_steps(varied["train.max_steps"])


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_the_recipe_for_one_gpu_has_the_batch_of_the_large_one(stage):
    large, small = recipe_of(stage), recipe_of(stage, "olmo2-1b")
    assert small.model == "allenai/OLMo-2-0425-1B-Instruct"
    assert small.processes == 1
    assert sequences_a_step(small) == sequences_a_step(large)
    assert small.train.dtype == "float32"  # nothing else keeps updates of 1e-6
    same = {"learning_rate", "max_steps", "lr_scheduler_type", "max_grad_norm", "seed"}
    assert all(getattr(small.train, name) == getattr(large.train, name) for name in same)


# What TRL has come to do by default since the paper, or has another default for than the paper.
SAID = {
    "sft": {
        "assistant_only_loss",
        "completion_only_loss",
        "loss_type",
        "max_length",
        "packing",
        "padding_free",
        "shuffle_dataset",
    },
    "grpo": {
        "beta",
        "cast_lm_head_to_fp32",
        "delta",
        "disable_dropout",
        "entropy_coef",
        "epsilon",
        "epsilon_high",
        "importance_sampling_level",
        "loss_type",
        "mask_truncated_completions",
        "multi_objective_aggregation",
        "num_iterations",
        "reward_weights",
        "scale_rewards",
        "temperature",
        "top_entropy_quantile",
        "top_k",
        "top_p",
        "use_vllm",
        "vllm_importance_sampling_correction",
        "vllm_mode",
    },
}


@pytest.mark.parametrize(
    "path",
    sorted([*PROJECTS.glob("sft/recipes/*.yaml"), *PROJECTS.glob("grpo/recipes/*.yaml")]),
    ids=lambda p: f"{p.parts[-3]}/{p.stem}",
)
def test_nothing_that_matters_is_left_to_trls_defaults(path, tmp_path):
    recipe = read_recipe(path)
    fields = (sft_fields if recipe.stage == "sft" else grpo_fields)(recipe, tmp_path, POOL)
    both = {"bf16", "gradient_checkpointing", "optim", "save_strategy", "seed", "warmup_steps"}
    assert both | SAID[recipe.stage] <= fields.keys()
    assert {"dtype", "attn_implementation"} == fields["model_init_kwargs"].keys()
