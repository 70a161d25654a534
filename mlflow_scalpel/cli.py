"""The `mlflow-scalpel` command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mlflow_scalpel import __version__
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.evaluation.suite import load_suite
from mlflow_scalpel.recipes.experiment import MainRecipe
from mlflow_scalpel.recipes.load import (
    STAGES,
    check_parts,
    find_recipe,
    parse_settings,
    read_recipe,
)
from mlflow_scalpel.recipes.measuring import EvaluateRecipe


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 0, or 2 where the user's input is refused."""
    parser = argparse.ArgumentParser(prog="mlflow-scalpel", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="check a recipe without running it")
    check.add_argument(
        "recipe", help="path of a YAML, or STAGE/NAME of one under projects/, such as grpo/tiny"
    )
    check.add_argument("--set", default="", help='fields to replace: "train.learning_rate=1e-5"')
    arguments = parser.parse_args(argv)
    try:
        print(_check(arguments.recipe, arguments.set))
    except ScalpelError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _check(recipe: str, settings: str) -> str:
    path = Path(recipe)
    stage, _, name = recipe.rpartition("/")
    if not path.is_file() and stage in STAGES:
        path = find_recipe(name, Path("projects") / stage / "recipes")
    elif not path.is_file():
        path = find_recipe(recipe, Path())
    read = read_recipe(path, settings=parse_settings(settings))
    projects = path.resolve().parents[2]
    if isinstance(read, MainRecipe):
        check_parts(read, projects)
    if isinstance(read, EvaluateRecipe):
        load_suite(read.suite, projects / "evaluate" / "suites", read.data)
    return f"{path}: a valid recipe of the entry point {read.stage}"


if __name__ == "__main__":
    sys.exit(main())
