"""Recipe of the `main` entry point: a whole experiment as nested runs of one parent."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from mlflow_scalpel.recipes.fields import Recipe, Strict, flatten


class Stage(Strict):
    """A stage's recipe, and fields of it to set for this experiment."""

    recipe: str
    """Name under projects/<stage>/recipes/, or the path of a YAML."""
    set: dict[str, Any] = {}
    """Fields that replace the recipe's, under dotted names (train.max_steps) or nested."""

    @field_validator("set")
    @classmethod
    def _dotted(cls, value: dict[str, Any]) -> dict[str, Any]:
        return flatten(value) if value else {}


class Arm(Stage):
    """One training run of the experiment."""

    name: str = Field(pattern=r"^[\w.-]+$")
    stage: Literal["sft", "grpo"]
    learning_rates: list[PositiveFloat] = []
    """Candidates: each is tried in a pilot run without probes, and the arm takes the one that ends
    with the best training reward or loss (see mlflow_scalpel.training.pilots)."""
    learning_rate_of: str | None = None
    """Name of the arm whose learning rate this one takes."""


class MainRecipe(Recipe):
    """A recipe of `mlflow run .`."""

    stage: Literal["main"]
    base: Stage | None = None
    """How the base is made; null where `model` names one that exists."""
    model: str | None = None
    """The base of every arm, where none is made."""
    arms: list[Arm] = Field(min_length=1)
    evaluate: Stage | None = None
    """Evaluation of each arm's base and checkpoints; null for none."""
    compare: Stage | None = None
    workers: PositiveInt = 1
    """Arms that run at the same time."""

    @model_validator(mode="after")
    def _one_base(self) -> MainRecipe:
        if (self.base is None) == (self.model is None):
            raise ValueError("exactly one of base and model must be given; set the other to null")
        return self

    @model_validator(mode="after")
    def _distinct_arms(self) -> MainRecipe:
        names = [arm.name for arm in self.arms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two arms are called {twice[0]!r}; give each a name of its own")
        chosen = {arm.name for arm in self.arms if arm.learning_rates}
        for arm in self.arms:
            if arm.learning_rate_of is not None and arm.learning_rate_of not in chosen:
                raise ValueError(
                    f"arm {arm.name} takes the learning rate of {arm.learning_rate_of!r}, which is "
                    "not an arm with learning_rates; name one, or set its rate under `set`"
                )
        if self.compare is not None and len(self.arms) < 2:
            raise ValueError("compare needs two arms or more; add one, or set compare to null")
        return self
