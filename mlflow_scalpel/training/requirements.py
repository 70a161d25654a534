"""What a training recipe needs before a run of it begins: packages, and rewards."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from mlflow_scalpel.errors import MissingPackage
from mlflow_scalpel.extras import require
from mlflow_scalpel.recipes.experiment import MainRecipe
from mlflow_scalpel.recipes.load import check_parts
from mlflow_scalpel.recipes.training import GrpoRecipe, TrainingRecipe
from mlflow_scalpel.training.rewards import check_rewards


def check_requirements(recipe: TrainingRecipe) -> None:
    """Raise MissingPackage or RecipeError where the recipe cannot run here; imports no trainer."""
    check_installed(recipe)
    if isinstance(recipe, GrpoRecipe):
        check_rewards(recipe)


def check_arms(recipe: MainRecipe, projects: Path) -> None:
    """`check_requirements` of every arm of an experiment, whose recipes are under `projects`."""
    for part in check_parts(recipe, projects):
        if isinstance(part, TrainingRecipe):
            check_requirements(part)


def check_installed(recipe: TrainingRecipe) -> None:
    """Raise MissingPackage where the recipe wants a package that is not there; imports none."""
    train = recipe.train
    if isinstance(recipe, GrpoRecipe) and recipe.train.use_vllm:
        require(
            "vllm",
            "vllm",
            "train.use_vllm = true",
            instead="train.use_vllm=false, which generates with Transformers and takes far longer",
        )
    if recipe.sharding in ("zero2", "zero3"):
        require(
            "deepspeed",
            "deepspeed",
            f"sharding = {recipe.sharding}",
            instead="sharding=fsdp, which is PyTorch's own",
        )
    if train.use_liger_kernel:
        require(
            "liger_kernel",
            "liger",
            "train.use_liger_kernel = true",
            instead="train.use_liger_kernel=false, which changes speed and memory only",
        )
    # Transformers takes the package kernels in the place of flash_attn, where that is there.
    attention = train.attn_implementation
    if attention == "flash_attention_2" and not (find_spec("kernels") or find_spec("flash_attn")):
        raise MissingPackage(
            f"train.attn_implementation = {attention} needs flash_attn, which is not installed: "
            "pip install flash-attn, or pip install kernels, on a machine with a GPU, or set "
            "train.attn_implementation=sdpa, which computes the same"
        )
