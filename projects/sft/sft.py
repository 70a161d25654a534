"""Supervised fine-tuning on worked solutions: `mlflow run . -e sft -P recipe=NAME`."""

from pathlib import Path

from mlflow_scalpel.runs.lifecycle import open_stage
from mlflow_scalpel.training.requirements import check_requirements

with open_stage(
    "sft", Path(__file__).parent / "recipes", extra="train", check=check_requirements
) as stage:
    from trl import SFTConfig, SFTTrainer

    from mlflow_scalpel.training.arguments import sft_fields
    from mlflow_scalpel.training.base import open_base
    from mlflow_scalpel.training.examples import learned_examples, sft_examples
    from mlflow_scalpel.training.pool import open_pool
    from mlflow_scalpel.training.session import follow, train

    recipe = stage.recipe
    base = open_base(stage)
    pool = open_pool(recipe, base.tokenizer, stage.run_id)
    examples = learned_examples(sft_examples(recipe, pool), base, stage.run_id)
    trainer = SFTTrainer(
        model=str(base.directory),
        args=SFTConfig(**sft_fields(recipe, stage.output, len(examples))),
        train_dataset=examples,
        processing_class=base.tokenizer,
    )
    from_checkpoint = follow(trainer, stage, base, "sft", pool)
    train(trainer, from_checkpoint)
