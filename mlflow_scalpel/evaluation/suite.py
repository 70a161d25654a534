"""Suites: which tasks are evaluated, how each is sampled, and which of them are in-domain.

Imports neither torch nor lm-eval: a mistake in a suite is told within a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from mlflow_scalpel.errors import RecipeError
from mlflow_scalpel.extras import require
from mlflow_scalpel.recipes.fields import Data, Strict, check_pattern
from mlflow_scalpel.recipes.load import find_recipe, read_yaml, validate
from mlflow_scalpel.recipes.measuring import EvaluateRecipe
from mlflow_scalpel.recipes.places import existing_file

NamePart = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$", max_length=60)]
"""Part of a metric's name: no blank and no slash, which separates the parts."""


_OF_GRADING = {"label", "domain", "kind", "metric", "grader", "gold_pattern", "filter"}


class Generation(Strict):
    """How completions are generated; nothing is taken from the model's own generation settings."""

    do_sample: bool = False
    """False takes the most likely token each time."""
    temperature: PositiveFloat | None = None
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    """Null keeps the whole distribution."""
    top_k: NonNegativeInt | None = None
    """Null and 0 keep the whole distribution."""
    max_new_tokens: PositiveInt
    until: list[str] | None = None
    """Strings that end a completion, beside the end-of-turn token; null takes the task's own. Each
    costs a decoding of the whole batch a token, so leave it empty where it does not matter."""

    @model_validator(mode="after")
    def _sampling(self) -> Generation:
        if self.do_sample and self.temperature is None:
            raise ValueError("do_sample = true needs a temperature above 0; give one")
        if not self.do_sample:
            for name in ("temperature", "top_p", "top_k"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} = {getattr(self, name)} has no effect without do_sample = true; "
                        "set one or the other"
                    )
        return self


class SuiteTask(Strict):
    """One number of the suite: a task, how it is sampled, and which of its results counts."""

    task: str
    """lm-eval's name of the task, or of a group of tasks, whose problems are then pooled."""
    label: NamePart
    """Short name that is shown."""
    domain: Literal["in", "out"]
    """Whether post-training saw this skill: declared, never guessed."""
    kind: NamePart
    """How it is measured, such as `greedy` or `sampled`."""
    metric: str | None = None
    """lm-eval's key of the result, such as `exact_match`; null with a grader of this project."""
    grader: Literal["task", "math_verify", "math_verify_or_number"] = "task"
    """`task` leaves it to lm-eval. `math_verify` compares the completion's answer as mathematics:
    in <answer> tags, boxed, or else LaTeX after the word "answer"; `math_verify_or_number` takes
    the last number where there is none of these. docs/explanation/grading.md says it all."""
    gold_pattern: str | None = None
    """Regular expression whose first group is the answer within the task's target."""
    filter: str = "none"
    """lm-eval's name of the filter that the completion went through."""
    chat_template: bool = True
    """False gives the model the task's own text, a system prompt before it, as published baselines
    are mostly made, those of multiple choice above all; worked examples then stand in one text."""
    shots: NonNegativeInt = 0
    """Worked examples before the problem."""
    limit: PositiveInt | None = None
    """At most so many problems, the first ones; of a group, so many from each of its tasks."""
    samples: PositiveInt = 1
    """Completions per problem."""
    generation: Generation | None = None
    """Null for tasks that compare likelihoods, such as multiple choice."""
    data: Data | None = None
    """Source of the problems; null leaves it to the task."""

    @property
    def metric_name(self) -> str:
        """Name of the metric that carries the score, such as `eval/in/add/greedy`."""
        return f"eval/{self.domain}/{self.label}/{self.kind}"

    @property
    def work(self) -> str:
        """All that decides the completions: tasks that agree on it are run once."""
        return self.model_dump_json(exclude=_OF_GRADING)

    @field_validator("gold_pattern")
    @classmethod
    def _pattern(cls, value: str | None) -> str | None:
        return check_pattern(value)

    @model_validator(mode="after")
    def _one_grader(self) -> SuiteTask:
        if (self.grader == "task") != (self.metric is not None):
            raise ValueError(
                f"metric = {self.metric} of {self.label} with grader = {self.grader}: the task's "
                "own grader needs a metric, and any other one takes none"
            )
        if self.grader != "task" and self.generation is None:
            raise ValueError(
                f"grader = {self.grader} of {self.label} reads completions; give it `generation`"
            )
        return self

    @model_validator(mode="after")
    def _fits(self) -> SuiteTask:
        sampled = self.generation is not None and self.generation.do_sample
        if self.samples > 1 and not sampled:
            raise ValueError(
                f"samples = {self.samples} of {self.label} would all be the same; set "
                "generation.do_sample to true, or samples to 1"
            )
        if self.data is not None and self.shots > 0:
            raise ValueError(
                f"shots = {self.shots} of {self.label} needs examples, and `data` holds only the "
                "problems that are evaluated; set shots to 0"
            )
        return self


class Suite(Strict):
    """A named list of tasks."""

    name: NamePart
    description: str = ""
    tasks_folder: Path | None = None
    """Folder of lm-eval task YAMLs, from the suite's own; null takes lm-eval's, which need the hub
    and half a minute to be listed."""
    tasks: list[SuiteTask] = Field(min_length=1)

    @field_validator("tasks_folder")
    @classmethod
    def _exists(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_dir():
            raise ValueError("is not a folder; write it as seen from the suite's file")
        return value

    @model_validator(mode="after")
    def _distinct(self) -> Suite:
        seen: set[tuple[str, str]] = set()
        domains: dict[str, str] = {}
        for task in self.tasks:
            if (task.label, task.kind) in seen:
                raise ValueError(
                    f"two tasks have the label {task.label} and the kind {task.kind}; "
                    "rename one of them"
                )
            seen.add((task.label, task.kind))
            if domains.setdefault(task.label, task.domain) != task.domain:
                raise ValueError(
                    f"the label {task.label} is both in-domain and out-of-domain; "
                    "give it one domain"
                )
        return self


def load_suite(
    name: str,
    folder: Path,
    data_overrides: Mapping[str, Mapping[str, Any]] | None = None,
    samples: int | None = None,
) -> Suite:
    """The suite `name` (under `folder`, or a path), checked as a whole.

    `data_overrides` gives labels a `data` of their own, which replaces the suite's as a whole and
    goes to every kind of the label; `samples` replaces the number of completions a problem of every
    task that samples. Raises RecipeError with field, value, file and remedy.
    """
    path = find_recipe(name, folder)
    fields = read_yaml(path)
    fields.setdefault("name", path.stem)
    if isinstance(fields.get("tasks_folder"), str):
        fields["tasks_folder"] = (path.parent / fields["tasks_folder"]).resolve()
    for label, data in (data_overrides or {}).items():
        _override_data(fields, label, dict(data), path)
    suite: Suite = validate(Suite, fields, path)
    if samples is None:
        return suite
    return suite.model_copy(update={"tasks": [_sampled(task, samples) for task in suite.tasks]})


def check_data_files(suite: Suite) -> None:
    """Raise RecipeError where a data file that a task names is not there."""
    for task in suite.tasks:
        if task.data is not None and task.data.file is not None:
            field = f"the data.file of {task.label} in the suite {suite.name}"
            existing_file(field, task.data.file)


def _sampled(task: SuiteTask, samples: int) -> SuiteTask:
    draws = task.generation is not None and task.generation.do_sample
    return task.model_copy(update={"samples": samples}) if draws else task


def _override_data(fields: dict[str, Any], label: str, data: dict[str, Any], path: Path) -> None:
    tasks = [task for task in fields.get("tasks") or [] if isinstance(task, dict)]
    hit = [task for task in tasks if task.get("label") == label]
    if not hit:
        known = dict.fromkeys(str(task.get("label")) for task in tasks)
        raise RecipeError(
            f"data.{label}: the suite {path} has no task of that label; "
            f"use one of {', '.join(known)}."
        )
    for task in hit:
        task["data"] = data


def check_installed(recipe: EvaluateRecipe) -> None:
    """Raise MissingPackage where the recipe's engine is not there; imports nothing heavy."""
    if recipe.engine == "vllm":
        require(
            "vllm",
            "vllm",
            "engine = vllm",
            instead="engine=hf, which generates with Transformers and takes far longer on a GPU",
        )
