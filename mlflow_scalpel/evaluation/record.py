"""What is evaluated, and how its scores get into MLflow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric, Run

from mlflow_scalpel.checkpoints import Checkpoint, checkpoints_of_run, log_base, resolve
from mlflow_scalpel.comparison import Subject, tidy
from mlflow_scalpel.comparison.capabilities import capability_table, ledger
from mlflow_scalpel.comparison.store import (
    get_run,
    log_rows,
    log_summary,
    log_table,
    opened,
    readable,
    subject_of,
)
from mlflow_scalpel.comparison.stored import EVALUATED_RUN_TAG, LEDGER, SAMPLES
from mlflow_scalpel.errors import RecipeError, ScalpelError
from mlflow_scalpel.recipes.measuring import EvaluateRecipe

if TYPE_CHECKING:
    from mlflow_scalpel.evaluation.harness import Evaluation
    from mlflow_scalpel.evaluation.suite import Suite

METRIC_VERSION = 1
SUITE = "scalpel/suite.yaml"


@dataclass(frozen=True)
class Plan:
    """The models of one evaluation."""

    base: Subject
    """The base of a run, or the one model that is evaluated."""
    system_prompt: str | None
    run: Run | None = None
    checkpoints: list[Checkpoint] = field(default_factory=list)
    """In order of step."""

    def subjects(self) -> Iterator[Subject]:
        """The base, then each checkpoint, whose files are on this machine until the next one."""
        yield self.base
        if self.run is not None:
            yield from opened(self.checkpoints, self.run)


def plan_evaluation(recipe: EvaluateRecipe) -> Plan:
    """Find what the recipe names: one model, or a run's base and some of its checkpoints."""
    if recipe.run is not None:
        return _plan_run(recipe, recipe.run)
    if recipe.model is not None:
        model = log_base(recipe.model)
        subject = Subject(resolve(recipe.model), model.model_id, model.params["digest"], step=0)
        return Plan(subject, recipe.system_prompt)
    raise RecipeError(
        "neither model nor run is given, so there is nothing to evaluate; "
        'give one with -P set="run=RUN_ID" or -P set="model=models:/NAME/VERSION"'
    )


def _plan_run(recipe: EvaluateRecipe, run_id: str) -> Plan:
    run = get_run(run_id)
    base, found = checkpoints_of_run(run_id)
    if base is None:
        raise ScalpelError(f"run {run_id} ({run.info.run_name}) names no base among its inputs")
    whole = readable(found, run_id)
    chosen = _choose(len(whole), recipe.checkpoints)
    trained_with = run.data.params.get("system_prompt", "none")
    system_prompt = recipe.system_prompt or (None if trained_with == "none" else trained_with)
    mlflow.set_tag(EVALUATED_RUN_TAG, run_id)
    return Plan(subject_of(base, run), system_prompt, run, [whole[index] for index in chosen])


def _choose(count: int, which: str | int) -> list[int]:
    """Indices of the checkpoints that `which` asks for, of `count`."""
    if which == "all":
        return list(range(count))
    if which == "last":
        return [count - 1]
    if which == "first_and_last":
        return sorted({0, count - 1})
    wanted = min(int(which), count)
    return sorted({round((number + 1) * count / wanted) - 1 for number in range(wanted)})


def log_suite(suite: Suite, plan: Plan, engine: str = "hf") -> None:
    """Keep what a score hangs on beside it: every task's settings, prompt, engine, versions."""
    packages = ("lm_eval", "math-verify", "latex2sympy2_extended", "transformers", "torch")
    settings = suite.model_dump(mode="json")
    settings["system_prompt"] = plan.system_prompt
    settings["engine"] = engine
    settings["versions"] = {name: version(name) for name in packages}
    if engine == "vllm":
        from mlflow_scalpel.evaluation.vllm_engine import vllm_version

        settings["versions"] |= [vllm_version()]
    mlflow.log_dict(settings, SUITE)


def log_evaluation(
    evaluation: Evaluation, subject: Subject, plan: Plan, dtype: str
) -> pd.DataFrame:
    """Log each score with its standard error at the model's step, linked to the model.

    Returns the scores as a tidy table.
    """
    run = mlflow.active_run()
    assert run is not None  # the stage has opened one
    now = int(time.time() * 1000)
    values = {score.metric: score.value for score in evaluation.scores}
    values |= {f"{score.metric}_stderr": score.stderr for score in evaluation.scores}
    MlflowClient().log_batch(
        run.info.run_id,
        metrics=[
            Metric(key, value, now, subject.step or 0, model_id=subject.model_id)
            for key, value in values.items()
            if value == value
        ],
    )
    return tidy(
        {
            "base": plan.base.model_id,
            "base_digest": plan.base.digest,
            "model_id": subject.model_id,
            "model_digest": subject.digest,
            "run_id": subject.run_id,
            "algorithm": subject.algorithm,
            "step": subject.step,
            "metric": score.metric,
            "metric_version": METRIC_VERSION,
            "value": score.value,
            "stderr": score.stderr,
            "n": score.n,
            "unit": score.unit,
            "dtype": dtype,
        }
        for score in evaluation.scores
    )


def rows_of(evaluation: Evaluation, subject: Subject) -> pd.DataFrame:
    """The evaluation's rows with the model that answered."""
    return evaluation.samples.assign(
        step=subject.step, model_id=subject.model_id, model_digest=subject.digest
    )


def log_results(
    scores: list[pd.DataFrame], samples: list[pd.DataFrame], subjects: list[Subject], dtype: str
) -> None:
    """Store scores, evaluation rows, and what base and checkpoints can do, on the active run.

    Each list has an entry a model, the base first; with the base alone there is no ledger.
    """
    run = mlflow.active_run()
    assert run is not None  # the stage has opened one
    rows = pd.concat(samples, ignore_index=True)
    base, checkpoints = subjects[0], subjects[1:]
    if checkpoints:
        capabilities = capability_table(rows, base, checkpoints, dtype=dtype)
        scores = [*scores, capabilities]
        log_summary(capabilities, run.info.run_id)
        log_rows(ledger(rows, base, checkpoints), run.info.run_id, LEDGER)
    log_table(pd.concat(scores, ignore_index=True), run.info.run_id)
    log_rows(rows, run.info.run_id, SAMPLES)
