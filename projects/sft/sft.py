"""Supervised fine-tuning on worked solutions: `mlflow run . -e sft -P recipe=NAME`."""

from pathlib import Path

from mlflow_scalpel.stage import open_stage

with open_stage("sft", Path(__file__).parent / "recipes") as stage:
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    from mlflow_scalpel.training.arguments import sft_fields
    from mlflow_scalpel.training.callback import CheckpointCallback
    from mlflow_scalpel.training.examples import sft_examples
    from mlflow_scalpel.training.session import log_settings, open_base, open_comparison

    recipe = stage.recipe
    base = open_base(stage)
    examples = sft_examples(recipe)
    trainer = SFTTrainer(
        model=str(base.directory),
        args=SFTConfig(**sft_fields(recipe, stage.output, len(examples))),
        train_dataset=examples,
        processing_class=base.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)  # a line a step; the callback below prints what counts
    if stage.run_id:
        log_settings(recipe, base, "sft", len(examples), trainer.args, trainer.args.max_steps)
        trainer.add_callback(
            CheckpointCallback(
                recipe,
                base,
                open_comparison(recipe, base),
                run_id=stage.run_id,
                algorithm="sft",
                problems=len(examples),
                tokens_seen=lambda: int(trainer._total_train_tokens),
            )
        )
    trainer.train()
