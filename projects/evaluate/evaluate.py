"""Scores a model, or the checkpoints of a run, with lm-eval: `mlflow run . -e evaluate`."""

from pathlib import Path

from mlflow_scalpel.evaluation.needs import check_installed
from mlflow_scalpel.evaluation.suite import load_suite
from mlflow_scalpel.stage import open_stage

HERE = Path(__file__).parent


def suite_of(recipe):
    check_installed(recipe)
    return load_suite(recipe.suite, HERE / "suites", recipe.data, recipe.samples)


with open_stage("evaluate", HERE / "recipes", check=suite_of) as stage:
    import mlflow

    from mlflow_scalpel.checkpoints.deliver import give_best
    from mlflow_scalpel.evaluation.gold import GoldAnswers
    from mlflow_scalpel.evaluation.harness import Evaluator
    from mlflow_scalpel.evaluation.record import (
        log_evaluation,
        log_results,
        log_suite,
        plan_evaluation,
        rows_of,
    )

    recipe = stage.recipe
    suite = suite_of(recipe)
    plan = plan_evaluation(recipe)
    mlflow.log_params(recipe.flat())
    log_suite(suite, plan, recipe.engine)
    evaluator = Evaluator(
        plan.base.directory,
        suite,
        system_prompt=plan.system_prompt,
        batch_size=recipe.batch_size,
        dtype=recipe.dtype,
        device=recipe.device,
        seed=recipe.seed,
        engine=recipe.engine,
        vllm_gpu_memory_utilization=recipe.vllm_gpu_memory_utilization,
    )
    golds = GoldAnswers(evaluator) if recipe.gold_loglik and plan.run is not None else None
    tables, samples, subjects = [], [], []
    for subject in plan.subjects():
        evaluator.load_weights(subject.directory)
        # With the base's seed an unchanged checkpoint would give the base's own samples.
        evaluation = evaluator.run(seed=recipe.seed + (subject.step or 0))
        tables.append(log_evaluation(evaluation, subject, plan, recipe.dtype))
        rows = rows_of(evaluation, subject)
        samples.append(rows if golds is None else golds.score(rows))
        subjects.append(subject)
        scores = "  ".join(f"{s.metric[5:]} {s.value:.2f}" for s in evaluation.scores)
        print(f"step {subject.step}: {scores}", flush=True)
    log_results(tables, samples, subjects, recipe.dtype)
    if recipe.best is not None and recipe.run is not None:
        give_best(mlflow.MlflowClient(), recipe.run, recipe.best, minimize=False)
