"""Packages that a plain install does not bring: which extra does, and who asks for it.

`pip install mlflow-scalpel` is what shows, lists, pulls, verifies and reports. All else says here
what it needs, before it does anything.
"""

from __future__ import annotations

from importlib.util import find_spec

from mlflow_scalpel.errors import MissingPackage

# What is looked for, by extra, in this order: names to import, of what pyproject.toml lists.
_MEASURE = ("torch", "transformers", "peft")
_EVAL = (*_MEASURE, "lm_eval", "datasets", "math_verify", "latex2sympy2_extended", "reasoning_gym")
PACKAGES = {
    "measure": _MEASURE,
    "eval": _EVAL,
    "train": (*_EVAL, "trl", "accelerate", "matplotlib"),
    "png": ("kaleido",),
}


def install_command(extra: str) -> str:
    """What a user types to install an extra."""
    return f"pip install 'mlflow-scalpel[{extra}]'"


def require(package: str, extra: str, purpose: str, *, instead: str = "") -> None:
    """Raise MissingPackage where `package` cannot be imported; imports nothing.

    Args:
        package: the name to import.
        extra: of mlflow-scalpel, that installs it.
        purpose: what needs it: a command, a function, or a field of a recipe with its value.
        instead: what to set in the recipe to do without.
    """
    if find_spec(package) is None:
        remedy = install_command(extra)
        if instead:
            remedy += f", or set {instead}"
        raise MissingPackage(f"{purpose} needs {package}, which is not installed: {remedy}")


def require_extra(extra: str, purpose: str) -> None:
    """Raise MissingPackage where one of the packages of an extra cannot be imported."""
    for package in PACKAGES[extra]:
        require(package, extra, purpose)
