"""What a training recipe wants installed."""

from __future__ import annotations

from importlib.util import find_spec

from mlflow_scalpel.extras import need
from mlflow_scalpel.recipes.training import GrpoRecipe, TrainingRecipe


def check_installed(recipe: TrainingRecipe) -> None:
    """Raise RecipeError where a package is missing that the recipe wants; imports none of them."""
    train = recipe.train
    if isinstance(recipe, GrpoRecipe) and recipe.train.use_vllm:
        need(
            "train.use_vllm = true",
            "vllm",
            "pip install 'mlflow-scalpel[vllm]'",
            "train.use_vllm=false, which generates with Transformers and takes far longer",
        )
    if recipe.sharding in ("zero2", "zero3"):
        need(
            f"sharding = {recipe.sharding}",
            "deepspeed",
            "pip install 'mlflow-scalpel[deepspeed]'",
            "sharding=fsdp, which is PyTorch's own",
        )
    if train.use_liger_kernel:
        need(
            "train.use_liger_kernel = true",
            "liger_kernel",
            "pip install 'mlflow-scalpel[liger]'",
            "train.use_liger_kernel=false, which changes speed and memory only",
        )
    if train.attn_implementation == "flash_attention_2" and find_spec("kernels") is None:
        # Transformers takes the package kernels in its place, where that is there.
        need(
            "train.attn_implementation = flash_attention_2",
            "flash_attn",
            "pip install flash-attn, or pip install kernels, on a machine with a GPU",
            "train.attn_implementation=sdpa, which computes the same",
        )
