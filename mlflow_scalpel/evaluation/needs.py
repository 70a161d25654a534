"""What an evaluation wants installed."""

from __future__ import annotations

from mlflow_scalpel.extras import need
from mlflow_scalpel.recipes.measuring import EvaluateRecipe


def check_installed(recipe: EvaluateRecipe) -> None:
    """Raise RecipeError where the recipe's engine is missing; imports nothing heavy."""
    if recipe.engine == "vllm":
        need(
            "engine = vllm",
            "vllm",
            "pip install 'mlflow-scalpel[vllm]'",
            "engine=hf, which generates with Transformers and takes far longer on a GPU",
        )
