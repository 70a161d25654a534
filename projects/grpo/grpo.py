"""Reinforcement learning from rewards alone: `mlflow run . -e grpo -P recipe=NAME`."""

from pathlib import Path

from mlflow_scalpel.stage import open_stage

with open_stage("grpo", Path(__file__).parent / "recipes") as stage:
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    from mlflow_scalpel.training.arguments import grpo_fields, reward_weights
    from mlflow_scalpel.training.callback import CheckpointCallback
    from mlflow_scalpel.training.examples import grpo_examples
    from mlflow_scalpel.training.rewards import Rewards
    from mlflow_scalpel.training.session import log_settings, open_base, open_comparison

    recipe = stage.recipe
    base = open_base(stage)
    examples = grpo_examples(recipe)
    rewards = Rewards()
    trainer = GRPOTrainer(
        model=str(base.directory),
        args=GRPOConfig(**grpo_fields(recipe, stage.output, len(examples))),
        reward_funcs=[getattr(rewards, name) for name, _ in reward_weights(recipe)],
        train_dataset=examples,
        processing_class=base.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)  # a line a step; the callback below prints what counts
    if stage.run_id:
        log_settings(recipe, base, "grpo", len(examples), trainer.args, trainer.args.max_steps)
        trainer.add_callback(
            CheckpointCallback(
                recipe,
                base,
                open_comparison(recipe, base),
                run_id=stage.run_id,
                algorithm="grpo",
                problems=len(examples),
                tokens_seen=lambda: int(trainer.state.num_input_tokens_seen),
                rewards=rewards,
            )
        )
    trainer.train()
