"""What `sft` and `grpo` do alike: open the base, fix the probes, log settings, take a run up."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.data.pandas_dataset import from_pandas
from mlflow.exceptions import MlflowException

from mlflow_scalpel.chat import (
    check_system_prompt,
    context_of,
    end_tokens,
    load_tokenizer,
    with_chat,
)
from mlflow_scalpel.checkpoints.logging.log import log_base
from mlflow_scalpel.checkpoints.reading.pull import resolve
from mlflow_scalpel.comparison.engine import Comparison
from mlflow_scalpel.comparison.forward.probes import Probe, build_probe, text_digest
from mlflow_scalpel.comparison.measured_models import MeasuredModel
from mlflow_scalpel.comparison.run_queries import ARGUMENTS, stated_prompt
from mlflow_scalpel.credentials import without_credentials
from mlflow_scalpel.data import load_rows
from mlflow_scalpel.data.conversations import EARLIER
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.recipes.training import TrainingRecipe
from mlflow_scalpel.remote_code import refused
from mlflow_scalpel.run_warnings import warn
from mlflow_scalpel.runs.lifecycle import OpenStage
from mlflow_scalpel.runs.resume import seam_tag
from mlflow_scalpel.training.cost import hardware

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

    from mlflow_scalpel.training.examples import Pool
    from mlflow_scalpel.training.resume_point import Past
    from mlflow_scalpel.training.rewards import Rewards

BASE = "base"  # in the output directory: the base with the recipe's template and end token


@dataclass(frozen=True)
class OpenBase:
    """The base of a run: its files, tokenizer, and LoggedModel."""

    directory: Path
    tokenizer: Any
    model_id: str
    """Empty in processes other than the main one, which alone speaks to MLflow."""
    digest: str
    name: str = ""
    """What people call it: name and version of the registry, hub name, or the directory's."""
    ends: tuple[int, ...] = ()
    """Tokens that end a completion."""
    context: int | None = None
    """Longest text in tokens, where the configuration states it."""
    probes: tuple[Probe, ...] = ()
    """The recipe's probes; none in processes other than the main one."""

    what: str = "the chat template"
    """Whose chat template it is, for what is said of it."""


def open_base(stage: OpenStage) -> OpenBase:
    """Find the recipe's base, and link it to the run as its input (once for each content).

    With the recipe's own template or end token, it is opened from the output directory, where
    these stand in place of the base's. Raises ScalpelError where the template does not take the
    recipe's system prompt, or the probes: no model is loaded before.
    """
    from transformers import AutoConfig

    recipe: TrainingRecipe = stage.recipe
    base = resolve(recipe.model)
    # Processes that share the directory must not write it at the same time.
    own = stage.output / (BASE if stage.run_id else f"{BASE}-{os.environ.get('RANK', '0')}")
    directory = with_chat(base, own, recipe.chat_template, recipe.eos_token)
    with refused(recipe.model):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    tokenizer = load_tokenizer(directory, recipe.template_date)
    opened = OpenBase(
        directory,
        tokenizer,
        model_id="",
        digest="",
        ends=tuple(end_tokens(directory, tokenizer)),
        context=context_of(config),
        what=f"the chat template of {'the recipe' if recipe.chat_template else recipe.model}",
    )
    check_system_prompt(tokenizer, recipe.system_prompt, what=opened.what)
    if not stage.run_id:
        return opened
    model = log_base(recipe.model)
    return replace(
        opened,
        model_id=model.model_id,
        digest=model.params["digest"],
        name=base_name(model, recipe.model),
        probes=tuple(open_probe(name, recipe, opened, stage.run_id) for name in recipe.probes),
    )


def base_name(model: LoggedModel, source: str) -> str:
    """What people call a base: NAME/VERSION where it is registered, else what `source` names.

    (`source` may be a models:/ URI of an ID, which says nothing; then it is the model's name.)
    """
    registered = json.loads(model.tags.get("mlflow.modelVersions", "[]"))
    if registered:
        return "{name}/{version}".format(**registered[0])
    if source.startswith(("models:/", "runs:/")):
        return str(model.name)
    return Path(source).resolve().name if Path(source).is_dir() else source


def follow(
    trainer: Any,
    stage: OpenStage,
    base: OpenBase,
    algorithm: str,
    pool: Pool,
    rewards: Rewards | None = None,
) -> Path | None:
    """Have every checkpoint of the trainer logged and measured; where training is to go on from.

    That is None for a run that begins, and the newest whole checkpoint of one that is taken up.
    """
    from accelerate.utils import broadcast_object_list
    from transformers import PrinterCallback

    from mlflow_scalpel.checkpoints.logging.uploads import uploader_for
    from mlflow_scalpel.training.callback import BarrierCallback, CheckpointCallback
    from mlflow_scalpel.training.freezing import apply_freeze
    from mlflow_scalpel.training.journal import Journal
    from mlflow_scalpel.training.resume_point import Past

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
    uploader, past = uploader_for(stage.run_id, stage.output), Past()
    if stage.resumed:
        uploader.drain()  # what the killed process had not sent yet
        chosen[0], past = _take_up(stage)
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
            past=past,
            rewards=rewards,
        )
    )
    return chosen[0]


def _take_up(stage: OpenStage) -> tuple[Path | None, Past]:
    """Where a run that was killed goes on from, and what it has left; what is broken is removed."""
    from mlflow_scalpel.training.resume_point import newest_whole, past_of, remove_broken, seam_of

    from_here = newest_whole(stage.output, stage.recipe.processes)
    past = past_of(stage.run_id, from_here)
    mlflow.set_tags(seam_tag(stage.run_id, seam_of(past)))
    for directory in remove_broken(stage.output, stage.recipe.processes):
        print(f"{directory}: was cut off while it was written, and is made again")
    print(f"run {stage.run_id} goes on from step {past.step}", flush=True)
    return from_here, past


def check_spread(sharding: str | None, kind: str) -> None:
    """Raise ScalpelError where accelerate has left out the sharding that the recipe asks for.

    `kind` is the name of its distributed type; on a CPU it goes on with a whole copy in each
    process, and says nothing.
    """
    if sharding is not None and kind not in ("FSDP", "DEEPSPEED"):
        raise ScalpelError(
            f"sharding = {sharding}: accelerate runs the processes as {kind}, each with a whole "
            "copy of the model, as it does without a GPU; set sharding=null, or run it on GPUs"
        )


def open_comparison(recipe: TrainingRecipe, base: OpenBase) -> Comparison:
    """The base, ready to have checkpoints measured against it on the recipe's probes."""
    measured = MeasuredModel(base.directory, base.model_id, base.digest, step=0)
    metrics = [*recipe.metrics, *recipe.rare_metrics]
    return Comparison(measured, base.probes, metrics, token_tables=True)


def open_probe(name: str, recipe: TrainingRecipe, base: OpenBase, run_id: str = "") -> Probe:
    """The probe `name` of the recipe, rendered with its system prompt.

    What may be wrong with it is told on the run.
    """
    rows = load_rows(recipe.probes[name], needs=("problem", "solution"))
    probe = build_probe(
        name,
        [(row["problem"], row["solution"]) for row in rows],
        base.tokenizer,
        earlier=[row[EARLIER] for row in rows],
        system_prompt=recipe.system_prompt,
        context=base.context,
    )
    for code, message in probe.warnings.items():
        warn(f"probe_{name}_{code}", message, run_id)
    return probe


def log_probe(probe: Probe) -> None:
    """The texts of a probe as an input of the active run.

    MLflow looks for a dataset and then makes it, so that of two runs that begin at the same time
    one may be refused: by then the other has made it, and it is found.
    """
    texts = pd.DataFrame(probe.pairs, columns=["problem", "solution"])
    dataset = from_pandas(texts, name=probe.name, digest=probe.digest)
    for last in (False, False, True):
        try:
            mlflow.log_input(dataset, context="probe")
            return
        except MlflowException as error:
            made = any(word in str(error).lower() for word in ("unique", "duplicate"))
            if last or not made:
                raise


def train(trainer: Any, from_checkpoint: Path | None) -> None:
    """Train from the beginning, or on from a checkpoint, up to the recipe's last step.

    Of a run that was killed after its last step, only what is done with the checkpoint is left:
    Transformers' own loop would train one step more before it looks at how many there are.
    """
    from transformers import TrainerState

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

    What a run that is taken up has of them stays as it is. `more` are other params.

    MLflow's charts write all params of a run beside each picture: with the 150 fields of
    TrainingArguments among them no picture is left to see.
    """
    recipe: TrainingRecipe = stage.recipe
    known = MlflowClient().get_run(stage.run_id).data.params
    mlflow.log_dict(arguments.to_dict(), ARGUMENTS)
    apart = {"dtype", "num_train_epochs", "logging_steps", "freeze", "lr_scheduler_kwargs"}
    told = recipe.train.model_dump(exclude=apart)
    if recipe.train.lr_scheduler_kwargs:
        told["lr_scheduler_type"] += f" {recipe.train.lr_scheduler_kwargs}"
    unused = "vllm_" if not told.get("use_vllm") else None
    params = {
        **{name: value for name, value in told.items() if not _begins(name, unused)},
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
