"""The places where trainers leave models: steps in a run's directory, a model within a step.

What works for which trainer is in docs/explanation/trainers.md; `converters.py` has the commands
for layouts that hold no model as Hugging Face stores one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlflow_scalpel.checkpoints.external.converters import converted_by, how_to_convert
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.documents import CONFIG
from mlflow_scalpel.tensors.files import ADAPTER_CONFIG, INDEX, WEIGHTS
from mlflow_scalpel.tensors.steps import (
    INNER,
    counts_epochs,
    step_of_directory,
    step_of_name,
    step_of_path,
)

_DEPTH = 4  # folders from a step's directory down to its model
# Folders that hold no model of what was trained, or another model than that.
_OTHERS = (
    "critic", "value", "reward", "rm", "ref", "teacher", "draft", "optimizer", "optim", "ema",
    "dataloader", "data", "runs", "wandb", "logs", "completions", "base_model",
)  # fmt: skip


@dataclass(frozen=True)
class StepDirectory:
    """The directory that a trainer wrote at one step."""

    step: int
    place: Path
    """The step's own directory."""
    model: Path | None
    """Directory of the model in it; None where there is none that could be opened."""
    why: str | None = None
    """The reason why there is none, and the command that makes one."""


def find_steps(directory: Path, step: int | None = None) -> list[StepDirectory]:
    """The directory of each step in `directory`, in their order.

    `directory` is a run's, one that holds it (`weights/step_20`), a step's, or a model's within
    one. With `step` it is that step's, whatever its name. Empty where no step is found.

    Raises ScalpelError where two directories are of one step, or where it is not clear which
    folder is the run's or the model's.
    """
    if step is not None:
        one = _look(directory, step)
        if one.model is None and (children := _step_children(directory)):
            raise ScalpelError(
                f"{directory}: holds the directories of steps ({children[0][1].name}, ...), and no "
                f"model of step {step}; give it without --step, or the directory of one model"
            )
        return [one]
    if step_of_path(directory) is None and directory.is_symlink():  # latest -> checkpoint-40
        directory = directory.resolve()
    own = step_of_path(directory)
    if own is not None and _is_model(directory):
        return [_look(directory, own)]
    children = _step_children(directory)
    within = [_look(path, number) for number, path in children]
    if own is not None and not any(found.model for found in within):
        return [_look(directory, own)]
    if not within:
        within = _of_folders(directory)
    return _one_per_step(within)


def model_in(directory: Path) -> Path:
    """The directory of the one model within a step's directory; itself where it holds the model.

    Raises ScalpelError where there is none, with what converts what is there, or several.
    """
    if _is_model(directory):
        return directory
    models = _models_in(directory)
    if len(models) == 1:
        return models[0]
    if models:
        raise ScalpelError(_several(directory, models))
    raise ScalpelError(f"{directory}: {why_none(directory)}")


def unnamed_models(directory: Path, found: Iterable[StepDirectory]) -> list[Path]:
    """Models beside the steps that `find_steps` found, whose names give no step.

    The final model in the run's directory itself, `merged`, `export`, `best`.
    """
    taken = {path.resolve() for one in found for path in (one.place, one.model) if path is not None}
    return [
        path
        for path in (directory, *_folders(directory))
        if _is_model(path)
        and step_of_directory(path) is None
        and not _is_other(path)
        and path.resolve() not in taken
    ]


def why_none(directory: Path) -> str:
    """The reason why the directory holds no model, and the command that makes one; one line."""
    weights = any(directory.glob(f"*{WEIGHTS}"))
    configured = (directory / CONFIG).is_file() or (directory / ADAPTER_CONFIG).is_file()
    if weights and not configured:
        return converted_by(directory) or (
            f"holds no {CONFIG} beside its {WEIGHTS} files; save it beside the weights "
            "(model.config.save_pretrained), or copy the base's"
        )
    if not weights:
        models = _models_in(directory)
        if models:
            inside = ", ".join(path.relative_to(directory).as_posix() for path in models)
            return f"holds no model itself: {inside} holds one; give that"
    return how_to_convert(directory)


def run_directory(directory: Path) -> Path:
    """The directory of the run that a step's directory, or the model in one, is part of."""
    path = directory.absolute()
    if step_of_path(path) is None:
        path = path.resolve()
    if step_of_path(path) is None:
        return path
    while path.name in INNER:
        path = path.parent
    return path.parent.resolve()  # where the step's directory is a link, of the link


def names_in(directory: Path) -> str:
    """The first few names in a directory, for messages."""
    names = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
    return f"{', '.join(names[:6])}{', ...' if len(names) > 6 else ''}" or "nothing"


def _look(place: Path, step: int) -> StepDirectory:
    if _is_model(place):
        return StepDirectory(step, place, place)
    models = _models_in(place)
    if len(models) == 1:
        return StepDirectory(step, place, models[0])
    why = _several(place, models) if models else f"{place}: {why_none(place)}"
    return StepDirectory(step, place, None, why)


def _step_children(directory: Path) -> list[tuple[int, Path]]:
    found = [
        (step, path)
        for path in _folders(directory)
        if (step := step_of_directory(path)) is not None
    ]
    # Two names of one directory, as `step_40 -> checkpoint-40`, are one step.
    own = {path.resolve() for _, path in found if not path.is_symlink()}
    return sorted(
        (step, path) for step, path in found if not (path.is_symlink() and path.resolve() in own)
    )


def _of_folders(directory: Path) -> list[StepDirectory]:
    """The steps of the one folder in `directory` that holds some, as `weights/step_20`."""
    groups = {}
    for folder in _folders(directory):
        if _is_other(folder):
            continue
        found = [_look(path, step) for step, path in _step_children(folder)]
        if found:
            groups[folder] = found
    with_models = {folder: steps for folder, steps in groups.items() if any(s.model for s in steps)}
    groups = with_models or groups
    if len(groups) > 1:
        names = ", ".join(str(folder) for folder in groups)
        raise ScalpelError(f"{directory}: holds the steps of several runs; give one of {names}")
    return next(iter(groups.values()), [])


def _one_per_step(found: list[StepDirectory]) -> list[StepDirectory]:
    """One directory per step: that with the model, where others hold the trainer's own state."""
    epochs = {counts_epochs(one.place): one.place for one in found if one.model is not None}
    if len(epochs) > 1:
        raise ScalpelError(
            f"{epochs[True]} counts epochs and {epochs[False]} steps, and a run has one order of "
            "its checkpoints; move those of one kind away, and log them with their steps: "
            "`mlflow-scalpel log --step N DIR`"
        )
    by_step = defaultdict(list)
    for one in found:
        by_step[one.step].append(one)
    chosen = []
    for step, candidates in sorted(by_step.items()):
        models = [one for one in candidates if one.model is not None]
        if len(models or candidates) > 1:
            names = " and ".join(str(one.place) for one in models or candidates)
            raise ScalpelError(
                f"{names}: are both of step {step}, and a run has one checkpoint per step; move "
                "one away, or log each into a run of its own: "
                f"`mlflow-scalpel log --step {step} --run-id RUN DIR`"
            )
        chosen.append((models or candidates)[0])
    return chosen


def _is_model(directory: Path) -> bool:
    """Whether the directory holds weights as safetensors, and a configuration."""
    configured = (directory / CONFIG).is_file() or (directory / ADAPTER_CONFIG).is_file()
    return configured and (any(directory.glob(f"*{WEIGHTS}")) or (directory / INDEX).is_file())


def _models_in(place: Path) -> list[Path]:
    """Directories of models below `place` at the least depth at which there is one."""
    level = [place]
    for _ in range(_DEPTH):
        level = [
            folder
            for parent in level
            for folder in _folders(parent)
            if not _is_other(folder) and step_of_name(folder.name) is None
        ]
        models = [folder for folder in level if _is_model(folder)]
        if models:
            return models
    return []


def _folders(directory: Path) -> list[Path]:
    try:
        return sorted(
            path for path in directory.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    except OSError:  # removed meanwhile, or somebody else's
        return []


def _is_other(folder: Path) -> bool:
    words = folder.name.lower().strip("_").split("_")
    return words[0] in _OTHERS or folder.name.lower() in _OTHERS


def _several(directory: Path, models: list[Path]) -> str:
    names = ", ".join(path.relative_to(directory).as_posix() for path in models)
    return f"{directory}: holds several models ({names}); give the directory of one"
