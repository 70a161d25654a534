"""What a run costs: sequences, tokens, time and an estimate of FLOPs."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

from mlflow_scalpel.recipes.training import GrpoRecipe, GrpoTrain, TrainingRecipe
from mlflow_scalpel.training.freezing import elements
from mlflow_scalpel.training.mixtures import mixtures_of


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


@dataclass(frozen=True)
class Multiplied:
    """The parameters that each token is multiplied with."""

    parameters: int
    """N, the head's among them."""
    head: int
    """H, those of the output embedding: TRL's GRPO makes logits of completions only."""
    notes: tuple[str, ...] = ()
    """What must be said of a mixture of experts."""
    unknown: bool = False
    """Whether a mixture's experts all count because how many run is not known."""


def multiplied(model: Any) -> Multiplied:
    """N = all parameters - look-ups (embeddings) - experts that do not run + a tied head.

    A head that is tied to the input embedding is one matrix in memory, and a product with it all
    the same: it counts once, tied or not. Of a mixture's routed experts as many count as one token
    runs through (`mixtures_of`); shared experts count whole. Norms and biases are counted as if
    they were matrices, which is next to nothing.
    """
    from torch.nn import Embedding

    mixtures = mixtures_of(model)
    shares = {name: one.share for one in mixtures for name in one.parameters}
    head = model.get_output_embeddings()
    look_ups = {id(one.weight) for one in model.modules() if isinstance(one, Embedding)}
    look_ups -= {id(head.weight)} if head is not None else set()
    total = sum(
        shares.get(name, 1.0) * elements(weight)
        for name, weight in model.named_parameters()  # a tied matrix once
        if id(weight) not in look_ups
    )
    return Multiplied(
        round(total),
        0 if head is None else elements(head.weight),
        tuple(dict.fromkeys(one.note for one in mixtures if one.note is not None)),
        any(one.unknown for one in mixtures),
    )


def multiplied_parameters(model: Any) -> int:
    """N of `multiplied`."""
    return multiplied(model).parameters


def estimate_flops(
    size: Multiplied,
    tokens_trained: float,
    *,
    tokens_sampled: float = 0.0,
    tokens_scored: float = 0.0,
    completions: float = 1.0,
    checkpointing: bool = False,
) -> float:
    """FLOPs of a run: the usual 2 N a token and forward pass, 4 N a backward pass (2001.08361).

        2 N (3 tokens_trained + tokens_sampled + tokens_scored)
        + 2 (N - H) tokens_trained    with gradient checkpointing, which runs the layers again
                                      (but for the last product of each: 6 % too much in all)

    Attention's own products are left out, which are small where sequences are much shorter than 12
    times the hidden size; so are padding, evaluations and measuring. Frozen weights count as
    trained ones, though they need a third less.

    Args:
        size: N and H, by `multiplied`.
        tokens_trained: that go forward and backward, prompts included; as often as they do.
        tokens_sampled: of generation, prompts included, which are read for each completion.
        tokens_scored: of forward passes without a backward one, prompts included: `scoring_passes`.
        completions: share of the tokens that are the completions'. GRPO makes logits of them alone,
            so H counts for this share of all tokens; 1 in SFT.
        checkpointing: whether activations are computed a second time.
    """
    forward = 3.0 * tokens_trained + tokens_sampled + tokens_scored
    layers = size.parameters - size.head
    again = tokens_trained if checkpointing else 0.0
    return 2.0 * layers * (forward + again) + 2.0 * size.head * completions * forward


def scoring_passes(train: GrpoTrain) -> int:
    """Forward passes over each generated batch besides the training's own, as TRL 1.16 makes them.

    One of the reference model where `beta` is above 0, and one of the policy as it was when it
    generated, where a batch serves several steps (`num_iterations` above 1) or vLLM's sampling is
    corrected for.
    """
    corrected = train.use_vllm and train.vllm_importance_sampling_correction
    return int(train.beta > 0.0) + int(train.num_iterations > 1 or corrected)


def run_flops(
    recipe: TrainingRecipe, size: Multiplied, tokens_trained: float, read: float, written: float
) -> float:
    """`estimate_flops` of a recipe's run, of which `plan` knows the tokens before, a run after.

    Args:
        recipe: says which passes there are.
        size: of the model.
        tokens_trained: as in `estimate_flops`.
        read: tokens of all generated batches, prompts and completions; 0 in SFT.
        written: those of the completions.
    """
    checkpointing = recipe.train.gradient_checkpointing
    if not isinstance(recipe, GrpoRecipe):
        return estimate_flops(size, tokens_trained, checkpointing=checkpointing)
    return estimate_flops(
        size,
        tokens_trained,
        tokens_sampled=read,
        tokens_scored=read * scoring_passes(recipe.train),
        completions=min(1.0, written / read) if read else 1.0,
        checkpointing=checkpointing,
    )


def generations(recipe: TrainingRecipe, steps: int) -> int:
    """How many batches were generated in so many steps: one serves `num_iterations` of them."""
    if not isinstance(recipe, GrpoRecipe):
        return steps
    return math.ceil(steps / recipe.train.num_iterations)


def hardware() -> str:
    """One line: GPUs and their name, or the CPU and its cores."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"CPU {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
