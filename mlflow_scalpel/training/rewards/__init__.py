"""Rewards of GRPO: decorated functions, found by the name that a recipe gives them.

A new one is one function in one file, here or in a module of one's own::

    @reward("short")
    def short(completion_ids, *, limit: int = 200, **_):
        "1 where a completion has at most `limit` tokens, else 0."
        return [float(len(ids) <= limit) for ids in completion_ids]

A recipe names it `short`, where its module is in this folder or is an entry point of the group
`mlflow_scalpel.rewards`, and `my_package.my_module:short` otherwise::

    rewards: {accuracy: 1.0, my_package.my_module:short: {weight: 0.2, limit: 100}}
"""

from mlflow_scalpel.training.rewards.registry import (
    ChosenReward,
    Reward,
    check_rewards,
    choose_rewards,
    reward,
)

__all__ = ["ChosenReward", "Reward", "check_rewards", "choose_rewards", "reward"]
