"""Pre-training of the embedded base model: `mlflow run . -e base`."""

from pathlib import Path

from mlflow_scalpel.runs.lifecycle import open_stage

with open_stage("base", Path(__file__).parent / "recipes", extra="train") as stage:
    import mlflow
    import transformers

    from mlflow_scalpel.checkpoints.logging.log import log_base
    from mlflow_scalpel.training.tiny_base import make_model, make_tokenizer, pretrain

    recipe = stage.recipe
    transformers.set_seed(recipe.train.seed)
    tokenizer = make_tokenizer(recipe.architecture, list(recipe.text.skills))
    model = make_model(recipe.architecture, tokenizer)
    mlflow.log_params(recipe.flat() | {"parameters": model.num_parameters()})

    def report(step: int, values: dict[str, float]) -> None:
        mlflow.log_metrics(values, step=step)
        print(f"step {step}/{recipe.train.steps}: loss {values['loss']:.3f}", flush=True)

    pretrain(model, tokenizer, recipe, report)
    directory = stage.output / recipe.name
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    logged = log_base(
        str(directory), register_as=recipe.registered_model.format(recipe=recipe.name)
    )
    mlflow.set_tag("scalpel.model_id", logged.model_id)
    print(f"base: models:/{logged.model_id}")
