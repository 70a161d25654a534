"""Sets training runs side by side: `mlflow run . -e compare -P set="runs=[RUN_ID,RUN_ID]"`."""

from pathlib import Path

from mlflow_scalpel.errors import RecipeError
from mlflow_scalpel.runs.lifecycle import open_stage

with open_stage("compare", Path(__file__).parent / "recipes") as stage:
    import mlflow

    from mlflow_scalpel.comparison.gather import gather, pair_table
    from mlflow_scalpel.comparison.run_queries import compared_params, joined
    from mlflow_scalpel.comparison.run_store import describe_runs, name_on_runs, stored_ledger
    from mlflow_scalpel.comparison.table import write_table
    from mlflow_scalpel.views.report.files import write_figures
    from mlflow_scalpel.views.report.report import write_report

    recipe = stage.recipe
    if len(recipe.runs) < 2:
        raise RecipeError(
            f"runs = {recipe.runs}: a comparison needs two training runs or more; "
            'give their IDs with -P set="runs=[RUN_ID,RUN_ID]"'
        )
    notes: list[str] = []
    table = joined([gather(recipe.runs, notes), pair_table(recipe.runs)])
    runs = describe_runs(recipe.runs)
    stage.output.mkdir(parents=True, exist_ok=True)
    write_table(table, stage.output / "table.parquet")
    ledgers = {run_id: stored_ledger(run_id) for run_id in recipe.runs}
    path = stage.output / "report.html"
    report = write_report(table, runs, path, title=recipe.title, notes=notes, ledgers=ledgers)
    _, no_png = write_figures(table, runs, stage.output / "figures")
    if no_png:
        print(no_png)
    mlflow.log_artifacts(str(stage.output), "scalpel")
    mlflow.log_params(compared_params(recipe.runs))
    name_on_runs(stage.run_id, recipe.runs)
    print(f"report: {report.resolve()}")
