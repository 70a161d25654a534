"""Reads a recipe, applies `set`, checks all of it, and says what is wrong in words.

Imports neither torch nor MLflow: a mistake in a recipe is reported within a second.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from mlflow_scalpel.errors import RecipeError
from mlflow_scalpel.recipes.base import BaseRecipe
from mlflow_scalpel.recipes.experiment import MainRecipe
from mlflow_scalpel.recipes.fields import Data, Recipe
from mlflow_scalpel.recipes.measuring import CompareRecipe, EvaluateRecipe
from mlflow_scalpel.recipes.places import existing_file, seen_by_user, user_directory
from mlflow_scalpel.recipes.settings import BY_RUN, Loader, parse_settings, split_field
from mlflow_scalpel.recipes.training import GrpoRecipe, SftRecipe, TrainingRecipe

STAGES: dict[str, type[Recipe]] = {
    "main": MainRecipe,
    "base": BaseRecipe,
    "sft": SftRecipe,
    "grpo": GrpoRecipe,
    "evaluate": EvaluateRecipe,
    "compare": CompareRecipe,
}

_MOST_BYTES = 1_000_000  # of a recipe
_LONGEST = 300  # characters of a value in a message


def load_recipe(name: str, folder: Path, *, stage: str, settings: str = "") -> Recipe:
    """The recipe `name` (under `folder`, or a path), with `settings` applied, checked as a whole.

    `settings` is what `-P set="train.learning_rate=1e-5 train.max_steps=50"` carries. Raises
    RecipeError with field, value, file and remedy.
    """
    path = find_recipe(name, folder)
    recipe = read_recipe(path, stage=stage, settings=parse_settings(settings), option=BY_RUN)
    if isinstance(recipe, MainRecipe):
        check_parts(recipe, folder.parents[1])
    check_files(recipe)
    return recipe if user_directory() == Path.cwd() else _with_places(recipe)


def _with_places(recipe: Recipe) -> Recipe:
    """The recipe with its relative paths as the user sees them, for a stage that runs elsewhere."""
    seen: dict[str, Any] = {}
    model = getattr(recipe, "model", None)
    if model is not None and seen_by_user(model).is_dir():
        seen["model"] = str(seen_by_user(model))
    if isinstance(recipe, TrainingRecipe):
        seen["data"] = _with_place(recipe.data)
        seen["probes"] = {name: _with_place(probe) for name, probe in recipe.probes.items()}
    return recipe.model_copy(update=seen)


def _with_place(data: Data) -> Data:
    return data.model_copy(update={"file": str(seen_by_user(data.file))}) if data.file else data


def read_recipe(
    path: Path,
    *,
    stage: str | None = None,
    settings: Mapping[str, Any] | None = None,
    option: str | None = None,
) -> Recipe:
    """The recipe in the file `path`, for `stage` or for the one that it names.

    `option` is how the user gives single fields, for messages about it; None where there is no way
    but the file.
    """
    files: list[Path] = []
    fields = read_yaml(path, files)
    for field, value in (settings or {}).items():
        _set_field(fields, field, value, path)
    named = fields.get("stage")
    if not isinstance(named, str) or named not in STAGES:
        raise RecipeError(
            f"{path}: stage = {named!r} is not a stage; set it to one of {', '.join(STAGES)}."
        )
    if stage is not None and named != stage:
        raise RecipeError(
            f"{path}: stage = {named} is a recipe of another entry point than {stage}; run it with "
            f"`mlflow run . -e {named}`, or give a recipe of {stage}."
        )
    fields.setdefault("name", path.stem)
    recipe: Recipe = validate(STAGES[named], fields, path, option)
    if isinstance(recipe, GrpoRecipe):
        make_importable(recipe, files)
    return recipe


def make_importable(recipe: GrpoRecipe, files: Iterable[Path]) -> None:
    """Have Python find rewards that lie beside a recipe's files, after all that is installed."""
    if any(":" in name for name in recipe.rewards):
        for folder in dict.fromkeys(str(file.resolve().parent) for file in files):
            if folder not in sys.path:
                sys.path.append(folder)


def check_parts(recipe: MainRecipe, projects: Path) -> list[Recipe]:
    """Check the recipes of all stages of an experiment: a slip in the last must not cost an hour.

    `projects` is the folder with a folder a stage. Returns the recipes; raises RecipeError as each
    stage would.
    """
    arms = [(arm.stage, f"arms.{number}", arm) for number, arm in enumerate(recipe.arms)]
    rest = [(name, name, getattr(recipe, name)) for name in ("base", "evaluate", "compare")]
    checked = []
    for stage, field, part in rest[:1] + arms + rest[1:]:
        if part is not None:
            path = find_recipe(part.recipe, projects / stage / "recipes")
            option = f"the experiment's {field}.set: "
            checked.append(read_recipe(path, stage=stage, settings=part.set, option=option))
            check_files(checked[-1])
    return checked


def check_files(recipe: Recipe) -> None:
    """Raise RecipeError where a data file that a training recipe names is not there."""
    if isinstance(recipe, TrainingRecipe):
        named = {"data": recipe.data, **{f"probes.{name}": d for name, d in recipe.probes.items()}}
        for field, data in named.items():
            if data.file is not None:
                existing_file(f"{field}.file", data.file)


def find_recipe(name: str, folder: Path) -> Path:
    """The file of the recipe `name`: a path as the user sees it, or a name under `folder`.

    STAGE/NAME is a name under projects/STAGE/recipes/ of the working directory.
    """
    for candidate in (seen_by_user(name), folder / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    stage, _, bare = name.rpartition("/")
    if stage in STAGES:
        return find_recipe(bare, Path.cwd() / "projects" / stage / "recipes")
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    near = difflib.get_close_matches(name, known, n=1)
    hint = f". Did you mean {near[0]}?" if near else ""
    raise RecipeError(
        f"recipe = {name}: there is neither a file of that path (seen from {user_directory()}) nor "
        f"a recipe of that name under {folder.resolve()}{hint or '.'} Known: "
        f"{', '.join(known) or 'none'}. Elsewhere, STAGE/NAME stands for "
        "projects/STAGE/recipes/NAME.yaml of the project that you are in."
    )


def recipe_files(name: str, folder: Path) -> list[Path]:
    """The file of the recipe `name`, as `find_recipe` finds it, and those that it extends."""
    files: list[Path] = []
    read_yaml(find_recipe(name, folder), files)
    return files


def validate(
    kind: type[BaseModel], fields: dict[str, Any], path: Path, option: str | None = None
) -> Any:
    """`fields` as a `kind`; raises RecipeError with one paragraph for each thing that is wrong."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        paragraphs = [_explain(detail, kind, path, option) for detail in error.errors()]
        raise RecipeError("\n\n".join(paragraphs)) from error


def read_yaml(path: Path, files: list[Path] | None = None) -> dict[str, Any]:
    """The YAML of `path`, laid over the recipe that it extends.

    That is a name beside it, STAGE/NAME, or a path. `files` are those that extend this one; it and
    what it extends are added.
    """
    files = [] if files is None else files
    if path.resolve() in files:
        raise RecipeError(f"{path}: extends itself, by way of {files[-1]}; remove one `extends`.")
    files.append(path.resolve())
    if path.stat().st_size > _MOST_BYTES:
        raise RecipeError(f"{path}: has more than {_MOST_BYTES} bytes, and is not a recipe.")
    try:
        fields = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise RecipeError(f"{path}: is not readable YAML: {why}; correct it there.") from error
    if not isinstance(fields, dict):
        raise RecipeError(f"{path}: holds no fields; a recipe is a mapping such as `stage: sft`.")
    parent = fields.pop("extends", None)
    if parent is None:
        return fields
    try:
        found = find_recipe(str(parent), path.parent)
    except RecipeError as error:
        raise RecipeError(f"{path}: extends {parent}, which is not found. {error}") from error
    inherited = read_yaml(found, files)
    inherited.pop("name", None)
    return _overlay(inherited, fields)


def _overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        if isinstance(inner, dict) and isinstance(value, dict):
            merged[key] = _overlay(inner, value)
        else:
            merged[key] = value
    return merged


def _set_field(fields: dict[str, Any], dotted: str, value: Any, path: Path) -> None:
    *parents, last = split_field(dotted)
    inner = fields
    for depth, name in enumerate(parents):
        inner = inner.setdefault(name, {})
        if not isinstance(inner, dict):
            known = ".".join(parents[: depth + 1])
            raise RecipeError(
                f"{path}: {dotted} cannot be set, because {known} = {inner!r} has no fields."
            )
    inner[last] = value


def _explain(detail: Any, kind: type[BaseModel], path: Path, option: str | None) -> str:
    field = ".".join(str(part) for part in detail["loc"])
    value = detail["input"]
    text = repr(value)
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
    shown = "" if isinstance(value, dict) or detail["type"] == "missing" else f" = {text}"
    message = detail["msg"].removeprefix("Value error, ").rstrip(".")
    message = message[0].lower() + message[1:]
    place = f"{path}: {field}{shown}: " if field else f"{path}: "
    return f"{place}{message}. {_remedy(detail, kind, option)}".rstrip()


def _remedy(detail: Any, kind: type[BaseModel], option: str | None) -> str:
    loc, why = detail["loc"], detail["type"]
    if why == "extra_forbidden":
        known = _fields_at(kind, loc[:-1])
        near = difflib.get_close_matches(str(loc[-1]), known, n=1)
        if near:
            return f"Did you mean {near[0]}?"
        return f"Remove it; known here: {', '.join(sorted(known))}."
    if why == "value_error":
        return ""
    given = f', or give it with {option}"{".".join(map(str, loc))}=..."' if option else ""
    return f"{'Add it to' if why == 'missing' else 'Correct it in'} the file{given}."


def _fields_at(kind: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Names of the fields of the model at `loc` within `kind`."""
    annotation: Any = kind
    for part in loc:
        fields = getattr(_model_in(annotation), "model_fields", {})
        if isinstance(part, str) and part in fields:
            annotation = fields[part].annotation
        # else an index of a list or a key of a mapping, whose annotation holds the model
    return list(getattr(_model_in(annotation), "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """The settings class in an annotation such as `list[Arm]` or `Stage | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(argument) for argument in get_args(annotation))
    return next((model for model in inner if model is not None), None)
