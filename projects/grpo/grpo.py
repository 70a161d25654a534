"""Reinforcement learning from rewards alone: `mlflow run . -e grpo -P recipe=NAME`."""

from pathlib import Path

from mlflow_scalpel.runs.lifecycle import open_stage
from mlflow_scalpel.training.requirements import check_installed

with open_stage(
    "grpo", Path(__file__).parent / "recipes", extra="train", check=check_installed
) as stage:
    from trl import GRPOConfig, GRPOTrainer

    from mlflow_scalpel.chat import prompt_opening
    from mlflow_scalpel.training.arguments import grpo_fields, reward_weights
    from mlflow_scalpel.training.examples import grpo_examples, open_pool
    from mlflow_scalpel.training.learned import asked_examples
    from mlflow_scalpel.training.rewards import Rewards
    from mlflow_scalpel.training.session import follow, open_base, train
    from mlflow_scalpel.training.vllm_server import generation_server

    recipe = stage.recipe
    base = open_base(stage)
    pool = open_pool(recipe, base.tokenizer, stage.run_id)
    examples = asked_examples(grpo_examples(recipe, pool), recipe, base, stage.run_id)
    rewards = Rewards(opening=prompt_opening(base.tokenizer))
    with generation_server(recipe, base.directory, stage.output):
        trainer = GRPOTrainer(
            model=str(base.directory),
            args=GRPOConfig(**grpo_fields(recipe, stage.output, len(examples))),
            reward_funcs=rewards.functions([name for name, _ in reward_weights(recipe)]),
            train_dataset=examples,
            processing_class=base.tokenizer,
        )
        from_checkpoint = follow(trainer, stage, base, "grpo", pool, rewards)
        train(trainer, from_checkpoint)
