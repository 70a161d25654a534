"""The directory from which a user's relative paths are seen, also under `mlflow run`."""

from __future__ import annotations

import os
from pathlib import Path

from mlflow_scalpel.errors import RecipeError

_DIRECTORY = "SCALPEL_USER_DIRECTORY"  # tells every process of one command the same
_BY_MLFLOW = "MLFLOW_RUN_ID"  # set by `mlflow run`, until the first run is started


def user_directory() -> Path:
    """The directory in which the user gave the command.

    That is the working directory, but for a process of `mlflow run DIRECTORY`, which MLflow starts
    in DIRECTORY: then it is the one of `mlflow run` itself, as the system has it. Where that is not
    known, it is the working directory.
    """
    if _DIRECTORY in os.environ:
        return Path(os.environ[_DIRECTORY])
    found = _directory_above() if _BY_MLFLOW in os.environ else None
    if found is None:
        return Path.cwd()
    os.environ[_DIRECTORY] = str(found)  # for later, and for the processes that this one starts
    return found


def seen_by_user(path: str) -> Path:
    """A path as the user means it: a relative one from the directory of the command."""
    directory, place = user_directory(), Path(path).expanduser()
    return place if directory == Path.cwd() else directory / place


def existing_file(field: str, path: str) -> Path:
    """The file at a path that a user gave for `field`; raises RecipeError where there is none."""
    place = seen_by_user(path)
    if place.is_file():
        return place
    if place.is_dir():
        raise RecipeError(f"{field} = {path}: is a directory; name one file in it")
    relative = "" if Path(path).is_absolute() else f" in {user_directory()}"
    hint = ", from which relative paths are seen" if relative else ""
    raise RecipeError(
        f"{field} = {path}: there is no such file{relative}{hint}; give an existing path"
    )


def _directory_above() -> Path | None:
    """The working directory of the process that began this one, by way of a shell or not."""
    import psutil

    try:
        process = psutil.Process().parent()
        while process is not None and _only_starts(process.cmdline()):
            process = process.parent()
        return None if process is None else Path(process.cwd())
    except (psutil.Error, OSError):  # another user's process, or one that has ended
        return None


def _only_starts(command: list[str]) -> bool:
    """Whether a process is a shell for one command, as MLflow starts it: `bash -c "python ..."`."""
    return len(command) > 2 and command[1] == "-c" and command[0].endswith("sh")
