"""Runs one stage of a project under MLflow, with a truthful end whatever happens.

A stage's script reads::

    with open_stage("sft", Path(__file__).parent / "recipes") as stage:
        ...  # stage.recipe is checked, stage.run_id is an active MLflow run

The run ends FINISHED, FAILED with the reason in the tag `scalpel.failure`, or KILLED on Ctrl-C and
SIGTERM. A recipe with a mistake is refused before MLflow or torch is imported. Where the tracking
server is away at the end, what is not sent yet waits in the run's spool.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_scalpel.credentials import guard_output, move_to_environment, without_credentials
from mlflow_scalpel.errors import MissingPackage, RecipeError, ScalpelError
from mlflow_scalpel.extras import require_extra
from mlflow_scalpel.links import DESCRIPTION_TAG, run_note
from mlflow_scalpel.recipes import load_recipe
from mlflow_scalpel.recipes.settings import dump
from mlflow_scalpel.run_warnings import FAILURE_TAG, failure_text
from mlflow_scalpel.runs.processes import (
    MLFLOW_RUN_PROCESS,
    OUTPUT,
    exiting_at_once,
    launch_processes,
    start_keep_killed,
)
from mlflow_scalpel.runs.resume import (
    RECIPE_ARTIFACT,
    RESUMABLE,
    initial_tags,
    process_tag,
    resume_run,
)
from mlflow_scalpel.runs.signals import ignore_signals, stop_on_signals

NESTED = "SCALPEL_NESTED"  # set where an experiment of ours started the stage, not `mlflow run`
_TIME_TO_SEND = 30.0  # seconds that an interrupted process goes on sending
_NO_SPACE = os.strerror(errno.ENOSPC)
_TEMPORARY_FAILURE = 75  # EX_TEMPFAIL of sysexits.h


@dataclass(frozen=True)
class OpenStage:
    """A stage that is running."""

    recipe: Any
    run_id: str
    output: Path
    """Directory of this run's working files, under `outputs/`."""
    resumed: bool = False
    """Whether the run was begun by an earlier process, which was killed."""


@contextmanager
def open_stage(
    stage: str,
    recipes: Path,
    *,
    extra: str | None = None,
    check: Callable[[Any], object] | None = None,
    argv: list[str] | None = None,
) -> Iterator[OpenStage]:
    """Check the recipe named on the command line, start the MLflow run, and end it truthfully.

    `recipes` is the folder in which names of recipes are looked up; `extra` is what the stage needs
    installed; `check` looks at what a recipe only names (a suite, a package, a reward), and raises
    RecipeError. Exits with 2 where the recipe is refused or a package is missing, with 1 where the
    stage fails, with 130 where it was interrupted.
    """
    move_to_environment()
    guard_output()
    _quiet_libraries()
    if "MLFLOW_RUN_ID" in os.environ and "RANK" not in os.environ:
        os.environ[MLFLOW_RUN_PROCESS] = str(os.getppid())
    try:
        arguments = _parse_arguments(stage, argv)
        if extra is not None:
            require_extra(extra, f"the entry point {stage}")
        if arguments.resume:
            recipe = resume_run(arguments.resume, stage, arguments.recipe, arguments.set, recipes)
            tags = process_tag()
        else:
            recipe = load_recipe(arguments.recipe, recipes, stage=stage, settings=arguments.set)
            tags = initial_tags(stage, arguments.recipe, arguments.set)
        if check is not None:
            check(recipe)
        name = f"{recipe.name}-{stage}"
        launch_processes(recipe, name, tags, recipes.resolve().parents[1] / "accelerate")
    except (RecipeError, MissingPackage) as error:
        print(f"\n{error}\n", file=sys.stderr)
        _fail_waiting_run(str(error))
        sys.exit(2)

    stop_on_signals()
    import mlflow

    is_main_process = int(os.environ.get("RANK", "0")) == 0
    if not is_main_process:  # the main process speaks to MLflow for all of them
        output = Path(os.environ[OUTPUT])
        _use_threads(recipe)
        with exiting_at_once():
            yield OpenStage(recipe, run_id="", output=output, resumed=bool(arguments.resume))

    several = exiting_at_once() if "RANK" in os.environ else nullcontext()
    with several, _settled_run(mlflow, name, tags) as (run_id, output):
        note = run_note(run_id, recipe.description)
        mlflow.log_text(dump(recipe.model_dump(mode="json")), RECIPE_ARTIFACT)
        mlflow.set_tags({"scalpel.recipe": recipe.name, DESCRIPTION_TAG: note})
        _use_threads(recipe)
        yield OpenStage(recipe, run_id, output, resumed=bool(arguments.resume))


def _use_threads(recipe: Any) -> None:
    if recipe.threads is not None:
        import torch

        torch.set_num_threads(recipe.threads)


def _quiet_libraries() -> None:
    """Settings that libraries read when they are imported; the user's own come first."""
    if not sys.stderr.isatty():
        # Progress bars of a dozen libraries fill a log with carriage returns.
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Else TRL calls the hub in every run, also where model and data are local.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # MLflow's seven attempts take minutes; an uploader tries again for as long as it takes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    # What one library deprecates of another is nothing that a user can fix.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl)\.")


@contextmanager
def _settled_run(mlflow: Any, name: str, tags: dict[str, str]) -> Iterator[tuple[str, Path]]:
    """An active run that never stays RUNNING: FINISHED, FAILED with its reason, or KILLED.

    `tags` it has from its first moment, where this process makes it.
    """
    from mlflow_scalpel.checkpoints.logging.uploader import UploadPending
    from mlflow_scalpel.checkpoints.logging.uploads import close_uploaders

    # `mlflow run` made the run already and passes it in MLFLOW_RUN_ID, which start_run consumes.
    made_before = "MLFLOW_RUN_ID" in os.environ
    run_id = mlflow.start_run(run_name=None if made_before else name, tags=tags).info.run_id
    output = Path(os.environ.get(OUTPUT, f"outputs/{run_id}"))
    try:
        _check_writable(output)
        if "mlflow.parentRunId" not in mlflow.active_run().data.tags:
            mlflow.set_tag("mlflow.runName", name)
        yield run_id, output
        close_uploaders()
    except KeyboardInterrupt:
        ignore_signals()  # a second Ctrl-C must not cut off the note that there was a first
        _leave_rest_in_spool()
        _end(mlflow, run_id, output, "KILLED", "interrupted (SIGINT or SIGTERM)")
        if MLFLOW_RUN_PROCESS in os.environ and NESTED not in os.environ:
            start_keep_killed(run_id, os.environ[MLFLOW_RUN_PROCESS])
        print(f"\n{name}: interrupted; run {run_id} is KILLED", file=sys.stderr)
        sys.exit(130)
    except UploadPending as error:
        print(f"\n{name}: is done, but for this: {error}\n", file=sys.stderr)
        _leave_rest_in_spool(limit=0.0)
        _end(mlflow, run_id, output, "FINISHED")
        sys.exit(_TEMPORARY_FAILURE)
    except ScalpelError as error:
        _leave_rest_in_spool()
        _end(mlflow, run_id, output, "FAILED", str(error))
        print(f"\n{error}\n", file=sys.stderr)
        sys.exit(1)
    except BaseException as error:
        _leave_rest_in_spool()
        if _NO_SPACE in str(error):  # whichever library was writing
            reason = (
                f"{output}: its disk is full ({error}); make room, and resume the run with "
                f"-P resume={run_id}, or start it again"
            )
            _end(mlflow, run_id, output, "FAILED", reason)
            print(f"\n{without_credentials(reason)}\n", file=sys.stderr)
            sys.exit(1)
        _end(mlflow, run_id, output, "FAILED", f"{type(error).__name__}: {error}")
        raise
    else:
        _end(mlflow, run_id, output, "FINISHED")


def _check_writable(output: Path) -> None:
    """Raise ScalpelError where the output directory cannot be made, before hours go by."""
    place = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        what = "may not be written" if place.is_dir() else "is not a directory"
        raise ScalpelError(
            f"{output}: cannot be written, because {place} {what}; start the stage in a directory "
            "that you may write to"
        )


def _leave_rest_in_spool(limit: float = _TIME_TO_SEND) -> None:
    """Send for up to `limit` seconds; `upload` sends the rest, or whoever resumes the run."""
    from mlflow_scalpel.checkpoints.logging.uploader import UploadPending
    from mlflow_scalpel.checkpoints.logging.uploads import close_uploaders

    try:
        close_uploaders(limit)
    except UploadPending as error:
        print(f"\n{error}", file=sys.stderr)


def _end(mlflow: Any, run_id: str, output: Path, status: str, reason: str | None = None) -> None:
    """End the run; where the server is away, its end waits in the spool, and the process exits."""
    from mlflow.exceptions import MlflowException

    from mlflow_scalpel.checkpoints.logging.spool import EndEntry, Spool, TagsEntry
    from mlflow_scalpel.checkpoints.logging.uploads import spool_directory

    tags = {} if reason is None else {FAILURE_TAG: failure_text(reason)}
    try:
        mlflow.set_tags(tags)
        mlflow.end_run(status)
    except MlflowException as error:
        spool = Spool(spool_directory(run_id, output), mlflow.get_tracking_uri(), run_id)
        spool.add(TagsEntry(tags=tags))
        spool.add(EndEntry(status=status))
        message = (
            f"\nrun {run_id} ended {status}, which could not be sent to MLflow ({error}).\nSend it "
            f"later with: mlflow-scalpel upload {spool.directory}"
        )
        print(without_credentials(message), file=sys.stderr, flush=True)
        # Past MLflow's own handler, which would try to end the run for minutes.
        os._exit(_TEMPORARY_FAILURE)


def _parse_arguments(stage: str, argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=stage, add_help=True, allow_abbrev=False)
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--set", default="")
    parser.add_argument("--resume", default="")
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        field = unknown[0].lstrip("-").split("=")[0]
        value = unknown[1] if len(unknown) > 1 else "VALUE"
        raise RecipeError(
            f"{field} is not a parameter of the entry point {stage}, which takes recipe and set"
            f"{' and resume' if stage in RESUMABLE else ''}; "
            f'give single fields as -P set="train.{field}={value}" '
            '(several: -P set="train.learning_rate=1e-5 train.max_steps=50").'
        )
    return arguments


def _fail_waiting_run(reason: str) -> None:
    """Mark the run that `mlflow run` made for this process, if it made one, as FAILED."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id is None or os.environ.get("RANK", "0") != "0":
        return
    from mlflow import MlflowClient

    client = MlflowClient()
    client.set_tag(run_id, FAILURE_TAG, failure_text(reason))
    client.set_terminated(run_id, "FAILED")
