"""What `sft` and `grpo` have in common: follow the trainer, log settings, train, resume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from accelerate.utils import broadcast_object_list
from mlflow import MlflowClient
from transformers import PrinterCallback, TrainerState

from mlflow_scalpel.checkpoints.logging.uploads import uploader_for
from mlflow_scalpel.comparison.forward.probes import text_digest
from mlflow_scalpel.comparison.run_queries import ARGUMENTS, stated_prompt
from mlflow_scalpel.credentials import without_credentials
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.recipes.training import TrainingRecipe
from mlflow_scalpel.runs.lifecycle import OpenStage
from mlflow_scalpel.runs.resume import resumed_tag
from mlflow_scalpel.training.base import OpenBase, open_comparison
from mlflow_scalpel.training.callback import BarrierCallback, CheckpointCallback
from mlflow_scalpel.training.cost import hardware
from mlflow_scalpel.training.freezing import apply_freeze
from mlflow_scalpel.training.journal import Journal
from mlflow_scalpel.training.pool import Pool
from mlflow_scalpel.training.resume_point import (
    ResumePoint,
    find_resume_point,
    newest_complete,
    remove_incomplete,
)

if TYPE_CHECKING:
    from mlflow_scalpel.training.rewards.monitor import RewardMonitor


def follow(
    trainer: Any,
    stage: OpenStage,
    base: OpenBase,
    algorithm: str,
    pool: Pool,
    rewards: RewardMonitor | None = None,
) -> Path | None:
    """Have every checkpoint of the trainer logged and measured.

    Returns the checkpoint to train on from: the newest complete one of a run that is resumed, None
    for one that begins.
    """
    check_spread(stage.recipe.sharding, trainer.accelerator.distributed_type.value)
    if len(trainer.train_dataset) != len(pool.rows):
        raise ScalpelError(
            f"data {stage.recipe.data.describe()}: the trainer took {len(trainer.train_dataset)} "
            f"of {len(pool.rows)} examples, so that steps and costs would be wrong; set "
            "train.max_length=null, and filter with data.max_solution_tokens"
        )
    trained = apply_freeze(trainer.model, stage.recipe.train.freeze)
    trainer.remove_callback(PrinterCallback)  # a line a step; the callback prints what counts
    trainer.add_callback(BarrierCallback(trainer.accelerator.wait_for_everyone))
    chosen: list[Path | None] = [None]
    if not stage.run_id:
        return broadcast_object_list(chosen)[0]
    uploader = uploader_for(stage.run_id, stage.output)
    resumed = ResumePoint()
    if stage.resumed:
        uploader.drain()  # what the killed process had not sent yet
        chosen[0], resumed = _resume(stage)
    more = {**pool.params(), **trained.params()}
    log_settings(stage, base, algorithm, trainer.args, pool, more)
    broadcast_object_list(chosen)  # the others must not look while files are removed here
    trainer.add_callback(
        CheckpointCallback(
            stage.recipe,
            base,
            open_comparison(stage.recipe, base),
            Journal(uploader),
            run_id=stage.run_id,
            algorithm=algorithm,
            problems=len(pool.rows),
            frozen=trained.frozen_names,
            resumed=resumed,
            rewards=rewards,
        )
    )
    return chosen[0]


def _resume(stage: OpenStage) -> tuple[Path | None, ResumePoint]:
    """Checkpoint and resume point of a run that was killed; incomplete checkpoints are removed."""
    checkpoint = newest_complete(stage.output, stage.recipe.processes)
    point = find_resume_point(stage.run_id, checkpoint)
    mlflow.set_tags(resumed_tag(stage.run_id, point.describe()))
    for directory in remove_incomplete(stage.output, stage.recipe.processes):
        print(f"{directory}: was cut off while it was written, and is made again")
    print(f"run {stage.run_id} goes on from step {point.step}", flush=True)
    return checkpoint, point


def check_spread(sharding: str | None, kind: str) -> None:
    """Raise ScalpelError where accelerate has left out the sharding that the recipe asks for.

    `kind` is the name of its distributed type; on a CPU it goes on with a full copy in each
    process, and says nothing.
    """
    if sharding is not None and kind not in ("FSDP", "DEEPSPEED"):
        raise ScalpelError(
            f"sharding = {sharding}: accelerate runs the processes as {kind}, each with a full "
            "copy of the model, as it does without a GPU; set sharding=null, or run it on GPUs"
        )


def train(trainer: Any, from_checkpoint: Path | None) -> None:
    """Train from the beginning, or on from a checkpoint, to the recipe's last step.

    Of a run that was killed after its last step, only what is done with the checkpoint is left:
    Transformers' own loop would train one step more before it looks at how many there are.
    """
    if from_checkpoint is None:
        trainer.train()
        return
    state = TrainerState.load_from_json(str(from_checkpoint / "trainer_state.json"))
    if state.global_step < trainer.args.max_steps:
        trainer.train(resume_from_checkpoint=str(from_checkpoint))
        return
    state.is_world_process_zero = trainer.is_world_process_zero()
    state.is_local_process_zero = trainer.is_local_process_zero()
    handler = trainer.callback_handler
    for event in (handler.on_train_begin, handler.on_train_end):
        trainer.control = event(trainer.args, state, trainer.control)


def log_settings(
    stage: OpenStage,
    base: OpenBase,
    algorithm: str,
    arguments: Any,
    pool: Pool,
    more: Mapping[str, Any],
) -> None:
    """Log what the recipe says as params, and every training argument as an artifact.

    A run that is resumed keeps the params that it has. `more` are other params.

    MLflow's charts write all params of a run beside each picture: with the 150 fields of
    TrainingArguments among them no picture is left to see.
    """
    recipe: TrainingRecipe = stage.recipe
    known = MlflowClient().get_run(stage.run_id).data.params
    mlflow.log_dict(arguments.to_dict(), ARGUMENTS)
    apart = {"dtype", "num_train_epochs", "logging_steps", "freeze", "lr_scheduler_kwargs"}
    fields = recipe.train.model_dump(exclude=apart)
    if recipe.train.lr_scheduler_kwargs:
        fields["lr_scheduler_type"] += f" {recipe.train.lr_scheduler_kwargs}"
    unused = "vllm_" if not fields.get("use_vllm") else None
    params = {
        **{name: value for name, value in fields.items() if not _begins(name, unused)},
        "freeze": recipe.train.freeze.model_dump() if recipe.train.freeze else "none",
        "max_steps": arguments.max_steps,
        "algorithm": algorithm,
        "base_model": without_credentials(recipe.model),
        "base_name": without_credentials(base.name),
        "base_model_id": base.model_id,
        "data": without_credentials(recipe.data.describe()),
        "solutions": recipe.data.columns.solutions if algorithm == "sft" else "none",
        "system_prompt": stated_prompt(pool.system_prompt),
        "chat_template": text_digest(recipe.chat_template) if recipe.chat_template else "none",
        "eos_token": recipe.eos_token or "none",
        "template_date": recipe.template_date.isoformat(),
        "weights_dtype": recipe.train.dtype,
        "processes": recipe.processes,
        "hardware": hardware(),
        **more,
    }
    mlflow.log_params({name: value for name, value in params.items() if name not in known})
    mlflow.set_tag("scalpel.algorithm", algorithm)


def _begins(name: str, prefix: str | None) -> bool:
    return prefix is not None and name.startswith(prefix)
