"""Logs each checkpoint as soon as it is saved, and measures it against the base at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from mlflow_scalpel.checkpoints.logging.log import log_checkpoint
from mlflow_scalpel.checkpoints.logging.uploads import (
    LOST_WARNING,
    Upload,
    failed_uploads,
    lost_message,
)
from mlflow_scalpel.comparison.engine import Comparison
from mlflow_scalpel.comparison.measured_models import MeasuredModel
from mlflow_scalpel.comparison.run_store import summarise, unmeasured
from mlflow_scalpel.comparison.table import tidy
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics.registry import GROUPS
from mlflow_scalpel.recipes.training import GrpoRecipe, TrainingRecipe
from mlflow_scalpel.training.alarms import AlarmMonitor
from mlflow_scalpel.training.base import OpenBase, log_probe
from mlflow_scalpel.training.cost import UNITS, CostMeter
from mlflow_scalpel.training.freezing import METRIC, UNIT, changed_elements, complaint
from mlflow_scalpel.training.journal import Journal, numbers
from mlflow_scalpel.training.resume_point import ResumePoint, keep_newest

if TYPE_CHECKING:
    from mlflow_scalpel.training.rewards.monitor import (
        RewardMonitor,
    )  # needs math-verify, which SFT does not


class BarrierCallback(TrainerCallback):
    """Holds every process at a save until all have written their part of the checkpoint.

    Else the main one logs, and drops the checkpoint before, while the others still write.
    """

    def __init__(self, wait_for_everyone: Callable[[], None]) -> None:
        self._wait_for_everyone = wait_for_everyone

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._wait_for_everyone()


class CheckpointCallback(TrainerCallback, ExportableState):
    """One LoggedModel, one registered version and one set of measurements per saved checkpoint.

    Acts in the main process only. Step 0 is the base, measured like every checkpoint. Everything
    goes to MLflow by way of an uploader: training waits for no server.
    """

    def __init__(
        self,
        recipe: TrainingRecipe,
        base: OpenBase,
        comparison: Comparison,
        journal: Journal,
        *,
        run_id: str,
        algorithm: str,
        problems: int,
        frozen: list[str],
        resumed: ResumePoint,
        rewards: RewardMonitor | None = None,
    ) -> None:
        self._recipe = recipe
        self._base = base
        self._comparison = comparison
        self._journal = journal
        self._run_id = run_id
        self._algorithm = algorithm
        self._frozen = frozen
        self._resumed = resumed
        self._rewards = rewards
        self._meter = CostMeter(recipe, problems, rewards)
        self._learning_rate_sum = 0.0
        self._steps = 0
        self._logs_of_save: dict[str, float] = {}
        self._uploads: dict[int, Upload] = {}
        self._lost: dict[int, str] = {}
        self._tables = [] if resumed.table is None else [resumed.table]
        self._summary = list(resumed.summary)
        self._unidentified = False
        self._monitor = AlarmMonitor(recipe.alarms) if isinstance(recipe, GrpoRecipe) else None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        self._meter.begin(model)
        self._steps = state.max_steps
        if state.global_step > 0:
            self._restore(state)
        if not state.is_world_process_zero:
            return
        if self._meter.size.unknown:
            message = f"cost/flops is too high: {'; '.join(self._meter.size.notes)}"
            self._journal.warnings({"flops": message}, self._run_id)
        if self._monitor is not None:
            for entry in state.log_history:  # of a run that is resumed
                self._monitor.see(int(entry["step"]), entry)
        for probe in self._comparison.probes:
            log_probe(probe)
        self._meter.tokens_seen = state.num_input_tokens_seen
        if not self._resumed.is_measured(0):
            self._measure(self._base.directory, 0)
        if state.global_step > 0 and not self._resumed.is_measured(state.global_step):
            # The kill came between the save and what is done with it.
            self._logs_of_save = self._unsent_logs(state)
            self._log_and_measure(_directory(args, state), state)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        # Here the scheduler has not moved on yet: this is the rate that the step was taken with.
        self._learning_rate_sum += float(optimizer.param_groups[0]["lr"])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        step = state.global_step
        if not state.is_world_process_zero:
            return
        values = numbers(logs or {}, state)
        fatal = self._check_alarms(values, step)
        if step <= self._resumed.logged_until:
            return
        if control.should_save and fatal is None:
            self._logs_of_save = values  # logged in a moment, with the checkpoint's model
        else:
            self._journal.metrics(values, step)
        if fatal is not None:  # before a checkpoint of this step is saved
            raise ScalpelError(fatal)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero:
            waiting = self._journal.uploader.waiting_checkpoints()
            in_place = [Path(entry.source) for entry in waiting if not entry.snapshot]
            keep_newest(Path(str(args.output_dir)), self._recipe.checkpoints.keep_local, in_place)
            self._log_and_measure(_directory(args, state), state)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        self._journal.uploader.drain()
        self._warn_of_lost()
        if self._unidentified:  # now every model is known
            self._journal.table(self._table())
        self._journal.uploader.drain()
        if self._lost and len(self._lost) == len(self._uploads) and not self._resumed.stored:
            raise ScalpelError(lost_message(self._lost, 0))

    def _warn_of_lost(self) -> None:
        """Warn on the run of the checkpoints that could not be stored so far."""
        self._lost = failed_uploads(self._uploads)
        if self._lost:
            stored = len(self._uploads) - len(self._lost) + len(self._resumed.stored)
            self._journal.warnings({LOST_WARNING: lost_message(self._lost, stored)}, self._run_id)

    def state(self) -> dict[str, Any]:
        """What the trainer keeps in a checkpoint's trainer_state.json for this callback."""
        return {
            "learning_rate_sum": self._learning_rate_sum,
            **self._meter.state(),
        }

    def _restore(self, state: TrainerState) -> None:
        saved: Any = state.stateful_callbacks  # name of the class -> what `state` gave
        kept: dict[str, Any] = saved[type(self).__name__]
        self._learning_rate_sum = kept["learning_rate_sum"]
        self._meter.restore(kept)

    def _unsent_logs(self, state: TrainerState) -> dict[str, float]:
        """What was logged at the step of this checkpoint, where MLflow does not have it."""
        if state.global_step <= self._resumed.logged_until:
            return {}
        logs = next(
            (entry for entry in state.log_history if entry["step"] == state.global_step), {}
        )
        return numbers({key: value for key, value in logs.items() if key != "step"}, state)

    def _log_and_measure(self, directory: Path, state: TrainerState) -> None:
        """Log the checkpoint of this step, and measure it."""
        step = state.global_step
        self._meter.tokens_seen = state.num_input_tokens_seen
        started = time.monotonic()
        if step not in self._resumed.stored:
            self._uploads[step] = self._log(directory, step)
        if self._logs_of_save:
            self._journal.metrics(self._logs_of_save, step, self._uploads.get(step))
            self._logs_of_save = {}
        self._meter.measuring += time.monotonic() - started
        if not self._resumed.is_measured(step):
            self._measure(directory, step)
        if self._recipe.checkpoints.best is not None:
            self._journal.best(self._recipe.checkpoints.best, self._recipe.checkpoints.best_is)
        self._warn_of_lost()
        warnings = self._rewards.warnings() if self._rewards else {}
        if self._monitor is not None:
            warnings["unfinished"] = self._monitor.unfinished() if step == self._steps else None
        self._journal.warnings(warnings, self._run_id)

    def _check_alarms(self, values: dict[str, float], step: int) -> str | None:
        """Warn of what goes wrong, add the levels to the values; what the run is to fail with."""
        if self._monitor is None:
            return None
        fatal = None
        for alarm in self._monitor.see(step, values):
            print(f"WARNING: {alarm.name} at step {step}: {alarm.message}", flush=True)
            self._journal.tags(alarm.tag)
            if fatal is None and alarm.name in self._monitor.settings.stop:
                stored = (one for one in (*self._uploads, *self._resumed.stored) if one < step)
                fatal = (
                    f"{alarm.name} at step {step}: {alarm.message}. The recipe stops the run at it "
                    "(alarms.stop); the last checkpoint before it is that of step "
                    f"{max(stored, default=0)}"
                )
        values |= self._monitor.levels
        return fatal

    def _log(self, directory: Path, step: int) -> Upload:
        checkpoints = self._recipe.checkpoints
        return log_checkpoint(
            directory,
            step=step,
            base=self._base.model_id,
            run_id=self._run_id,
            name=f"{self._recipe.name}-{self._algorithm}-step-{step:06d}",
            params={
                "algorithm": self._algorithm,
                "recipe": self._recipe.name,
                "learning_rate": self._recipe.train.learning_rate,
                "learning_rate_sum": self._learning_rate_sum,
                "dtype": self._recipe.train.dtype,
                "max_steps": self._steps,
            },
            register_as=checkpoints.registered_model.format(
                recipe=self._recipe.name,
                algorithm=self._algorithm,
                base=Path(self._recipe.model).name,
            ),
            link=checkpoints.link,
            trainer_state=checkpoints.trainer_state,
        )

    def _measure(self, directory: Path, step: int) -> None:
        """Measure one checkpoint, and log the summary, the picture and the table so far."""
        started = time.monotonic()
        model = MeasuredModel(
            directory, "", "", step, self._run_id, self._algorithm, self._learning_rate_sum
        )
        measured = self._comparison.measure(model, without=self._left_out(step))
        if model in self._comparison.tokens:
            self._journal.tokens(self._comparison.tokens[model], step)
        summary = summarise(measured)
        self._journal.heatmap(measured, step, self._recipe.heatmap_maximum)
        frozen = self._frozen if step > 0 else []  # step 0 is the base itself
        changed = changed_elements(self._base.directory, directory, frozen)
        if self._frozen:
            summary[METRIC] = float(sum(changed.values()))
        fatal = self._check_alarms(summary, step)
        cost = self._meter.cost(step, also_measuring=time.monotonic() - started).metrics()
        probes = {probe.name: (probe.name, probe.digest) for probe in self._comparison.probes}
        measured_on = {
            key: probes[key.rsplit("/", 1)[1]] for key in summary if key.startswith("kl/")
        }
        logged = self._uploads.get(step) or (self._base.model_id if step == 0 else None)
        self._journal.metrics({**summary, **cost}, step, logged, measured_on)
        self._summary.append({"step": step, "algorithm": self._algorithm, **summary, **cost})
        self._journal.summary(self._summary)
        printed = ("kl/all_tokens", "weights/relative_frobenius/mean")
        shown = [f"{key} {value:.3g}" for key, value in summary.items() if key.startswith(printed)]
        print(f"step {step}/{self._steps}: {'  '.join(shown)}", flush=True)
        self._tables += [measured, self._count_table(cost, step)]
        if self._frozen:
            counted = {METRIC: summary[METRIC]}
            self._tables.append(self._count_table(counted, step, n=len(self._frozen)))
        self._journal.table(table := self._table())
        self._journal.warnings({"not_measured": unmeasured(table)}, self._run_id)
        self._meter.measuring += time.monotonic() - started
        if fatal is not None:
            raise ScalpelError(fatal)
        if changed:  # once it is on record
            raise ScalpelError(complaint(changed, step))

    def _left_out(self, step: int) -> set[str]:
        """Groups that are not measured at this step."""
        if step == 0:  # the base has no update, whose spectrum or histogram could be drawn
            return set(GROUPS) - {"weights", "kl"}
        recipe = self._recipe
        number = math.ceil(step / recipe.checkpoints.save_steps(self._steps))
        if number % recipe.rare_every == 0 or step == self._steps:
            return set()
        return {name.partition("/")[0] for name in recipe.rare_metrics}

    def _table(self) -> pd.DataFrame:
        """All rows so far, with the model of each step as far as it is known."""
        table = pd.concat(self._tables, ignore_index=True)
        known = {0: (self._base.model_id, self._base.digest), **self._resumed.stored}
        for step, upload in self._uploads.items():
            known[step] = (upload.model_id or "", upload.digest or "")
        self._unidentified = any("" in names for names in known.values())
        for step, (model_id, digest) in known.items():
            table.loc[table["step"] == step, ["model_id", "model_digest"]] = model_id, digest
        return table

    def _count_table(
        self, counts: dict[str, float], step: int, n: int | None = None
    ) -> pd.DataFrame:
        return tidy(
            {
                "base": self._base.model_id,
                "base_digest": self._base.digest,
                "run_id": self._run_id,
                "algorithm": self._algorithm,
                "step": step,
                "metric": name,
                "metric_version": 1,
                "value": value,
                "n": n,
                "unit": UNITS.get(name, UNIT),
            }
            for name, value in counts.items()
        )


def _directory(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
