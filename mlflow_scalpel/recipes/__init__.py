"""Recipes: one YAML an experiment, checked as a whole before anything heavy is imported."""

from mlflow_scalpel.recipes.load import load_recipe, read_recipe

__all__ = ["load_recipe", "read_recipe"]
