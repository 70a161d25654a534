"""Runs one stage of a project under MLflow, with a truthful end whatever happens.

A stage's script reads::

    with open_stage("sft", Path(__file__).parent / "recipes") as stage:
        ...  # stage.recipe is checked, stage.run_id is an active MLflow run

The run ends FINISHED, FAILED with the reason in the tag `scalpel.failure`, or KILLED on Ctrl-C and
SIGTERM. A recipe with a mistake is refused before MLflow or torch is imported. Where the tracking
server is away at the end, what it was to be told waits in the run's spool.
"""

from __future__ import annotations

import argparse
import atexit
import errno
import os
import subprocess
import sys
import traceback
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
from mlflow_scalpel.runs.resume import RECIPE_ARTIFACT, RESUMABLE, first_tags, process_tag, take_up
from mlflow_scalpel.runs.signals import end_with_parent, ignore_signals, stop_on_signals

NESTED = "SCALPEL_NESTED"  # set where an experiment of ours started the stage, not `mlflow run`
_OUTPUT = "SCALPEL_OUTPUT"  # tells every process of one stage the same output directory
_ABOVE = "SCALPEL_ABOVE"  # and which process is `mlflow run`, where it began the stage
_MOMENT = 30.0  # seconds that an interrupted process goes on sending
_LOST_PEER = "by peer"  # closed or reset, as gloo says
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
    installed; `check` looks at what a recipe only names (a suite), and raises RecipeError. Exits
    with 2 where the recipe is refused or a package is missing, with 1 where the stage fails, with
    130 where it was interrupted.
    """
    move_to_environment()
    guard_output()
    _quiet_libraries()
    if "MLFLOW_RUN_ID" in os.environ and "RANK" not in os.environ:
        os.environ[_ABOVE] = str(os.getppid())
    try:
        arguments = _parse_arguments(stage, argv)
        if extra is not None:
            require_extra(extra, f"the entry point {stage}")
        if arguments.resume:
            recipe = take_up(arguments.resume, stage, arguments.recipe, arguments.set, recipes)
            tags = process_tag()
        else:
            recipe = load_recipe(arguments.recipe, recipes, stage=stage, settings=arguments.set)
            tags = first_tags(stage, arguments.recipe, arguments.set)
        if check is not None:
            check(recipe)
        name = f"{recipe.name}-{stage}"
        _launch_processes(recipe, name, tags, recipes.resolve().parents[1] / "accelerate")
    except (RecipeError, MissingPackage) as error:
        print(f"\n{error}\n", file=sys.stderr)
        _fail_waiting_run(str(error))
        sys.exit(2)

    stop_on_signals()
    import mlflow

    is_main_process = int(os.environ.get("RANK", "0")) == 0
    if not is_main_process:  # the main process speaks to MLflow for all of them
        output = Path(os.environ[_OUTPUT])
        _use_threads(recipe)
        with _ending_at_once():
            yield OpenStage(recipe, run_id="", output=output, resumed=bool(arguments.resume))

    several = _ending_at_once() if "RANK" in os.environ else nullcontext()
    with several, _settled_run(mlflow, name, tags) as (run_id, output):
        note = run_note(run_id, recipe.description)
        mlflow.log_text(dump(recipe.model_dump(mode="json")), RECIPE_ARTIFACT)
        mlflow.set_tags({"scalpel.recipe": recipe.name, DESCRIPTION_TAG: note})
        _use_threads(recipe)
        yield OpenStage(recipe, run_id, output, resumed=bool(arguments.resume))


@contextmanager
def _ending_at_once() -> Iterator[None]:
    """End one of several processes without the interpreter's own end.

    There Python frees the process group of training, with a lock that gloo's threads may want for
    what they hold: the process aborts (pytorch#179291), which its launcher takes for a failure of
    all, or it waits for ever.
    """
    try:
        yield
    finally:
        error = sys.exception()
        ignore_signals()  # of a launcher that ends the others
        code: Any = error.code if isinstance(error, SystemExit) else 0 if error is None else 1
        # What stops all of them is said by the main process, and a lost peer by that one.
        said = isinstance(error, SystemExit | KeyboardInterrupt | ScalpelError | None)
        if not said and _LOST_PEER not in str(error):
            print(without_credentials(traceback.format_exc()), file=sys.stderr)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


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
    # MLflow's seven attempts take minutes; a uploader tries again for as long as it takes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    # What one library deprecates of another is nothing that a user can mend.
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
    output = Path(os.environ.get(_OUTPUT, f"outputs/{run_id}"))
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
        if _ABOVE in os.environ and NESTED not in os.environ:
            _stay_killed(run_id, os.environ[_ABOVE])
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
                f"{output}: its disk is full ({error}); make room, and take the run up with "
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
        what = "may not be written" if place.is_dir() else "is no directory"
        raise ScalpelError(
            f"{output}: cannot be written, because {place} {what}; start the stage in a directory "
            "that you may write to"
        )


def _leave_rest_in_spool(limit: float = _MOMENT) -> None:
    """Give what is under way a moment; the rest is sent by `upload`, or when the run is resumed."""
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
        said = (
            f"\nrun {run_id} ended {status}, which could not be told to MLflow ({error}).\nSend it "
            f"later with: mlflow-scalpel upload {spool.directory}"
        )
        print(without_credentials(said), file=sys.stderr, flush=True)
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
            f"{field} is no parameter of the entry point {stage}, which takes recipe and set"
            f"{' and resume' if stage in RESUMABLE else ''}; "
            f'give single fields as -P set="train.{field}={value}" '
            '(several: -P set="train.learning_rate=1e-5 train.max_steps=50").'
        )
    return arguments


def _launch_processes(recipe: Any, name: str, tags: dict[str, str], configurations: Path) -> None:
    """Start this script again under `accelerate launch` where the recipe asks for processes.

    The run is made before, since all of them work in the directory of its name.
    """
    processes = getattr(recipe, "processes", 1)
    if processes == 1 or "RANK" in os.environ:
        return
    if _OUTPUT in os.environ:  # started again, but alone: going on would start itself for ever
        raise RecipeError(
            f"processes = {processes}: accelerate did not start as many; set processes=1, or see "
            "what its own configuration (`accelerate env`) says of this machine"
        )
    if _ABOVE in os.environ:
        end_with_parent()  # holds for the launcher too, which then ends its processes
    if "MLFLOW_RUN_ID" not in os.environ:
        import mlflow

        os.environ["MLFLOW_RUN_ID"] = mlflow.start_run(run_name=name, tags=tags).info.run_id
    os.environ[_OUTPUT] = f"outputs/{os.environ['MLFLOW_RUN_ID']}"
    words = launch_options(recipe.processes, recipe.sharding, recipe.train.bf16, configurations)
    command = [sys.executable, "-m", "mlflow_scalpel.runs.launcher", *words, *sys.argv]
    os.execv(sys.executable, command)


def launch_options(
    processes: int, sharding: str | None, bf16: bool, configurations: Path
) -> list[str]:
    """Options of `accelerate launch` for a recipe; `configurations` is the folder of its files."""
    words = ["--num_processes", str(processes), "--num_machines", "1", "--dynamo_backend", "no"]
    if sharding is not None:
        precision = "bf16" if bf16 else "no"
        file = str(configurations / f"{sharding}.yaml")
        return [*words, "--config_file", file, "--mixed_precision", precision]
    # --multi_gpu names the launcher, torch's own; without GPUs its processes talk through gloo.
    return [*words, "--multi_gpu", "--mixed_precision", "no"]


def _fail_waiting_run(reason: str) -> None:
    """Mark the run that `mlflow run` made for this process, if it made one, as FAILED."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id is None or os.environ.get("RANK", "0") != "0":
        return
    from mlflow import MlflowClient

    client = MlflowClient()
    client.set_tag(run_id, FAILURE_TAG, failure_text(reason))
    client.set_terminated(run_id, "FAILED")


def _stay_killed(run_id: str, above: str) -> None:
    """Leave a process behind that says KILLED again after `mlflow run`, `above`, said FAILED."""
    subprocess.Popen(
        [sys.executable, "-m", "mlflow_scalpel.runs.keep_killed", run_id, above],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
