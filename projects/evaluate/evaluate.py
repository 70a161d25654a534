"""Scores a model, or the checkpoints of a run, with lm-eval: `mlflow run . -e evaluate`."""

from pathlib import Path

from mlflow_scalpel.evaluation.needs import check_installed
from mlflow_scalpel.evaluation.suite import check_data_files, load_suite
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
        rows_of,
        score_table,
        take_up_suite,
    )
    from mlflow_scalpel.evaluation.results import Results
    from mlflow_scalpel.evaluation.suite_data import data_warnings
    from mlflow_scalpel.evaluation.warned import keep_warnings, warnings_of_results
    from mlflow_scalpel.evaluation.workers import Order, count_workers, measure_all
    from mlflow_scalpel.runs.resume import seam_tag

    recipe = stage.recipe
    suite = suite_of(recipe)
    about_data, unreadable = data_warnings(suite)
    plan = plan_evaluation(recipe, stage.output)
    keep_warnings({"data": about_data}, suite, plan, stage.run_id)
    results = Results(stage.run_id, stage.output)
    mlflow.log_params(recipe.flat())
    if stage.resumed:
        plan = take_up_suite(suite, plan, stage.run_id, recipe.engine)
        results.fetch()
    else:
        log_suite(suite, plan, recipe.engine)
    subjects = plan.subjects
    left = [n for n, subject in enumerate(subjects) if not results.path(subject).exists()]
    if stage.resumed:
        there = len(subjects) - len(left)
        mlflow.set_tags(seam_tag(stage.run_id, f"{there} of {len(subjects)} models were there"))
        for subject in subjects:
            if results.path(subject).exists():
                results.send_metrics(subject)
    workers = count_workers(recipe, len(left))
    print(f"{suite.name}: {len(left)} models to measure, {workers} worker(s)", flush=True)
    gaps: dict[int, str] = {}

    def done(number: int, gap: str | None) -> None:
        subject = subjects[number]
        left.remove(number)
        at = f"step {subject.step}"
        if gap is not None:
            gaps[number] = gap
            print(f"WARNING: {at} is left out: {gap}", flush=True)
            return
        scores = results.store(subject).evaluation.scores
        shown = "  ".join(f"{s.metric[5:]} {s.value:.2f}" for s in scores)
        print(f"{at}: {shown}  ({len(left)} left)", flush=True)

    measure_all(Order(recipe, suite, plan, results.folder), list(left), workers, done)

    measured = [s for number, s in enumerate(subjects) if number not in gaps]
    found = [(results.read(subject).evaluation, subject) for subject in measured]
    tables = [score_table(*one, plan, recipe.dtype) for one in found]
    tables += [gap_table(suite, gaps[n], subjects[n], plan, recipe.dtype) for n in sorted(gaps)]
    results.close()
    keep_warnings(warnings_of_results(found, unreadable), suite, plan, stage.run_id)
    log_results(tables, [rows_of(*one) for one in found], measured, recipe.dtype)
    if recipe.best is not None and recipe.run is not None:
        give_best(mlflow.MlflowClient(), recipe.run, recipe.best, minimize=False)


if __name__ == "__main__":  # worker processes import this file
    with open_stage("evaluate", HERE / "recipes", extra="eval", check=suite_of) as opened:
        evaluate(opened)
