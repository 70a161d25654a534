"""Check a recipe without running anything.

Reports the first mistake with its field, its value and how to fix it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = 'mlflow-scalpel check grpo/tiny --set "train.learning_rate=1e-5"'


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "recipe", help="path of a YAML, or STAGE/NAME of one under projects/, such as grpo/tiny"
    )
    parser.add_argument(
        "--set", default="", help='fields to replace, such as "train.learning_rate=1e-5"'
    )


def run(arguments: argparse.Namespace) -> int:
    """Print that the recipe is valid; raises RecipeError where it is not."""
    from mlflow_scalpel.evaluation.suite import check_data_files, load_suite
    from mlflow_scalpel.recipes.experiment import MainRecipe
    from mlflow_scalpel.recipes.load import (
        check_files,
        check_parts,
        find_recipe,
        read_recipe,
    )
    from mlflow_scalpel.recipes.measuring import EvaluateRecipe
    from mlflow_scalpel.recipes.settings import BY_COMMAND, parse_settings
    from mlflow_scalpel.recipes.training import GrpoRecipe
    from mlflow_scalpel.training.rewards import check_rewards

    path = find_recipe(arguments.recipe, Path())
    settings = parse_settings(arguments.set, BY_COMMAND)
    read = read_recipe(path, settings=settings, option=BY_COMMAND)
    folder = path.resolve().parent
    shipped = (folder.parent.name, folder.name) == (read.stage, "recipes")
    projects = folder.parents[1] if shipped else Path.cwd() / "projects"
    check_files(read)
    parts = check_parts(read, projects) if isinstance(read, MainRecipe) else [read]
    for part in parts:
        if isinstance(part, GrpoRecipe):
            check_rewards(part)
    if isinstance(read, EvaluateRecipe):
        folder = projects / "evaluate" / "suites"
        check_data_files(load_suite(read.suite, folder, read.data, read.samples))
    print(f"{path}: a valid recipe of the entry point {read.stage}")
    for part in parts:
        if isinstance(part, GrpoRecipe):
            given = (f"{name} {weight:g}" for name, weight in part.reward_weights.items() if weight)
            print(f"  rewards and their weights: {', '.join(given)}")
    return 0
