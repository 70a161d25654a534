"""A whole experiment, base to report, as nested runs of one parent: `mlflow run .`."""

from pathlib import Path

from mlflow_scalpel.stage import open_stage

HERE = Path(__file__).parent

with open_stage("main", HERE / "recipes") as stage:
    import mlflow

    from mlflow_scalpel.experiment import Experiment

    recipe = stage.recipe
    mlflow.log_dict(recipe.model_dump(mode="json"), "recipe.yaml")
    with Experiment(HERE.parent) as experiment:
        model = recipe.model
        if recipe.base is not None:
            made = experiment.run("base", recipe.base.recipe, "base", recipe.base.set)
            model = "models:/" + mlflow.get_run(made).data.tags["scalpel.model_id"]

        def run_arm(arm) -> str:
            run_id = experiment.run(arm.stage, arm.recipe, arm.name, {"model": model, **arm.set})
            if recipe.evaluate is not None:
                settings = {**recipe.evaluate.set, "run": run_id}
                experiment.run("evaluate", recipe.evaluate.recipe, f"evaluate {arm.name}", settings)
            return run_id

        runs = experiment.each(run_arm, recipe.arms, workers=recipe.workers)
        if recipe.compare is not None:
            settings = {**recipe.compare.set, "runs": runs}
            compared = experiment.run("compare", recipe.compare.recipe, "compare", settings)
            print(f"report: {(stage.output.parent / compared / 'report.html').resolve()}")
