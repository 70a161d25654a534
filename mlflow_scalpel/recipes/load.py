"""Reads a recipe, applies `set`, checks all of it, and says what is wrong in words.

Imports neither torch nor MLflow: a mistake in a recipe is told within a second.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from mlflow_scalpel.errors import RecipeError
from mlflow_scalpel.recipes.base import BaseRecipe
from mlflow_scalpel.recipes.experiment import MainRecipe
from mlflow_scalpel.recipes.fields import Recipe
from mlflow_scalpel.recipes.measuring import CompareRecipe, EvaluateRecipe
from mlflow_scalpel.recipes.places import existing_file, seen_by_user, user_directory
from mlflow_scalpel.recipes.training import GrpoRecipe, SftRecipe, TrainingRecipe

STAGES: dict[str, type[Recipe]] = {
    "main": MainRecipe,
    "base": BaseRecipe,
    "sft": SftRecipe,
    "grpo": GrpoRecipe,
    "evaluate": EvaluateRecipe,
    "compare": CompareRecipe,
}


BY_RUN = "-P set="  # how a field is given to `mlflow run`
BY_COMMAND = "--set "  # and to a command of ours

_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+",
    "tag:yaml.org,2002:float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}  # as in YAML 1.2
_WORDS = {*_NUMBERS, "tag:yaml.org,2002:bool", "tag:yaml.org,2002:null"}


class _Loader(yaml.SafeLoader):
    """YAML in which a key given twice is an error (the second would win in silence), `1e-5` is a
    number, and `10:50` is text, not 650 as YAML 1.1 has it.
    """

    # PyYAML keeps, by first character, which pattern makes a plain word something else than text.
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag not in _NUMBERS]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is a list or a mapping and no word", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> Any:
        value = super().construct_yaml_float(node)
        # 12e4567 may be the start of a commit's hash; what is meant to be infinite says inf.
        return node.value if math.isinf(value) and "inf" not in node.value.lower() else value


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
for _tag, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list("-+.0123456789"))


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
    return recipe


def read_recipe(
    path: Path,
    *,
    stage: str | None = None,
    settings: Mapping[str, Any] | None = None,
    option: str | None = None,
) -> Recipe:
    """The recipe in the file `path`, for `stage` or for the one that it names.

    `option` is how the user gives single fields, for what is said of a mistake; None where there
    is no way but the file.
    """
    fields = read_yaml(path)
    for field, value in (settings or {}).items():
        _set_field(fields, field, value, path)
    named = fields.get("stage")
    if not isinstance(named, str) or named not in STAGES:
        raise RecipeError(
            f"{path}: stage = {named!r} is no stage; set it to one of {', '.join(STAGES)}."
        )
    if stage is not None and named != stage:
        raise RecipeError(
            f"{path}: stage = {named} is a recipe of another entry point than {stage}; run it with "
            f"`mlflow run . -e {named}`, or give a recipe of {stage}."
        )
    fields.setdefault("name", path.stem)
    return validate(STAGES[named], fields, path, option)


def check_parts(recipe: MainRecipe, projects: Path) -> None:
    """Check the recipes of all stages of an experiment: a slip in the last must not cost an hour.

    `projects` is the folder with a folder a stage. Raises RecipeError as each stage would.
    """
    arms = [(arm.stage, f"arms.{number}", arm) for number, arm in enumerate(recipe.arms)]
    rest = [(name, name, getattr(recipe, name)) for name in ("base", "evaluate", "compare")]
    for stage, field, part in rest[:1] + arms + rest[1:]:
        if part is not None:
            path = find_recipe(part.recipe, projects / stage / "recipes")
            option = f"the experiment's {field}.set: "
            check_files(read_recipe(path, stage=stage, settings=part.set, option=option))


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
        f"a recipe of that name under {folder.resolve()}{hint or '.'} Known: {', '.join(known) or 'none'}. Elsewhere, "
        "STAGE/NAME stands for projects/STAGE/recipes/NAME.yaml of the project that you are in."
    )


def parse_settings(text: str, option: str = BY_RUN) -> dict[str, Any]:
    """Read `a.b=1 c=[x, y] d='any text'`, given by `option`, as dotted names and values.

    A value that begins with a quote is text, whatever stands in it; any other one is YAML, of which
    only lists, mappings and plain words are taken (`&x`, `*x`, `!x` and `#` are text). Quotes
    around field and value hold them together, and leave the value YAML. Raises RecipeError.
    """
    settings: dict[str, Any] = {}
    for field, value, is_text in _words(text, option):
        if field in settings:
            raise RecipeError(f"set = {text}: {field} is given twice; remove one of them.")
        try:
            settings[field] = value if is_text else _plain_value(value)
        except yaml.YAMLError as error:
            why = " ".join(str(error).split())
            raise RecipeError(
                f"set = {text}: the value of {field} is no YAML ({why}); put quotes around a text "
                f"({field}='...'), and around field and value that hold blanks ('{field}=[a, b]')."
            ) from error
    return settings


_PIECE = re.compile(
    r"""(?P<blank>\s+)|'(?P<single>[^']*)'|"(?P<double>(?:\\.|[^"\\])*)"|\\(?P<escaped>[\s'"\\])"""
    r"""|(?P<bare>[^\s'"\\]+|\\)""",
    re.DOTALL,
)


def _words(text: str, option: str) -> Iterator[tuple[str, str, bool]]:
    """Field, value, and whether the value was quoted as text, of each FIELD=VALUE.

    Quotes are a shell's, but a backslash outside of them stays where it hides no blank, quote or
    backslash: `\\d` is a part of many patterns.
    """
    pieces: list[tuple[str, str, str]] = []  # kind, text, text as it was written
    place = 0
    while place <= len(text):
        found = _PIECE.match(text, place)
        if found is None and place < len(text):
            raise RecipeError(
                f"set = {text}: no closing quotation of {text[place : place + 20]!r}; quote values "
                "that hold blanks or quotes."
            )
        kind = str(found.lastgroup) if found else "blank"
        if kind != "blank" and found is not None:
            inner = found[kind]
            if kind == "double":
                inner = re.sub(r'\\(["\\])', r"\1", inner)
            pieces.append((kind, inner, found[0]))
        elif pieces:
            yield _field_and_value(pieces, text, option)
            pieces = []
        place = found.end() if found else len(text) + 1


def _field_and_value(
    pieces: list[tuple[str, str, str]], text: str, option: str
) -> tuple[str, str, bool]:
    word = "".join(inner for _, inner, _ in pieces)
    field, equals, value = word.partition("=")
    if not equals or not field:
        raise RecipeError(
            f"set = {text}: {word!r} is not FIELD=VALUE; write for example "
            f'{option}"train.learning_rate=1e-5 train.max_steps=50".'
        )
    kind, head, _ = pieces[0]
    if kind != "bare" or "=" not in head:
        return field, value, False  # the quotes hold field and value together
    begin = head.partition("=")[2]
    is_text = not begin and len(pieces) > 1 and pieces[1][0] in ("single", "double")
    if begin.startswith(("[", "{")):  # the quotes in a list are YAML's
        value = begin + "".join(written for _, _, written in pieces[1:])
    return field, value, is_text


def _plain_value(value: str) -> Any:
    """A list, a mapping or a quoted text as YAML has it, or a word: a number, true, null, text."""
    value = value.strip()
    if value.startswith('"'):
        try:
            return json.loads(value)  # as an experiment gives it to its stages
        except ValueError:
            pass
    if value.startswith(("[", "{", "'", '"')):
        return yaml.load(value, _Loader)
    tag = _Loader("").resolve(yaml.ScalarNode, value, (True, False))
    return yaml.load(value, _Loader) if tag in _WORDS else value


def validate(
    kind: type[BaseModel], fields: dict[str, Any], path: Path, option: str | None = None
) -> Any:
    """`fields` as a `kind`; raises RecipeError with one paragraph for each thing that is wrong."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        paragraphs = [_explain(detail, kind, path, option) for detail in error.errors()]
        raise RecipeError("\n\n".join(paragraphs)) from error


def read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The YAML of `path`, laid over the recipe that it extends.

    That is a name beside it, STAGE/NAME, or a path.
    """
    if path.resolve() in seen:
        raise RecipeError(f"{path}: extends itself, by way of {seen[-1]}; remove one `extends`.")
    try:
        fields = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise RecipeError(f"{path}: is no readable YAML: {why}; correct it there.") from error
    if not isinstance(fields, dict):
        raise RecipeError(f"{path}: holds no fields; a recipe is a mapping such as `stage: sft`.")
    parent = fields.pop("extends", None)
    if parent is None:
        return fields
    inherited = read_yaml(find_recipe(str(parent), path.parent), (*seen, path.resolve()))
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
    *parents, last = dotted.split(".")
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
    shown = "" if isinstance(value, dict) or detail["type"] == "missing" else f" = {value!r}"
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
