"""The plan of an evaluation, and its scores in MLflow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from mlflow_scalpel.chat import DEFAULT_DATE, stored_eos, stored_template, with_chat
from mlflow_scalpel.checkpoints.logging.log import log_base
from mlflow_scalpel.checkpoints.reading.pull import resolve
from mlflow_scalpel.checkpoints.search import Checkpoint, checkpoints_of_run
from mlflow_scalpel.comparison.capabilities import capability_table, ledger
from mlflow_scalpel.comparison.forward.probes import text_digest
from mlflow_scalpel.comparison.gather import measured_checkpoint, opened, readable
from mlflow_scalpel.comparison.measured_models import MeasuredModel, model_cells
from mlflow_scalpel.comparison.run_queries import EVALUATED_RUN_TAG, LEDGER, SAMPLES, trained_prompt
from mlflow_scalpel.comparison.run_store import get_run, log_rows, log_summary, log_table
from mlflow_scalpel.comparison.table import tidy
from mlflow_scalpel.errors import RecipeError, ScalpelError
from mlflow_scalpel.recipes.measuring import EvaluateRecipe

if TYPE_CHECKING:
    from mlflow_scalpel.evaluation.harness import Evaluation
    from mlflow_scalpel.evaluation.suite import Suite

METRIC_VERSION = 1
SUITE = "scalpel/suite.yaml"


@dataclass(frozen=True)
class Plan:
    """The models of one evaluation: number 0 is the base, the checkpoints follow."""

    base: MeasuredModel
    """The base of a run, or the one model that is evaluated."""
    system_prompt: str | None
    template_date: date = DEFAULT_DATE
    run: Run | None = None
    checkpoints: list[Checkpoint] = field(default_factory=list)
    """In order of step."""

    @property
    def models(self) -> list[MeasuredModel]:
        """All models; the files of the checkpoints may be elsewhere."""
        if self.run is None:
            return [self.base]
        return [
            self.base,
            *(measured_checkpoint(c, self.run, files=False) for c in self.checkpoints),
        ]

    @contextmanager
    def opened(self, number: int) -> Iterator[MeasuredModel]:
        """A model with its files on this machine as long as it is open."""
        if number == 0:
            yield self.base
            return
        assert self.run is not None  # whose checkpoint it is
        with opened(self.checkpoints[number - 1], self.run) as model:
            yield model


def plan_evaluation(recipe: EvaluateRecipe, output: Path) -> Plan:
    """Find what the recipe names: one model, or a run's base and some of its checkpoints.

    A run's models are all asked with the chat template that it was trained with; `output` is where
    a base that has another one gets it.
    """
    if recipe.run is not None:
        return _plan_run(recipe, recipe.run, output)
    if recipe.model is not None:
        logged = log_base(recipe.model)
        digest = logged.params["digest"]
        model = MeasuredModel(resolve(recipe.model), logged.model_id, digest, step=0)
        return Plan(model, recipe.system_prompt, recipe.template_date or DEFAULT_DATE)
    raise RecipeError(
        "neither model nor run is given, so there is nothing to evaluate; "
        'give one with -P set="run=RUN_ID" or -P set="model=models:/NAME/VERSION"'
    )


def _plan_run(recipe: EvaluateRecipe, run_id: str, output: Path) -> Plan:
    run = get_run(run_id)
    base, found = checkpoints_of_run(run_id)
    if base is None:
        raise ScalpelError(f"run {run_id} ({run.info.run_name}) names no base among its inputs")
    complete = readable(found, run_id)
    chosen = _choose(len(complete), recipe.checkpoints)
    system_prompt = recipe.system_prompt
    if system_prompt is None:
        system_prompt = trained_prompt(run)
    trained = run.data.params.get("template_date")
    template_date = recipe.template_date or (
        DEFAULT_DATE if trained is None else date.fromisoformat(trained)
    )
    mlflow.set_tag(EVALUATED_RUN_TAG, run_id)
    checkpoints = [complete[index] for index in chosen]
    model = _as_trained(measured_checkpoint(base, run), run, checkpoints, output / "base")
    return Plan(model, system_prompt, template_date, run, checkpoints)


def _as_trained(
    base: MeasuredModel, run: Run, checkpoints: list[Checkpoint], into: Path
) -> MeasuredModel:
    """The base with the chat template and the end token that the run's checkpoints have."""
    if all(run.data.params.get(name) == "none" for name in ("chat_template", "eos_token")):
        return base  # the run says that they are the base's
    for one in checkpoints:
        try:
            with opened(one, run) as model:
                complete = model.complete()
                template, eos = stored_template(complete), stored_eos(complete)
        except ScalpelError:
            continue  # it will be a gap
        of_base = base.complete()
        other = template if template != stored_template(of_base) else None
        end = eos if eos != stored_eos(of_base) else None
        return replace(base, directory=with_chat(of_base, into, other, end), adapted=None)
    return base


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


def result_file(folder: Path, model: MeasuredModel) -> Path:
    """The path of a model's result in a folder of results."""
    return folder / f"{model.model_id}.parquet"


def log_suite(suite: Suite, plan: Plan, engine: str = "hf") -> None:
    """Keep what a score hangs on beside it: every task's settings, prompt, engine, versions."""
    mlflow.log_dict(_settings(suite, plan, engine), SUITE)


def resume_suite(suite: Suite, plan: Plan, run_id: str, engine: str = "hf") -> Plan:
    """The plan that the run was begun with, for `plan`, which was made anew.

    (Training may have added checkpoints since.) Raises ScalpelError where a result would not be
    comparable with those that are there: suite, prompt, versions or models are others.
    """
    folder, _ = SUITE.rsplit("/", 1)
    if SUITE not in {file.path for file in MlflowClient().list_artifacts(run_id, folder)}:
        log_suite(suite, plan, engine)  # it was killed before
        return plan
    before = yaml.safe_load(mlflow.artifacts.load_text(f"runs:/{run_id}/{SUITE}"))
    begun = before["models"]
    known = {model.model_id: number for number, model in enumerate(plan.models)}
    missing = [model for model in begun if model not in known]
    if missing or begun[0] != plan.base.model_id:
        raise ScalpelError(
            f"resume = {run_id}: the evaluation was begun with the model {(missing or begun)[0]}, "
            "which is not among what its recipe names now; start a new evaluation"
        )
    checkpoints = [plan.checkpoints[known[model] - 1] for model in begun[1:]]
    plan = replace(plan, checkpoints=checkpoints)
    now = _settings(suite, plan, engine)
    for name in dict.fromkeys([*before, *now]):
        if before.get(name) != now.get(name):
            raise ScalpelError(
                f"resume = {run_id}: {name} of the suite {suite.name} has changed since the "
                f"evaluation was begun (artifact {SUITE}): {_difference(before, now, name)}; put "
                "it back, or start a new evaluation"
            )
    return plan


def _settings(suite: Suite, plan: Plan, engine: str) -> dict[str, Any]:
    packages = ("lm_eval", "math-verify", "latex2sympy2_extended", "transformers", "torch")
    versions = {name: version(name) for name in packages}
    if engine == "vllm":
        from mlflow_scalpel.evaluation.vllm_engine import vllm_version

        versions |= [vllm_version()]
    return {
        **suite.model_dump(mode="json"),
        "system_prompt": plan.system_prompt,
        "template_date": plan.template_date.isoformat(),
        "chat_template": text_digest(stored_template(plan.base.complete()) or ""),
        "engine": engine,
        "versions": versions,
        "models": [model.model_id for model in plan.models],
    }


def _difference(before: dict[str, Any], now: dict[str, Any], name: str) -> str:
    """Old and new value of the first field that differs, within a section of settings."""
    old, new = before.get(name), now.get(name)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = next((a, b) for a, b in zip(old, new, strict=True) if a != b)
    if isinstance(old, dict) and isinstance(new, dict):
        key = next(key for key in [*old, *new] if old.get(key) != new.get(key))
        return f"{key} was {old.get(key)!r}, and is {new.get(key)!r}"
    return f"was {old!r}, and is {new!r}"


def score_table(
    evaluation: Evaluation, model: MeasuredModel, plan: Plan, dtype: str
) -> pd.DataFrame:
    """The scores of one model as a tidy table; one that graded no problem says so.

    A group of tasks has a second row, `lm_eval/...`: the number that lm-eval gives it.
    """
    rows = []
    for score in evaluation.scores:
        cells = {"metric": score.metric, "unit": score.unit, "n": score.n}
        if not score.chat_template:
            cells["reason"] = "prompts without the chat template"
        if score.n:
            cells |= {"value": score.value, "stderr": score.stderr}
        else:
            why = f"none of the {score.ungraded + score.not_graded} problems was graded"
            cells |= {"status": "undefined", "reason": why}
        rows.append({**_shared_cells(model, plan, dtype), **cells})
        if score.n and score.group is not None:
            one = score.group
            name = lm_eval_name(score.metric)
            reason = f"as lm-eval makes one number of {one.tasks} tasks; {score.metric} is the mean"
            reason += " over all problems, with its error over them"
            as_lm_eval = {
                "metric": name,
                "value": one.value,
                "stderr": one.stderr,
                "reason": reason,
            }
            rows.append({**_shared_cells(model, plan, dtype), **cells, **as_lm_eval})
    return tidy(rows)


def lm_eval_name(metric: str) -> str:
    """`lm_eval/<domain>/<label>/<kind>`, of what lm-eval itself gives a group of tasks."""
    return metric.replace("eval/", "lm_eval/", 1)


def gap_table(
    suite: Suite, reason: str, model: MeasuredModel, plan: Plan, dtype: str
) -> pd.DataFrame:
    """The rows of a checkpoint that could not be measured, one row per score that is missing."""
    gap = {"unit": "accuracy", "status": "not measured", "reason": reason}
    shared = _shared_cells(model, plan, dtype)
    return tidy({**shared, "metric": task.metric_name, **gap} for task in suite.tasks)


def _shared_cells(model: MeasuredModel, plan: Plan, dtype: str) -> dict[str, Any]:
    return {
        **model_cells(plan.base, model),
        "metric_version": METRIC_VERSION,
        "dtype": dtype,
    }


def rows_of(evaluation: Evaluation, model: MeasuredModel) -> pd.DataFrame:
    """The evaluation's rows with the model that answered."""
    return evaluation.samples.assign(
        step=model.step, model_id=model.model_id, model_digest=model.digest
    )


def log_results(
    scores: list[pd.DataFrame],
    samples: list[pd.DataFrame],
    models: list[MeasuredModel],
    dtype: str,
) -> None:
    """Store scores, evaluation rows, and what base and checkpoints can do, on the active run.

    `samples` and `models` have an entry a model that was measured, the base first; with the base
    alone there is no ledger.
    """
    run = mlflow.active_run()
    assert run is not None  # the stage has opened one
    rows = pd.concat(samples, ignore_index=True)
    base, checkpoints = models[0], models[1:]
    if checkpoints:
        capabilities = capability_table(rows, base, checkpoints, dtype=dtype)
        scores = [*scores, capabilities]
        log_summary(capabilities, run.info.run_id)
        log_rows(ledger(rows, base, checkpoints), run.info.run_id, LEDGER)
    log_table(pd.concat(scores, ignore_index=True), run.info.run_id)
    log_rows(rows, run.info.run_id, SAMPLES)
