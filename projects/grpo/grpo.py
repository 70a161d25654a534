"""Reinforcement learning from rewards alone: `mlflow run . -e grpo -P recipe=NAME`."""

from pathlib import Path

from mlflow_scalpel.runs.lifecycle import open_stage
from mlflow_scalpel.training.requirements import check_requirements

with open_stage(
    "grpo", Path(__file__).parent / "recipes", extra="train", check=check_requirements
) as stage:
    from trl import GRPOConfig, GRPOTrainer

    from mlflow_scalpel.chat import prompt_opening
    from mlflow_scalpel.training.arguments import grpo_fields
    from mlflow_scalpel.training.base import open_base
    from mlflow_scalpel.training.examples import asked_examples, grpo_examples
    from mlflow_scalpel.training.pool import open_pool
    from mlflow_scalpel.training.rewards import choose_rewards
    from mlflow_scalpel.training.rewards.monitor import RewardMonitor
    from mlflow_scalpel.training.session import follow, train
    from mlflow_scalpel.training.vllm_server import generation_server

    recipe = stage.recipe
    base = open_base(stage)
    pool = open_pool(recipe, base.tokenizer, stage.run_id)
    examples = asked_examples(grpo_examples(recipe, pool), recipe, base, stage.run_id)
    opening = prompt_opening(base.tokenizer)
    rewards = RewardMonitor(choose_rewards(recipe), prompt_opening=opening)
    with generation_server(recipe, base.directory, stage.output):
        trainer = GRPOTrainer(
            model=str(base.directory),
            args=GRPOConfig(**grpo_fields(recipe, stage.output, len(examples))),
            reward_funcs=rewards.functions,
            train_dataset=examples,
            processing_class=base.tokenizer,
        )
        from_checkpoint = follow(trainer, stage, base, "grpo", pool, rewards)
        train(trainer, from_checkpoint)
