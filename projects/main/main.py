"""An experiment from base to report, as nested runs of one parent: `mlflow run .`."""

from functools import partial
from pathlib import Path

from mlflow_scalpel.runs.lifecycle import open_stage
from mlflow_scalpel.training.requirements import check_arms

HERE = Path(__file__).parent

check = partial(check_arms, projects=HERE.parent)

with open_stage("main", HERE / "recipes", extra="train", check=check) as stage:
    import mlflow

    from mlflow_scalpel.runs.experiment import Experiment
    from mlflow_scalpel.training.pilots import JUDGED_BY, choose, final_mean

    recipe = stage.recipe
    client = mlflow.MlflowClient()
    rates: dict[str, float] = {}

    def try_rate(pilot) -> str:
        arm, rate = pilot
        settings = {"train.learning_rate": rate, "probes": {}, "checkpoints.count": 1}
        name = f"pilot {arm.name} {rate:g}"
        return experiment.run(arm.stage, arm.recipe, name, {"model": model, **arm.set, **settings})

    def choose_rate(arm, pilots: dict[float, str]) -> float:
        metric, more_is_better = JUDGED_BY[arm.stage]
        histories = {
            rate: [point.value for point in client.get_metric_history(run_id, metric)]
            for rate, run_id in pilots.items()
        }
        rate = choose(histories, more_is_better=more_is_better)
        mlflow.log_param(f"learning_rate_{arm.name}", rate)
        ends = {rate: final_mean(history) for rate, history in histories.items()}
        mlflow.log_dict({str(rate): end for rate, end in ends.items()}, f"pilots/{arm.name}.json")
        print(f"{arm.name}: {metric} by learning rate at the end of the pilots: {ends}")
        print(f"{arm.name}: the rule takes {rate:g}")
        return rate

    def run_arm(arm) -> str:
        settings = {"model": model, **arm.set}
        if (chosen := arm.learning_rate_of or arm.name) in rates:
            settings["train.learning_rate"] = rates[chosen]
        run_id = experiment.run(arm.stage, arm.recipe, arm.name, settings)
        if recipe.evaluate is not None:
            settings = {**recipe.evaluate.set, "run": run_id}
            experiment.run("evaluate", recipe.evaluate.recipe, f"evaluate {arm.name}", settings)
        return run_id

    with Experiment(HERE.parent, resumed=stage.resumed) as experiment:
        model = recipe.model
        if recipe.base is not None:
            made = experiment.run("base", recipe.base.recipe, "base", recipe.base.set)
            model = "models:/" + client.get_run(made).data.tags["scalpel.model_id"]

        pilots = [(arm, rate) for arm in recipe.arms for rate in arm.learning_rates]
        tried = experiment.each(try_rate, pilots, workers=recipe.workers)
        for arm in recipe.arms:
            if arm.learning_rates:
                runs = {rate: run for (a, rate), run in zip(pilots, tried, strict=True) if a is arm}
                rates[arm.name] = choose_rate(arm, runs)

        runs = experiment.each(run_arm, recipe.arms, workers=recipe.workers)
        if recipe.compare is not None:
            settings = {**recipe.compare.set, "runs": runs}
            compared = experiment.run("compare", recipe.compare.recipe, "compare", settings)
            print(f"report: {(stage.output.parent / compared / 'report.html').resolve()}")
