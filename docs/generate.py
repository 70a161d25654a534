"""Writes the pages of the reference that are made from the code: commands, metrics, recipes, views.

    python docs/generate.py

`make docs` runs it before the site is built; git does not keep what it writes.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mlflow_scalpel import views
from mlflow_scalpel.cli import build_parser, paragraphs
from mlflow_scalpel.metrics import GROUPS, all_metrics
from mlflow_scalpel.recipes.base import BaseRecipe
from mlflow_scalpel.recipes.experiment import MainRecipe
from mlflow_scalpel.recipes.measuring import CompareRecipe, EvaluateRecipe
from mlflow_scalpel.recipes.training import GrpoRecipe, SftRecipe

FOLDER = Path(__file__).parent / "reference"
STAGES = (SftRecipe, GrpoRecipe, EvaluateRecipe, CompareRecipe, BaseRecipe, MainRecipe)


def commands() -> str:
    """The page on the command line, from its parsers."""
    (action,) = (
        one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction)
    )
    page = [
        "# Commands",
        "`MLFLOW_TRACKING_URI` names the tracking server or store, as for MLflow itself. The exit "
        "status is 0, 1 where the answer is no (something is wrong, missing or lost), 2 where the "
        "input is refused, and 130 after Ctrl-C.",
        'For completion in bash and zsh: `eval "$(register-python-argcomplete mlflow-scalpel)"`.',
    ]
    for name, parser in action.choices.items():
        example = inspect.cleandoc(str(parser.epilog).partition("\n")[2])
        page += [f"## {name}", *paragraphs(str(parser.description)), _block("sh", example)]
        page.append(_table(("argument", ""), [_argument(one) for one in parser._actions[1:]]))
    return "\n\n".join(page) + "\n"


def _argument(action: argparse.Action) -> tuple[str, str]:
    value = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`", str(action.help)
    takes = "" if action.nargs == 0 else f" {value}"
    return f"`{action.option_strings[-1]}{takes}`", str(action.help)


def metrics() -> str:
    """The page on the metrics, from the registry."""
    page = [
        "# Metrics",
        "`mlflow-scalpel metrics NAME` prints the same. Names of metrics and of groups go into "
        "`metrics` and `rare_metrics` of a recipe, and into `compare --metrics`. The version of a "
        "metric goes up when its values change.",
    ]
    for group, about in GROUPS.items():
        found = [one for one in all_metrics() if one.group == group]
        if not found:
            continue
        page += [f"## {group}", f"Computed from {about}."]
        # What holds for many metrics stands once, before them.
        for where in dict.fromkeys(one.on for one in found if one.on):
            names = [one.name for one in found if one.on == where]
            ending = commonly_ends(names)
            page += [f"All that end in `{ending}`:" if ending else "All of them:"]
            page += [_block("text", where)]
        for function in dict.fromkeys(one.function for one in found):
            same = [one for one in found if one.function is function]
            page += [
                f"### {', '.join(one.name for one in same)}",
                f"In {same[0].unit}; version {same[0].version}.",
                _block("text", inspect.getdoc(function) or ""),
            ]
    return "\n\n".join(page) + "\n"


def commonly_ends(names: list[str]) -> str:
    """The last part that all names share, "" where they share none."""
    (*ends,) = {name.rpartition("/")[2] for name in names}
    return ends[0] if len(ends) == 1 else ""


def recipes() -> str:
    """The page on the fields of recipes, from their typed models."""
    page = [
        "# Recipes",
        "A recipe is a YAML file; `stage` says which entry point it is for, and a field that is "
        "not listed here is refused. `extends: NAME` takes over the fields of another recipe. "
        "Training fields carry the names of TRL's `SFTConfig` and `GRPOConfig`.",
        "`Fraction` is a number from 0 to 1, `Dtype` one of float32, bfloat16 and float16. "
        "`mlflow-scalpel check` checks a recipe without running it.",
    ]
    seen: set[type[BaseModel]] = set()
    for stage in STAGES:
        (name,) = stage.model_fields["stage"].annotation.__args__  # type: ignore[union-attr]
        page += [f"## {name}", *_model(stage)]
        for inner in _inner(stage):
            if inner not in seen:
                seen.add(inner)
                page += [f"### {inner.__name__}", *_model(inner)]
    return "\n\n".join(page) + "\n"


def _inner(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that a model's fields hold, and theirs, in order."""
    found: list[type[BaseModel]] = []
    for field in model.model_fields.values():
        for kind in _models_in(field.annotation):
            found += [one for one in (kind, *_inner(kind)) if one not in found]
    return found


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for inner in getattr(annotation, "__args__", ()) for kind in _models_in(inner)]


def _model(model: type[BaseModel]) -> list[str]:
    texts = docstrings(model)
    rows = [
        (f"`{name}`", _code(_type(model, name)), _default(field), texts.get(name, ""))
        for name, field in model.model_fields.items()
    ]
    about = paragraphs(inspect.getdoc(model) or "")
    return [*about, _table(("field", "type", "default", ""), rows)]


def _declarations(model: type[BaseModel]) -> list[tuple[ast.AnnAssign, str]]:
    """The fields that a class itself declares, each with the text that stands under it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = []
    for one, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(one, ast.AnnAssign):
            text = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = " ".join(inspect.cleandoc(str(after.value.value)).split())
            found.append((one, text))
    return found


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The text under each field, a subclass's own before that of what it extends."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if issubclass(kind, BaseModel) and kind is not BaseModel:
            for one, text in _declarations(kind):
                if text:
                    found[ast.unparse(one.target)] = text
    return found


class _Plain(ast.NodeTransformer):
    """Takes the validators off a type."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if ast.unparse(node.value) == "Annotated" and isinstance(node.slice, ast.Tuple):
            return node.slice.elts[0]
        return node


def _type(model: type[BaseModel], name: str) -> str:
    for kind in model.__mro__:
        if issubclass(kind, BaseModel) and kind is not BaseModel:
            for one, _ in _declarations(kind):
                if ast.unparse(one.target) == name:
                    return ast.unparse(_Plain().visit(one.annotation))
    raise AssertionError(name)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default_factory() if field.default_factory else field.default  # type: ignore[call-arg]
    if isinstance(value, BaseModel):
        return "as below"
    if value is None or value is PydanticUndefined:
        return "null"
    if isinstance(value, bool):
        return _code(str(value).lower())
    return _code('""' if value == "" else str(value))


def figures() -> str:
    """The page on the views, from the functions that the package exports."""
    page = [
        "# Views",
        "Functions of `mlflow_scalpel.views`. `table` is the [tidy table](table.md), as `compare` "
        "and `gather` give it; `runs` what `describe_runs` gives. Each returns a Plotly figure, "
        "or HTML.",
    ]
    for name in dir(views):
        function = getattr(views, name)
        if inspect.isfunction(function) and not name.startswith("_"):
            signature = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(function)))
            text = inspect.getdoc(function) or ""
            page += [f"## {name}", _block("python", name + signature), _block("text", text)]
    return "\n\n".join(page) + "\n"


def _code(text: str) -> str:
    return f"`{text}`"


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Text of a table's cell: a bar would end it, and a tag outside of code be taken for HTML."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else part.replace("|", "\\|").replace("<", "&lt;")
        for part in parts
    )


PAGES = {"commands.md": commands, "metrics.md": metrics, "recipes.md": recipes, "views.md": figures}


def main() -> None:
    """Write the pages."""
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
