"""What a run costs: sequences, tokens, time and an estimate of FLOPs."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

from mlflow_scalpel.training.freezing import elements


@dataclass(frozen=True)
class Cost:
    """Counts from the start of the run to one of its steps, over all processes."""

    sequences: int
    """Sequences trained on: worked solutions in SFT, sampled completions in GRPO."""
    unique_problems: int
    tokens_trained: int
    """Tokens that went through forward and backward passes, prompts included."""
    tokens_generated: int
    flops: float
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


def multiplied_parameters(model: Any) -> int:
    """N: the parameters that each token is multiplied with.

    N = all parameters - input embedding (a look-up) + head where it is tied to that embedding: one
    matrix in memory, and a product with it all the same. The head thus counts once, tied or not.
    """
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    total = sum(elements(weight) for weight in model.parameters())  # a tied matrix once
    return total if head is not None and head.weight is embedding else total - elements(embedding)


def estimate_flops(parameters: int, tokens_trained: int, tokens_sampled: int) -> float:
    """6 N tokens_trained + 2 N tokens_sampled, the usual estimate (arXiv 2001.08361).

    2 N a token for a forward pass and 4 N for a backward pass, with N by `multiplied_parameters`;
    attention's own products are left out, which is small where sequences are shorter than the
    hidden size times 12. `tokens_sampled` counts prompts too: generation reads them.
    """
    return 6.0 * parameters * tokens_trained + 2.0 * parameters * tokens_sampled


def hardware() -> str:
    """One line: GPUs and their name, or the CPU and its cores."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"CPU {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
