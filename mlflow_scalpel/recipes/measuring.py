"""Recipes of the `evaluate` and `compare` stages."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from mlflow_scalpel.recipes.fields import Dtype, Recipe


class EvaluateRecipe(Recipe):
    """A recipe of `mlflow run . -e evaluate`."""

    stage: Literal["evaluate"]
    suite: str
    """Name under projects/evaluate/suites/, or the path of a suite's YAML."""
    data: dict[str, dict[str, Any]] = {}
    """Data of single tasks, by label, in place of all that the suite says of theirs."""
    model: str | None = None
    """One model: a hub name, a local directory, or a models:/ URI."""
    run: str | None = None
    """A training run whose base and checkpoints are evaluated; give either this or model."""
    checkpoints: Literal["all", "first_and_last", "last"] | PositiveInt = "all"
    """Which of the run's checkpoints: a number takes so many, evenly spaced, the last included."""
    system_prompt: str | None = None
    """Goes before every problem; for a run, null takes the one it was trained with."""
    batch_size: PositiveInt = 64
    dtype: Dtype = "float32"
    device: str | None = None
    """Torch device; null takes the first GPU, or the CPU where there is none."""
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _one_subject(self) -> EvaluateRecipe:
        if self.model is not None and self.run is not None:
            raise ValueError(
                f"both model = {self.model} and run = {self.run} are given; set one of them to null"
            )
        return self


class CompareRecipe(Recipe):
    """A recipe of `mlflow run . -e compare`."""

    stage: Literal["compare"]
    runs: list[str] = Field(default=[])
    """Training runs to set side by side: run IDs, two or more."""
    title: str = "What post-training did"
