"""What an evaluation wants installed."""

from __future__ import annotations

from mlflow_scalpel.extras import require
from mlflow_scalpel.recipes.measuring import EvaluateRecipe


def check_installed(recipe: EvaluateRecipe) -> None:
    """Raise MissingPackage where the recipe's engine is not there; imports nothing heavy."""
    if recipe.engine == "vllm":
        require(
            "vllm",
            "vllm",
            "engine = vllm",
            instead="engine=hf, which generates with Transformers and takes far longer on a GPU",
        )
