"""Training data in the form that TRL's trainers take."""

from __future__ import annotations

from typing import Any

import datasets

from mlflow_scalpel.data import load_rows
from mlflow_scalpel.recipes.training import GrpoRecipe, SftRecipe, TrainingRecipe


def sft_examples(recipe: SftRecipe) -> datasets.Dataset:
    """Columns `prompt` and `completion`, as chat messages; one row a distinct problem."""
    return datasets.Dataset.from_list(
        [
            {
                "prompt": _question(recipe, row),
                "completion": [{"role": "assistant", "content": row["solution"]}],
            }
            for row in _distinct(load_rows(recipe.data, needs=("problem", "solution")))
        ]
    )


def grpo_examples(recipe: GrpoRecipe) -> datasets.Dataset:
    """Columns `prompt` (chat messages) and `answer`; one row a distinct problem."""
    needs = ("problem", "answer") if recipe.rewards.accuracy > 0 else ("problem",)
    return datasets.Dataset.from_list(
        [
            {"prompt": _question(recipe, row), "answer": row["answer"]}
            for row in _distinct(load_rows(recipe.data, needs=needs))
        ]
    )


def _question(recipe: TrainingRecipe, row: dict[str, Any]) -> list[dict[str, str]]:
    system = recipe.system_prompt
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": row["problem"]}]


def _distinct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first row of each problem: then an epoch sees each problem once, and counts are exact."""
    return list({row["problem"]: row for row in reversed(rows)}.values())[::-1]
