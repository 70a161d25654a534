"""Packages that only some recipes want, looked for before anything is started."""

from __future__ import annotations

from importlib.util import find_spec

from mlflow_scalpel.errors import RecipeError


def need(field: str, module: str, install: str, instead: str) -> None:
    """Raise RecipeError where `module` is missing; imports nothing.

    `field` is what in the recipe wants it, `instead` the setting that does without.
    """
    if find_spec(module) is None:
        raise RecipeError(
            f"{field}: the package {module} is not installed; {install}, or set {instead}."
        )
