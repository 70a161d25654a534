"""`mlflow-scalpel check`: a recipe, without running it."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "check"
HELP = "check a recipe without running it"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "recipe", help="path of a YAML, or STAGE/NAME of one under projects/, such as grpo/tiny"
    )
    parser.add_argument("--set", default="", help='fields to replace: "train.learning_rate=1e-5"')


def run(arguments: argparse.Namespace) -> int:
    """Print that the recipe is valid; raises RecipeError where it is not."""
    from mlflow_scalpel.evaluation.suite import load_suite
    from mlflow_scalpel.recipes.experiment import MainRecipe
    from mlflow_scalpel.recipes.load import check_parts, parse_settings, read_recipe
    from mlflow_scalpel.recipes.measuring import EvaluateRecipe

    path = find(arguments.recipe)
    read = read_recipe(path, settings=parse_settings(arguments.set))
    projects = path.resolve().parents[2]
    if isinstance(read, MainRecipe):
        check_parts(read, projects)
    if isinstance(read, EvaluateRecipe):
        load_suite(read.suite, projects / "evaluate" / "suites", read.data, read.samples)
    print(f"{path}: a valid recipe of the entry point {read.stage}")
    return 0


def find(recipe: str) -> Path:
    """The file of a recipe: a path, or STAGE/NAME of one under projects/; raises RecipeError."""
    from mlflow_scalpel.recipes.load import STAGES, find_recipe

    path = Path(recipe)
    stage, _, name = recipe.rpartition("/")
    if path.is_file():
        return path
    if stage in STAGES:
        return find_recipe(name, Path("projects") / stage / "recipes")
    return find_recipe(recipe, Path())
