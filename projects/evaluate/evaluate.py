"""Scores a model, or the checkpoints of a run, with lm-eval: `mlflow run . -e evaluate`."""

from pathlib import Path

from mlflow_scalpel.evaluation.suite import check_data_files, check_installed, load_suite
from mlflow_scalpel.runs.lifecycle import open_stage

HERE = Path(__file__).parent


def suite_of(recipe):
    check_installed(recipe)
    suite = load_suite(recipe.suite, HERE / "suites", recipe.data, recipe.samples)
    check_data_files(suite)
    return suite


def evaluate(stage):
    import mlflow

    from mlflow_scalpel.checkpoints.logging.mlflow_writes import give_best
    from mlflow_scalpel.evaluation.record import (
        gap_table,
        log_results,
        log_suite,
        plan_evaluation,
        resume_suite,
        rows_of,
        score_table,
    )
    from mlflow_scalpel.evaluation.results import Results, keep_warnings, warnings_of_results
    from mlflow_scalpel.evaluation.tasks import data_warnings
    from mlflow_scalpel.evaluation.workers import Order, count_workers, measure_all
    from mlflow_scalpel.runs.resume import resumed_tag

    recipe = stage.recipe
    suite = suite_of(recipe)
    about_data, unreadable = data_warnings(suite)
    plan = plan_evaluation(recipe, stage.output)
    keep_warnings({"data": about_data}, suite, plan, stage.run_id)
    results = Results(stage.run_id, stage.output)
    mlflow.log_params(recipe.flat())
    if stage.resumed:
        plan = resume_suite(suite, plan, stage.run_id, recipe.engine)
        results.fetch()
    else:
        log_suite(suite, plan, recipe.engine)
    models = plan.models
    left = [n for n, model in enumerate(models) if not results.path(model).exists()]
    if stage.resumed:
        there = len(models) - len(left)
        mlflow.set_tags(resumed_tag(stage.run_id, f"{there} of {len(models)} models were there"))
        for model in models:
            if results.path(model).exists():
                results.send_metrics(model)
    workers = count_workers(recipe, len(left))
    print(f"{suite.name}: {len(left)} models to measure, {workers} worker(s)", flush=True)
    gaps: dict[int, str] = {}

    def done(number: int, gap: str | None) -> None:
        model = models[number]
        left.remove(number)
        at = f"step {model.step}"
        if gap is not None:
            gaps[number] = gap
            print(f"WARNING: {at} is left out: {gap}", flush=True)
            return
        scores = results.store(model).evaluation.scores
        shown = "  ".join(f"{s.metric[5:]} {s.value:.2f}" for s in scores)
        print(f"{at}: {shown}  ({len(left)} left)", flush=True)

    measure_all(Order(recipe, suite, plan, results.folder), list(left), workers, done)

    measured = [s for number, s in enumerate(models) if number not in gaps]
    found = [(results.read(model).evaluation, model) for model in measured]
    tables = [score_table(*one, plan, recipe.dtype) for one in found]
    tables += [gap_table(suite, gaps[n], models[n], plan, recipe.dtype) for n in sorted(gaps)]
    results.close()
    keep_warnings(warnings_of_results(found, unreadable), suite, plan, stage.run_id)
    log_results(tables, [rows_of(*one) for one in found], measured, recipe.dtype)
    if recipe.best is not None and recipe.run is not None:
        give_best(mlflow.MlflowClient(), recipe.run, recipe.best, minimize=False)


if __name__ == "__main__":  # worker processes import this file
    with open_stage("evaluate", HERE / "recipes", extra="eval", check=suite_of) as opened:
        evaluate(opened)
