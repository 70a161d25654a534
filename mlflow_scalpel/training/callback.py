"""Logs each checkpoint the moment it is saved, and measures it against the base right there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import Metric
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_scalpel.checkpoints import log_checkpoint
from mlflow_scalpel.comparison import Comparison, Subject, tidy
from mlflow_scalpel.comparison.store import log_table
from mlflow_scalpel.recipes.training import TrainingRecipe
from mlflow_scalpel.training.arguments import problems_a_step, sequences_a_step
from mlflow_scalpel.training.cost import UNITS, Cost, estimate_flops
from mlflow_scalpel.training.session import OpenBase
from mlflow_scalpel.training.summary import heatmap_image, summarise

if TYPE_CHECKING:
    from mlflow_scalpel.training.rewards import Rewards  # needs math-verify, which SFT does not

WARNING_TAG = "scalpel.warning"


class CheckpointCallback(TrainerCallback):
    """One LoggedModel, one registered version and one set of measurements a saved checkpoint.

    Acts in the main process only. Step 0 is the base, measured like every checkpoint.
    """

    def __init__(
        self,
        recipe: TrainingRecipe,
        base: OpenBase,
        comparison: Comparison,
        *,
        run_id: str,
        algorithm: str,
        problems: int,
        tokens_seen: Callable[[], int],
        rewards: Rewards | None = None,
    ) -> None:
        self._recipe = recipe
        self._base = base
        self._comparison = comparison
        self._run_id = run_id
        self._algorithm = algorithm
        self._problems = problems
        self._tokens_seen = tokens_seen
        self._rewards = rewards
        self._client = MlflowClient()
        self._learning_rate_sum = 0.0
        self._parameters = self._steps = 0
        self._began = self._measuring = 0.0
        self._tables: list[pd.DataFrame] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        self._began = time.monotonic()
        embedded = model.get_input_embeddings().weight.numel()
        self._parameters = sum(weight.numel() for weight in model.parameters()) - embedded
        self._steps = state.max_steps
        if state.is_world_process_zero:
            for probe in self._comparison.probes:
                texts = pd.DataFrame(probe.pairs, columns=["problem", "solution"])
                dataset = from_pandas(texts, name=probe.name, digest=probe.digest)
                mlflow.log_input(dataset, context="probe")
            self._measure(self._base.directory, self._base.model_id, self._base.digest, 0)

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

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        started = time.monotonic()
        step = state.global_step
        directory = Path(str(args.output_dir)) / f"checkpoint-{step}"
        model = log_checkpoint(
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
            },
            register_as=self._recipe.checkpoints.registered_model.format(
                recipe=self._recipe.name,
                algorithm=self._algorithm,
                base=Path(self._recipe.model).name,
            ),
        )
        self._measuring += time.monotonic() - started
        self._measure(directory, model.model_id, model.params["digest"], step)
        warning = self._rewards.warning() if self._rewards else None
        if warning:
            print(f"WARNING: {warning}")
        self._client.set_tag(self._run_id, WARNING_TAG, warning or "none")

    def _measure(self, directory: Path, model_id: str, digest: str, step: int) -> None:
        """Measure one checkpoint, and log the summary, the picture and the table so far."""
        started = time.monotonic()
        subject = Subject(
            directory,
            model_id,
            digest,
            step,
            self._run_id,
            self._algorithm,
            self._learning_rate_sum,
        )
        measured = self._comparison.measure(subject)
        summary = summarise(measured)
        image = heatmap_image(measured, step, self._recipe.heatmap_maximum)
        mlflow.log_image(image, key="weights/relative_frobenius", step=step)
        cost = self._cost(step, self._measuring + time.monotonic() - started).metrics()
        self._log_metrics({**summary, **cost}, step, model_id)
        mlflow.log_table(
            {"step": [step], "algorithm": [self._algorithm]}
            | {name: [value] for name, value in {**summary, **cost}.items()},
            "scalpel/summary.json",
            run_id=self._run_id,
        )
        told = ("kl/all_tokens", "weights/relative_frobenius/mean")
        shown = [f"{name} {value:.3g}" for name, value in summary.items() if name.startswith(told)]
        print(f"step {step}/{self._steps}: {'  '.join(shown)}", flush=True)
        self._tables += [measured, self._cost_table(cost, subject)]
        log_table(pd.concat(self._tables, ignore_index=True), self._run_id)
        self._measuring += time.monotonic() - started

    def _log_metrics(self, values: dict[str, float], step: int, model_id: str) -> None:
        now = int(time.time() * 1000)
        digests = {probe.name: probe.digest for probe in self._comparison.probes}
        metrics = []
        for key, value in values.items():
            texts = key.rsplit("/", 1)[1] if key.startswith("kl/") else None
            metrics.append(
                Metric(
                    key,
                    value,
                    now,
                    step,
                    model_id=model_id,
                    dataset_name=texts,
                    dataset_digest=digests[texts] if texts else None,
                    run_id=self._run_id,
                )
            )
        self._client.log_batch(self._run_id, metrics=metrics)

    def _cost(self, step: int, measuring_seconds: float) -> Cost:
        trained = self._tokens_seen()
        # The rewards see this process's share of the completions, and every share is as large.
        generated = self._rewards.tokens_generated * self._recipe.processes if self._rewards else 0
        return Cost(
            sequences=step * sequences_a_step(self._recipe),
            unique_problems=min(step * problems_a_step(self._recipe), self._problems),
            tokens_trained=trained,
            tokens_generated=generated,
            flops=estimate_flops(self._parameters, trained, trained if self._rewards else 0),
            wall_seconds=time.monotonic() - self._began,
            measuring_seconds=measuring_seconds,
        )

    def _cost_table(self, cost: dict[str, float], subject: Subject) -> pd.DataFrame:
        return tidy(
            {
                "base": self._base.model_id,
                "base_digest": self._base.digest,
                "model_id": subject.model_id,
                "model_digest": subject.digest,
                "run_id": self._run_id,
                "algorithm": self._algorithm,
                "step": subject.step,
                "metric": name,
                "metric_version": 1,
                "value": value,
                "unit": UNITS[name],
            }
            for name, value in cost.items()
        )
