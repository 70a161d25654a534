"""Finds the rewards that a recipe names, and checks their arguments before training begins.

Imports neither torch nor TRL.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mlflow_scalpel.errors import RecipeError
from mlflow_scalpel.recipes.training import GrpoRecipe

ENTRY_POINT_GROUP = "mlflow_scalpel.rewards"
# A reward's parameters of these names are given by the trainer, as `trl.GRPOTrainer` does; all
# others are arguments that a recipe sets.
OF_THE_TRAINER = (
    "prompts",
    "completions",
    "completion_ids",
    "log_metric",
    "log_extra",
    "trainer_state",
)
OF_THE_DATA = ("problem", "answer", "solution")  # columns of the recipe's data
OPENING = "prompt_opening"  # what the prompt writes of each completion already, such as <think>
_GIVEN = (*OF_THE_TRAINER, *OF_THE_DATA, OPENING)

Messages = list[dict[str, str]]
RewardFunction = Callable[..., Sequence[float | None]]


@dataclass(frozen=True)
class Reward:
    """A reward that a recipe can name."""

    name: str
    function: RewardFunction
    answers_are_mathematics: bool = False
    """Whether it reads gold answers as mathematics: data without readable ones is refused."""

    @property
    def _named(self) -> dict[str, inspect.Parameter]:
        parameters = inspect.signature(self.function).parameters.values()
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return {one.name: one for one in parameters if one.kind in named}

    @property
    def columns(self) -> list[str]:
        """The columns of the data that it cannot do without."""
        return [name for name in self.named_columns if _is_needed(self._named[name])]

    @property
    def named_columns(self) -> list[str]:
        """The columns of the data among its parameters."""
        return [name for name in OF_THE_DATA if name in self._named]

    @property
    def arguments(self) -> dict[str, inspect.Parameter]:
        """The parameters that a recipe sets."""
        return {name: one for name, one in self._named.items() if name not in _GIVEN}

    def call(self, given: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
        """The function's value on what the trainer gives, as far as it takes that."""
        parameters = inspect.signature(self.function).parameters.values()
        if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
            given = {name: value for name, value in given.items() if name in self._named}
        return self.function(**{**given, **arguments})


@dataclass(frozen=True)
class ChosenReward:
    """A reward of a recipe, with what the recipe says of it."""

    name: str
    """As the recipe writes it, which is also what the trainer's metrics carry."""
    weight: float
    reward: Reward
    arguments: Mapping[str, Any]


_REWARDS: dict[str, Reward] = {}


def reward(
    name: str, *, answers_are_mathematics: bool = False
) -> Callable[[RewardFunction], RewardFunction]:
    """Decorator: make the function known as the reward `name`.

    It is called with what its parameters name: `completions` (chat messages), `completion_ids`
    (tokens), `prompts`, `log_metric`, columns of the data (`problem`, `answer`, `solution`), and
    `prompt_opening`; any other parameter is an argument that a recipe sets. It returns a number for
    each completion, or None where it has none: the other rewards alone count then.

    Raises ValueError for a second reward of that name.
    """

    def add(function: RewardFunction) -> RewardFunction:
        if name in _REWARDS:
            raise ValueError(f"reward {name!r} is registered twice; give one of them another name")
        _REWARDS[name] = Reward(name, function, answers_are_mathematics)
        return function

    return add


def check_rewards(recipe: GrpoRecipe) -> None:
    """Raise RecipeError where the recipe's rewards cannot be called as it says.

    A reward must be known or importable, take the arguments that it is given and need no others,
    and find the columns that it compares with.
    """
    for name, weight in recipe.reward_weights.items():
        if weight == 0 and ":" not in name:
            find_reward(recipe, name)
    for chosen in choose_rewards(recipe):
        for column in chosen.reward.columns:
            held = getattr(recipe.data.columns, "solutions" if column == "solution" else column)
            if held is None and not (column == "problem" and recipe.data.columns.messages):
                raise RecipeError(
                    f"recipe {recipe.name}: data.columns.{column} is null, but the {chosen.name} "
                    f"reward compares with it; name the column, or set rewards.{chosen.name}=0"
                )


def choose_rewards(recipe: GrpoRecipe) -> list[ChosenReward]:
    """The rewards of the recipe with a weight above 0, in its order; raises RecipeError."""
    chosen = []
    for name, weight in recipe.reward_weights.items():
        if weight > 0:
            found = find_reward(recipe, name)
            arguments = _checked_arguments(recipe, name, found)
            chosen.append(ChosenReward(name, weight, found, arguments))
    return chosen


def find_reward(recipe: GrpoRecipe, name: str) -> Reward:
    """The reward of a name, or the function at `module:function`; raises RecipeError."""
    _discover()
    if name in _REWARDS:
        return _REWARDS[name]
    if ":" in name:
        function = _imported(recipe, name)
        registered = (one for one in _REWARDS.values() if one.function is function)
        return next(registered, Reward(name, function))
    raise RecipeError(
        f"recipe {recipe.name}: rewards.{name}: there is no reward of that name"
        f"{_did_you_mean(name, _REWARDS)}; known: {', '.join(sorted(_REWARDS))}; one of your own "
        "is written as module:function"
    )


def _imported(recipe: GrpoRecipe, name: str) -> RewardFunction:
    module_name, _, function_name = name.partition(":")
    place = f"recipe {recipe.name}: rewards.{name}"
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does when it is imported
        raise RecipeError(
            f"{place}: {module_name} cannot be imported ({type(error).__name__}: {error}); put "
            "its file beside the recipe, or install it"
        ) from error
    function = getattr(module, function_name, None)
    if function is None:
        raise RecipeError(
            f"{place}: {module.__file__} has no function {function_name}"
            f"{_did_you_mean(function_name, vars(module))}; name one that it has"
        )
    if not callable(function) or inspect.isclass(function):
        raise RecipeError(
            f"{place}: is a {type(function).__name__} and not a function; name a function that "
            "takes completions and returns a number for each"
        )
    if inspect.iscoroutinefunction(function):
        raise RecipeError(f"{place}: is an async function; write a plain one")
    if not {"completions", "completion_ids"} & inspect.signature(function).parameters.keys():
        raise RecipeError(
            f"{place}: takes neither completions nor completion_ids, so that it is not a reward; "
            "name one of them among its parameters"
        )
    return typing.cast(RewardFunction, function)


def _checked_arguments(recipe: GrpoRecipe, name: str, found: Reward) -> dict[str, Any]:
    """The arguments that the recipe gives a reward, as the types that its parameters name."""
    place = f"recipe {recipe.name}: rewards.{name}"
    given, taken = recipe.reward_arguments(name), found.arguments
    for key in given:
        if key not in taken:
            known = ", ".join(taken) or "none"
            raise RecipeError(
                f"{place}.{key}: the reward does not take {key}{_did_you_mean(key, taken)}; its "
                f"arguments: {known}"
            )
    missing = [key for key, one in taken.items() if key not in given and _is_needed(one)]
    if missing:
        example = ", ".join([f"weight: {recipe.reward_weights[name]:g}", f"{missing[0]}: ..."])
        raise RecipeError(
            f"{place}: the reward needs {' and '.join(missing)}; write {name}: {{{example}}}"
        )
    hints = _hints(found.function)
    checked = {}
    for key, value in given.items():
        try:
            checked[key] = TypeAdapter(hints.get(key, Any)).validate_python(value)
        except ValidationError as error:
            why = error.errors()[0]["msg"]
            raise RecipeError(
                f"{place}.{key} = {value!r}: {why[0].lower()}{why[1:]}; correct it"
            ) from error
    return checked


def _is_needed(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty


def _hints(function: RewardFunction) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # of a name that is imported for type checkers only
        return {}


def _did_you_mean(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


@functools.cache
def _discover() -> None:
    """Import the modules of this folder and those that entry points name."""
    package = importlib.import_module("mlflow_scalpel.training.rewards")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        entry_point.load()
