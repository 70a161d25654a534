"""From a recipe to the fields of TRL's configuration classes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mlflow_scalpel.errors import RecipeError
from mlflow_scalpel.recipes.training import GrpoRecipe, SftRecipe, TrainingRecipe
from mlflow_scalpel.training.vllm_server import HOST

# Fields of `train` that are not a trainer's but say how the model is loaded or data is prepared.
NOT_TRL = {
    "dtype",
    "attn_implementation",
    "loss_on",
    "num_train_epochs",
    "max_steps",
    "freeze",
}

_TIMEOUT = 7200  # seconds that the other processes wait while the main one measures


def sft_fields(recipe: SftRecipe, output: Path, rows: int) -> dict[str, Any]:
    """Keyword arguments of `trl.SFTConfig` for a recipe and a data set of `rows` rows."""
    return {
        **_shared_fields(recipe, output, total_steps(recipe, rows)),
        "completion_only_loss": recipe.train.loss_on == "completion",
        "include_num_input_tokens_seen": "non_padding",  # GRPO's trainer counts them by itself
        # TRL's defaults, stated because they have changed between versions.
        "assistant_only_loss": False,
        "loss_type": "nll",
        "packing": False,
        "shuffle_dataset": False,  # the sampler shuffles, with the seed
    }


def grpo_fields(recipe: GrpoRecipe, output: Path, rows: int) -> dict[str, Any]:
    """Keyword arguments of `trl.GRPOConfig` for a recipe and a data set of `rows` rows."""
    return {
        **_shared_fields(recipe, output, total_steps(recipe, rows)),
        "reward_weights": [one for one in recipe.reward_weights.values() if one > 0],
        # TRL's defaults, stated because they have changed between versions: without them GRPO is
        # another algorithm.
        "cast_lm_head_to_fp32": False,
        "delta": None,
        "entropy_coef": 0.0,
        "epsilon_high": None,
        "importance_sampling_level": "token",
        "min_p": None,
        "multi_objective_aggregation": "sum_then_normalize",
        "repetition_penalty": 1.0,
        "shuffle_dataset": True,
        "steps_per_generation": recipe.train.gradient_accumulation_steps,
        "sync_ref_model": False,
        "top_entropy_quantile": 1.0,
        "vllm_model_impl": "vllm",
        "vllm_server_host": HOST,
    }


def sequences_a_step(recipe: TrainingRecipe) -> int:
    """Sequences of one optimizer step over all processes: completions in GRPO."""
    train = recipe.train
    return train.per_device_train_batch_size * train.gradient_accumulation_steps * recipe.processes


def problems_a_step(recipe: TrainingRecipe) -> int:
    """Problems of one optimizer step over all processes."""
    generations = recipe.train.num_generations if isinstance(recipe, GrpoRecipe) else 1
    return sequences_a_step(recipe) // generations


def total_steps(recipe: TrainingRecipe, rows: int) -> int:
    """Optimizer steps of the run; incomplete batches are dropped.

    Raises RecipeError where the data does not fill one step, or where the steps do not give the
    asked number of checkpoints (which, for a length in epochs, only the data can tell).
    """
    train = recipe.train
    steps_an_epoch = rows // problems_a_step(recipe)
    if steps_an_epoch == 0:
        raise RecipeError(
            f"data {recipe.data.describe()} has {rows} rows, and one step takes "
            f"{problems_a_step(recipe)}; make train.per_device_train_batch_size smaller, "
            "or give more data"
        )
    if train.max_steps is not None:
        return train.max_steps
    assert train.num_train_epochs is not None  # the recipe has one or the other
    steps = math.ceil(train.num_train_epochs * steps_an_epoch)
    try:
        recipe.checkpoints.save_steps(steps)
    except ValueError as error:
        raise RecipeError(f"checkpoints.count = {recipe.checkpoints.count}: {error}") from error
    return steps


def _shared_fields(recipe: TrainingRecipe, output: Path, steps: int) -> dict[str, Any]:
    import torch

    fields = recipe.train.model_dump(exclude=NOT_TRL)
    on_cpu = not torch.cuda.is_available()
    return {
        **fields,
        "max_steps": steps,
        "output_dir": str(output),
        "run_name": recipe.name,
        "save_strategy": "steps",
        "save_steps": recipe.checkpoints.save_steps(steps),
        "save_total_limit": None,  # the trainer would drop one before the next is complete
        "dataloader_drop_last": True,  # every step has the same number of sequences
        "dataloader_pin_memory": not on_cpu,
        "use_cpu": on_cpu,
        "gradient_checkpointing_kwargs": (
            {"use_reentrant": False} if recipe.train.gradient_checkpointing else None
        ),
        "ddp_timeout": _TIMEOUT,
        "logging_nan_inf_filter": False,  # else a loss of NaN is logged as if it were not
        "report_to": "none",  # the callback tells MLflow, without waiting for it
        "disable_tqdm": True,
        "model_init_kwargs": {
            "dtype": recipe.train.dtype,
            "attn_implementation": recipe.train.attn_implementation,
        },
    }
