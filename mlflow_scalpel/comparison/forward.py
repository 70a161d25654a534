"""What runs texts through models: one model whose weights are swapped, and who measures by it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mlflow_scalpel.checkpoints.weights import load_weights
from mlflow_scalpel.comparison.probes import Probe, ProbeText, other_tokenizer
from mlflow_scalpel.comparison.subjects import Subject
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics.registry import Metric

BATCH_TOKENS = 4096  # tokens a forward pass, padding included
PADDING = 0.1  # share of a batch that may be padding: longer texts cost more than another call
MEASURED = "float32"  # an adapter is merged in it; the forward rounds to its own dtype
CHECKED = 16  # tokens on which it is seen how a model makes its logits
KEPT_IN_MEMORY = 256 << 20  # bytes of the base's states; more of them wait on disk

Progress = Callable[[int], object]
"""Called with a number of texts each time so many more have been run."""


class UnsupportedModel(ScalpelError):
    """The base is of a family that a group cannot run; the message says why."""


@dataclass(frozen=True)
class Head:
    """How a model makes logits of its final hidden states: scale (W h + b), capped where it is."""

    weight: Tensor
    """Output embedding, (V, H)."""
    bias: Tensor | None = None
    """(V,), or None."""
    scale: float = 1.0
    """Cohere's logit_scale, or one divided by Granite's logits_scaling."""
    cap: float | None = None
    """Gemma's final_logit_softcapping c: logits become c tanh(logits / c)."""

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.weight.shape[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (T, V) of hidden states (T, H) of the head's dtype."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits

    def clone(self) -> Head:
        """The same, which a swap of the model's weights does not change."""
        bias = None if self.bias is None else self.bias.clone()
        return Head(self.weight.clone(), bias, self.scale, self.cap)


class OneModel:
    """A transformers model that is the base, or any checkpoint whose weights are swapped in."""

    def __init__(self, base: Path, *, dtype: str = "float32", device: str = "cpu") -> None:
        from transformers import AutoModelForCausalLM

        self.base = base
        self.dtype = dtype
        self.device = device
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
        self.model = model.to(device).eval()
        self._is_base = True

    def swap(self, checkpoint: Path) -> None:
        """Make it the checkpoint; ScalpelError, and no change, for one of another model."""
        load_weights(self.model, checkpoint, base=self.base)
        self._is_base = False

    def swap_to_base(self) -> None:
        """Make it the base."""
        if not self._is_base:
            load_weights(self.model, self.base, base=self.base)
            self._is_base = True

    @torch.inference_mode()
    def hidden(self, items: Sequence[ProbeText], progress: Progress | None = None) -> list[Tensor]:
        """Final hidden states of each text, (T, H) float32, after the last norm."""
        states: list[Tensor] = [torch.empty(0)] * len(items)
        for batch in batches([len(item.ids) for item in items]):
            longest = len(items[batch[0]].ids)
            ids = torch.zeros(len(batch), longest, dtype=torch.long)  # (B, T)
            mask = torch.zeros_like(ids)
            for row, index in enumerate(batch):
                text = items[index].ids
                ids[row, : len(text)] = torch.tensor(text)
                mask[row, : len(text)] = 1
            # A causal model ignores padding on the right.
            whole = bool(mask.all())
            out = self.model.base_model(
                input_ids=ids.to(self.device),
                attention_mask=None if whole else mask.to(self.device),
                use_cache=False,
            ).last_hidden_state  # (B, T, H)
            for row, index in enumerate(batch):
                states[index] = out[row, : len(items[index].ids)].float().clone()
            if progress is not None:
                progress(len(batch))
        return states

    def head(self, dtype: torch.dtype = torch.float32) -> Head:
        """How its logits are made; the tensors are its own where they are of that dtype."""
        output = self.model.get_output_embeddings()
        bias = getattr(output, "bias", None)
        config = self.model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0
        return Head(
            output.weight.detach().to(dtype),
            None if bias is None else bias.detach().to(dtype),
            float(scale) / float(getattr(config, "logits_scaling", None) or 1.0),
            getattr(config, "final_logit_softcapping", None),
        )

    @torch.inference_mode()
    def check_head(self, item: ProbeText) -> None:
        """Raise UnsupportedModel where the model makes its logits otherwise than `head` does."""
        few = ProbeText(item.ids[:CHECKED], slice(0))
        ids = torch.tensor([few.ids], device=self.device)  # (1, T)
        logits = self.model(input_ids=ids, use_cache=False).logits[0].float()  # (T, V)
        if not torch.isfinite(logits).all():
            return  # the rows say it
        ours = self.head().logits(self.hidden((few,))[0])
        tolerance = 1e-3 if self.dtype == "float32" else 0.1
        if not torch.allclose(logits, ours, atol=tolerance * float(logits.abs().max()), rtol=0):
            raise UnsupportedModel(
                f"KL: {type(self.model).__name__} does not form its logits as hidden state times "
                "output embedding, with a scale or a cap that its config names, which is not "
                "supported; leave the probes out"
            )


class Runner(Protocol):
    """Measures one group of metrics by running texts through its model."""

    probes: list[Probe]

    def rows(
        self, metrics: Sequence[Metric], progress: Progress | None = None
    ) -> Iterator[dict[str, Any]]:
        """Rows of each metric on each probe, of the checkpoint whose weights `model` has."""
        ...


def swap(model: OneModel, subject: Subject, group: str) -> tuple[str, str] | None:
    """Make the model the checkpoint; status and reason where it cannot be run like the base."""
    try:
        checkpoint = subject.whole(MEASURED)
        reason = other_tokenizer(model.base, checkpoint)
    except ScalpelError as error:
        return "not readable", f"{group}: {error}"
    if reason is not None:
        return "refused", reason
    try:
        model.swap(checkpoint)
    except ScalpelError as error:
        return "not comparable", f"{group}: {error}"
    return None


def failed_rows(
    metrics: Sequence[Metric], probes: Sequence[Probe], dtype: str, status: str, reason: str
) -> list[dict[str, Any]]:
    """A row without a value for each metric and probe, with its reason."""
    return [
        {**place(one, probe, dtype), "status": status, "reason": reason}
        for probe in probes
        for one in metrics
    ]


def place(one: Metric, probe: Probe, dtype: str) -> dict[str, Any]:
    """What a row says of its metric and texts."""
    return {
        "metric": one.name,
        "metric_version": one.version,
        "unit": one.unit,
        "dtype": dtype,
        "texts": probe.texts,
    }


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of texts of like length, the longest first, with little padding in each batch."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while order:
        longest, size, tokens = lengths[order[0]], 1, lengths[order[0]]
        while size < len(order) and longest * (size + 1) <= BATCH_TOKENS:
            tokens += lengths[order[size]]
            if tokens < (1.0 - PADDING) * longest * (size + 1):
                break
            size += 1
        yield order[:size]
        order = order[size:]


def keep(states: list[Tensor], before: int = 0) -> list[Tensor]:
    """The states, on disk where they are many; the file goes when nobody reads it.

    All are of one dtype. `before` is the number of bytes that were kept before, in other calls.
    """
    numbers = sum(state.numel() for state in states)
    if not states or before + numbers * states[0].element_size() <= KEPT_IN_MEMORY:
        return states
    with tempfile.NamedTemporaryFile(prefix="scalpel-states-") as file:
        store = torch.from_file(file.name, shared=True, size=numbers, dtype=states[0].dtype)
        found, start = [], 0
        for state in states:
            there = store[start : start + state.numel()].view(state.shape)
            there.copy_(state)
            found.append(there)
            start += state.numel()
        return found
