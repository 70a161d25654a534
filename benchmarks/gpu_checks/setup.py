"""Where a check runs, and the models and texts that the checks share."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoModelForCausalLM, Olmo2Config

from mlflow_scalpel.comparison.forward.model import ForwardModel
from mlflow_scalpel.comparison.forward.probes import Probe, ProbeText

ROOT = Path(__file__).parents[2]
PROJECTS = ROOT / "projects"
T = TypeVar("T")


@dataclass(frozen=True)
class Setup:
    """What a check is told."""

    device: str
    """cuda, or cpu to try the checks themselves."""
    small: bool
    """Sizes of a test."""
    work: Path
    """Shared by all checks; holds the tiny experiment's store and the models that are made."""

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU's memory to be read."""
        return self.device.startswith("cuda")


def olmo2_1b(small: bool, **changed: Any) -> Olmo2Config:
    """The sizes of OLMo-2-0425-1B; a model of a few thousand weights where small."""
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 6}
    large = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    return _olmo2(1000 if small else 100352, 4 if small else 16, sizes if small else large, changed)


def olmo2_7b(small: bool) -> Olmo2Config:
    """The sizes of OLMo-2-1124-7B; those of a test where small."""
    sizes = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 3}
    large = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    return _olmo2(2048 if small else 100352, 4 if small else 32, sizes if small else large, {})


def _olmo2(vocabulary: int, heads: int, sizes: dict[str, int], changed: dict[str, Any]) -> Any:
    fixed = {"max_position_embeddings": 4096, "tie_word_embeddings": False}
    return Olmo2Config(
        vocab_size=vocabulary, num_attention_heads=heads, **{**sizes, **fixed, **changed}
    )


def random_model(config: Any, dtype: torch.dtype, device: str, seed: int = 0) -> Any:
    """A model of random weights, made on the device."""
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


@torch.no_grad()
def perturb(model: Any, share: float, seed: int = 1) -> None:
    """Add noise to every matrix, of `share` of its own standard deviation."""
    generator = torch.Generator(device=next(model.parameters()).device).manual_seed(seed)
    for weight in model.parameters():
        if weight.ndim == 2:
            noise = torch.randn(
                weight.shape, generator=generator, device=weight.device, dtype=weight.dtype
            )
            weight.add_(noise, alpha=share * float(weight.float().std()))


def random_probe(vocabulary: int, texts: int, tokens: int) -> Probe:
    """Texts of random tokens, of lengths from three quarters of `tokens` to `tokens`."""
    rng = random.Random(0)
    items = []
    for _ in range(texts):
        length = rng.randint(3 * tokens // 4, tokens)
        ids = tuple(rng.randrange(vocabulary) for _ in range(length))
        items.append(ProbeText(ids, slice(length // 2, length - 1)))
    return Probe("random", "random", "", tuple(("", "") for _ in items), tuple(items))


class InMemory(ForwardModel):
    """A model that was made here, and is on no disk; its weights are changed in place."""

    def __init__(self, model: Any, dtype: str, device: str) -> None:
        self.base, self.dtype, self.device = Path(), dtype, device
        self.model = model.eval()
        self._now = self.base


def timed(function: Callable[[], T], device: str) -> tuple[T, float]:
    """What the function returns, and its seconds, until the device has done its work."""
    synchronize(device)
    begin = time.perf_counter()
    result = function()
    synchronize(device)
    return result, time.perf_counter() - begin


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def kl_float64(base: Path, checkpoint: Path, texts: Sequence[Sequence[int]]) -> float:
    """KL(base || checkpoint) in nats a token, the plain way, in float64 on the CPU.

    The mean over all positions of a text, then over the texts; written anew, to hold the product
    against.
    """
    first, second = (
        AutoModelForCausalLM.from_pretrained(one, dtype=torch.float64).eval()
        for one in (base, checkpoint)
    )
    means = []
    with torch.inference_mode():
        for ids in texts:
            p, q = (
                torch.log_softmax(model(input_ids=torch.tensor([list(ids)])).logits[0], -1)
                for model in (first, second)
            )
            means.append(float((p.exp() * (p - q)).sum(-1).mean()))
    return sum(means) / len(means)
