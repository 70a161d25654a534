"""What a run costs: sequences, tokens, time and an estimate of FLOPs."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlflow_scalpel.recipes.training import GrpoRecipe, TrainingRecipe
from mlflow_scalpel.training.arguments import problems_a_step, sequences_a_step
from mlflow_scalpel.training.flops import Multiplied, multiplied, run_flops

if TYPE_CHECKING:
    from mlflow_scalpel.training.rewards.monitor import RewardMonitor


@dataclass(frozen=True)
class Cost:
    """Counts from the start of the run to one of its steps, over all processes."""

    sequences: int
    """Sequences trained on: worked solutions in SFT, sampled completions in GRPO."""
    unique_problems: int
    tokens_trained: int
    """Tokens that went through forward and backward passes, prompts included, as often as they
    did."""
    tokens_generated: int
    flops: float
    """By `run_flops`."""
    wall_seconds: float
    """Time since training began, logging and measuring included."""
    measuring_seconds: float
    """The part of it that went into logging checkpoints and measuring them."""

    def metrics(self) -> dict[str, float]:
        """As metrics, `cost/<field>`."""
        return {f"cost/{name}": float(value) for name, value in asdict(self).items()}


UNITS = {
    "cost/sequences": "sequences",
    "cost/unique_problems": "problems",
    "cost/tokens_trained": "tokens",
    "cost/tokens_generated": "tokens",
    "cost/flops": "FLOP",
    "cost/wall_seconds": "s",
    "cost/measuring_seconds": "s",
}


def generations(recipe: TrainingRecipe, steps: int) -> int:
    """How many batches were generated in so many steps: one serves `num_iterations` of them."""
    if not isinstance(recipe, GrpoRecipe):
        return steps
    return math.ceil(steps / recipe.train.num_iterations)


class CostMeter:
    """Counts what a run costs while it goes on, also over the processes of a run that is resumed.

    Args:
        recipe: of the run.
        problems: in its data.
        rewards: of GRPO, which see the completions; None in SFT.
    """

    def __init__(
        self, recipe: TrainingRecipe, problems: int, rewards: RewardMonitor | None = None
    ) -> None:
        self._recipe = recipe
        self._problems = problems
        self._rewards = rewards
        self._began = 0.0
        self.size = Multiplied(0, 0)
        self.tokens_seen = 0
        """The trainer's own count of input tokens."""
        self.measuring = 0.0
        """Seconds that went into logging checkpoints and measuring them."""

    def begin(self, model: Any) -> None:
        """Start the clock, for a model that is trained now."""
        self._began = time.monotonic()
        self.size = multiplied(model)

    def state(self) -> dict[str, float]:
        """The counts that a checkpoint keeps."""
        return {
            "tokens_generated": self._rewards.tokens_generated if self._rewards else 0,
            "wall_seconds": time.monotonic() - self._began,
            "measuring_seconds": self.measuring,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the counts that a checkpoint has kept."""
        self._began -= state["wall_seconds"]
        self.measuring = state["measuring_seconds"]
        if self._rewards:
            self._rewards.tokens_generated = state["tokens_generated"]

    def cost(self, step: int, also_measuring: float = 0.0) -> Cost:
        """The cost up to a step; `also_measuring` are seconds not in `measuring` yet."""
        # The rewards see this process's share of the completions, and every share is as large.
        generated = self._rewards.tokens_generated * self._recipe.processes if self._rewards else 0
        batches = generations(self._recipe, step)
        # GRPO's trainer counts a batch when it generates it, however often it is trained on.
        trained = round(self.tokens_seen * step / batches) if batches else self.tokens_seen
        read = self.tokens_seen if self._rewards else 0
        return Cost(
            sequences=step * sequences_a_step(self._recipe),
            unique_problems=min(batches * problems_a_step(self._recipe), self._problems),
            tokens_trained=trained,
            tokens_generated=generated,
            flops=run_flops(self._recipe, self.size, trained, read, generated),
            wall_seconds=time.monotonic() - self._began,
            measuring_seconds=self.measuring + also_measuring,
        )


def hardware() -> str:
    """One line: GPUs and their name, or the CPU and its cores."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"CPU {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
