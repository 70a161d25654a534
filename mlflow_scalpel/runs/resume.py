"""Resumes a run whose process was killed: this process becomes the one that works on it."""

from __future__ import annotations

import json
import os
import shlex
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from mlflow_scalpel.errors import RecipeError
from mlflow_scalpel.recipes import load_recipe, read_recipe
from mlflow_scalpel.recipes.load import make_importable, recipe_files
from mlflow_scalpel.recipes.training import GrpoRecipe
from mlflow_scalpel.run_warnings import FAILURE_TAG, failure_text
from mlflow_scalpel.server_errors import check_answered

RESUMABLE = ("main", "sft", "grpo", "evaluate")
_NEED_FILES = ("sft", "grpo")  # go on from what lies in their output directory
RECIPE_ARTIFACT = "recipe.yaml"
STAGE_TAG = "scalpel.stage"  # of every run of a stage
RESUMED_TAG = "scalpel.resumed"  # from where, one line for each time
_COMMAND_TAG = "scalpel.command"  # its recipe and set, for as long as the recipe is not stored
_PROCESS_TAG = "scalpel.process"  # where the stage's process is, or was
_RESUMED_RUN = "SCALPEL_RESUMED_RUN"  # its ID, for the processes that accelerate starts again


def initial_tags(stage: str, recipe_name: str, settings: str) -> dict[str, str]:
    """The tags that a run has from its first moment, so that whoever finds it knows what it is."""
    command = json.dumps({"recipe": recipe_name, "set": settings})
    return {STAGE_TAG: stage, _COMMAND_TAG: command, **process_tag()}


def process_tag() -> dict[str, str]:
    """The tag that says which process works on a run, and in which directory."""
    process = psutil.Process()
    where = {
        "host": socket.gethostname(),
        "process": process.pid,
        "started": process.create_time(),
        "directory": str(Path.cwd()),
    }
    return {_PROCESS_TAG: json.dumps(where)}


def can_be_resumed(run_id: str, stage: str) -> bool:
    """Whether a run that has not finished can be resumed here, and need not begin anew."""
    return stage in RESUMABLE and (stage not in _NEED_FILES or Path(f"outputs/{run_id}").is_dir())


def resume_run(run_id: str, stage: str, recipe_name: str, settings: str, recipes: Path) -> Any:
    """Make this process the run's, and return the recipe that the run was begun with.

    A run that was killed before it had stored anything begins anew. `mlflow run` has made a run of
    its own for this process; it becomes an empty child of the resumed one. `recipes` is
    the folder in which names of recipes are looked up.

    Raises RecipeError where the run cannot be resumed: it does not exist, has finished, is still
    at work, was begun by another entry point or with another recipe, or the output directory of a
    training run, which holds the checkpoints, is not here. A run that cannot be resumed, and whose
    process is gone, is marked KILLED.
    """
    import mlflow
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

    client = MlflowClient()
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        check_answered(error)
        raise RecipeError(
            f"resume = {run_id}: there is no such run at {mlflow.get_tracking_uri()} ({error}); "
            "copy the ID from the UI's run page, and check MLFLOW_TRACKING_URI"
        ) from error
    _check_kind(run, stage)
    _check_ended(run)
    _check_files(run, stage)
    recipe: Any = _stored_recipe(run, stage, recipes)
    if settings or recipe_name not in ("tiny", recipe.name):  # "tiny" is what says nothing
        raise RecipeError(
            f"resume = {run_id}: goes on with the recipe that it began with ({recipe.name}); "
            "leave out recipe and set, or start a new run"
        )
    if os.environ.get(_RESUMED_RUN) != run_id:
        waiting = os.environ.get("MLFLOW_RUN_ID")
        if waiting not in (None, run_id):
            client.set_tag(waiting, MLFLOW_PARENT_RUN_ID, run_id)
            client.set_tag(waiting, MLFLOW_RUN_NAME, f"resumption of {run.info.run_name}")
        if FAILURE_TAG in run.data.tags:
            client.delete_tag(run_id, FAILURE_TAG)
        os.environ[_RESUMED_RUN] = run_id
        os.environ["MLFLOW_RUN_ID"] = run_id
    return recipe


def _check_kind(run: Any, stage: str) -> None:
    """Raise RecipeError where the run is not one of the stage, or has nothing left to do."""
    from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_ENTRY_POINT

    run_id, tags = run.info.run_id, run.data.tags
    # `mlflow run` names the entry point before the stage's own process has begun.
    began_as = tags.get(STAGE_TAG) or tags.get(MLFLOW_PROJECT_ENTRY_POINT)
    kind = began_as or stage
    if kind not in RESUMABLE:
        why = f"a run of {kind} is not resumed but run again; {', '.join(RESUMABLE)} can be resumed"
        raise RecipeError(f"resume = {run_id}: {why}{_mark_killed(run, why)}")
    if began_as != stage:
        raise RecipeError(
            f"resume = {run_id}: is a run of {began_as or 'another tool'}; resume it with "
            f"`mlflow run . -e {began_as or 'sft'} -P resume={run_id}`, or name a run of {stage}"
        )
    if run.info.status == "FINISHED":
        raise RecipeError(
            f"resume = {run_id}: has FINISHED, so nothing of it is left to do; start a new run"
        )


def _check_ended(run: Any) -> None:
    """Raise RecipeError where the run's process is still at work on this machine."""
    process = _process_of(run)
    ours = os.environ.get(_RESUMED_RUN) == run.info.run_id
    if not ours and run.info.status == "RUNNING" and _is_alive(process):
        raise RecipeError(
            f"resume = {run.info.run_id}: its process {process['process']} is still at work here; "
            "wait for it, or end it first"
        )


def _check_files(run: Any, stage: str) -> None:
    """Raise RecipeError where checkpoints that training would go on from are not here."""
    run_id, process = run.info.run_id, _process_of(run)
    trained = "loss" in run.data.metrics or bool(run.outputs and run.outputs.model_outputs)
    if not trained or can_be_resumed(run_id, stage):
        return
    missing = f"resume = {run_id}: its directory outputs/{run_id} is not under {Path.cwd()}"
    began_in = Path(process["directory"]) if "directory" in process else None
    if began_in is None or process["host"] != socket.gethostname():
        host = f" ({process['host']}, {began_in})" if began_in else ""
        raise RecipeError(
            f"{missing}; resume it on the machine and in the directory where it began{host}"
        )
    if (began_in / "outputs" / run_id).is_dir():
        raise RecipeError(f"{missing}; resume it in {began_in}, where it began")
    why = f"its checkpoints are gone: there is no {began_in}/outputs/{run_id} any more"
    raise RecipeError(f"{missing}, and {why}; start a new run{_mark_killed(run, why)}")


def _stored_recipe(run: Any, stage: str, recipes: Path) -> Any:
    """The recipe that the run was begun with: the stored one, else the one its command named."""
    import mlflow
    from mlflow import MlflowClient

    run_id, command = run.info.run_id, _command(run)
    if RECIPE_ARTIFACT in {file.path for file in MlflowClient().list_artifacts(run_id)}:
        with tempfile.TemporaryDirectory() as scratch:
            path = mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=RECIPE_ARTIFACT, dst_path=scratch
            )
            if Path(path).stat().st_size > 0:  # else it was cut off while it was stored
                recipe = read_recipe(Path(path), stage=stage)
                if isinstance(recipe, GrpoRecipe) and command is not None:
                    with suppress(RecipeError):  # the file may be gone, and is not needed
                        make_importable(recipe, recipe_files(command["recipe"], recipes))
                return recipe
    if command is None:
        why = "it was killed before it had stored its recipe, and its command is not known"
        raise RecipeError(f"resume = {run_id}: {why}; start a new run{_mark_killed(run, why)}")
    try:
        return load_recipe(command["recipe"], recipes, stage=stage, settings=command["set"])
    except RecipeError as error:
        why = f"it was killed before it had stored its recipe, which is refused now: {error}"
        raise RecipeError(f"resume = {run_id}: {why}{_mark_killed(run, why)}") from error


def _command(run: Any) -> dict[str, str] | None:
    """Recipe and set of the command that began the run."""
    params, stored = run.data.params, run.data.tags.get(_COMMAND_TAG)
    if stored is not None:
        return dict(json.loads(stored))
    if "recipe" not in params and "set" not in params:
        return None
    # `mlflow run` logs what it was given, quoted for a shell.
    given = {"recipe": params.get("recipe", "tiny"), "set": params.get("set", "")}
    return {name: " ".join(shlex.split(value)) for name, value in given.items()}


def _process_of(run: Any) -> dict[str, Any]:
    """Host, ID, start and directory of the run's process; {} where it has no tag that says so."""
    return dict(json.loads(run.data.tags.get(_PROCESS_TAG, "{}")))


def _is_alive(named: dict[str, Any]) -> bool:
    """Whether the process that a run names is alive on this machine."""
    if named.get("host") != socket.gethostname():
        return False
    try:
        process = psutil.Process(named["process"])
        # Started to the second: clocks are set right now and then.
        return (
            abs(process.create_time() - named["started"]) < 1
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False


def _mark_killed(run: Any, why: str) -> str:
    """Mark a run that cannot be resumed KILLED if its process is known to be gone; says so."""
    from mlflow import MlflowClient

    process = _process_of(run)
    elsewhere = process.get("host") != socket.gethostname()
    if run.info.status != "RUNNING" or elsewhere or _is_alive(process):
        return ""
    client = MlflowClient()
    client.set_tag(run.info.run_id, FAILURE_TAG, failure_text(f"its process was killed, and {why}"))
    client.set_terminated(run.info.run_id, "KILLED")
    return ". The run, whose process is gone, is KILLED now"


def resumed_tag(run_id: str, point: str) -> dict[str, str]:
    """The tag that says from where the run was resumed: the earlier times, and now `point`."""
    from mlflow import MlflowClient

    before = MlflowClient().get_run(run_id).data.tags.get(RESUMED_TAG)
    return {RESUMED_TAG: f"{before}\n{point}" if before else point}
