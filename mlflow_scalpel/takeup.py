"""Makes this process the one that goes on with a run whose process was killed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from mlflow_scalpel.errors import RecipeError
from mlflow_scalpel.recipes import read_recipe

RESUMABLE = ("main", "sft", "grpo", "evaluate")
_KEEP_FILES = ("sft", "grpo")  # go on from what lies in their output directory
RECIPE_ARTIFACT = "recipe.yaml"
STAGE_TAG = "scalpel.stage"  # of a run whose stage has begun: its recipe is there
SEAMS_TAG = "scalpel.resumed"
_TAKEN = "SCALPEL_RESUMED"  # set once done, for the processes that accelerate starts again


def left_to_take_up(run_id: str, stage: str) -> bool:
    """Whether a run that has not finished is gone on with, and not begun anew."""
    return stage in RESUMABLE and (stage not in _KEEP_FILES or Path(f"outputs/{run_id}").is_dir())


def take_up(run_id: str, stage: str, recipe_name: str, settings: str) -> Any:
    """The recipe that the run was begun with, after this process was made the run's.

    `mlflow run` has made a run of its own for this process; it becomes a child of the resumed one,
    and holds nothing. Raises RecipeError where the run cannot be taken up: it does not exist, has
    finished, was begun by another entry point or with another recipe, or the output directory of a
    training run, which holds the checkpoints, is not here.
    """
    import mlflow
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

    client = MlflowClient()
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise RecipeError(
            f"resume = {run_id}: there is no such run at {mlflow.get_tracking_uri()} ({error}); "
            "copy the ID from the UI's run page, and check MLFLOW_TRACKING_URI"
        ) from error
    began_as = run.data.tags.get(STAGE_TAG)
    if began_as != stage:
        raise RecipeError(
            f"resume = {run_id}: is a run of {began_as or 'another tool'}; take it up with "
            f"`mlflow run . -e {began_as or 'sft'} -P resume={run_id}`, or name a run of {stage}"
        )
    if run.info.status == "FINISHED":
        raise RecipeError(
            f"resume = {run_id}: has FINISHED, so nothing of it is left to do; start a new run"
        )
    if not left_to_take_up(run_id, stage):
        raise RecipeError(
            f"resume = {run_id}: its directory outputs/{run_id} is not under {Path.cwd()}; take it "
            "up on the machine and in the directory where it began"
        )
    with tempfile.TemporaryDirectory() as scratch:
        path = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=RECIPE_ARTIFACT, dst_path=scratch
        )
        recipe: Any = read_recipe(Path(path), stage=stage)
    if settings or recipe_name not in ("tiny", recipe.name):  # "tiny" is what says nothing
        raise RecipeError(
            f"resume = {run_id}: goes on with the recipe that it began with ({recipe.name}); "
            "leave out recipe and set, or start a new run"
        )
    if os.environ.get(_TAKEN) != run_id:
        waiting = os.environ.get("MLFLOW_RUN_ID")
        if waiting not in (None, run_id):
            client.set_tag(waiting, MLFLOW_PARENT_RUN_ID, run_id)
            client.set_tag(waiting, MLFLOW_RUN_NAME, f"resumption of {run.info.run_name}")
        if "scalpel.failure" in run.data.tags:
            client.delete_tag(run_id, "scalpel.failure")
        os.environ[_TAKEN] = run_id
        os.environ["MLFLOW_RUN_ID"] = run_id
    return recipe


def seam_tag(run_id: str, seam: str) -> dict[str, str]:
    """The tag that says where the run was taken up: after those of earlier times, `seam`."""
    from mlflow import MlflowClient

    before = MlflowClient().get_run(run_id).data.tags.get(SEAMS_TAG)
    return {SEAMS_TAG: f"{before}\n{seam}" if before else seam}
