"""The model that texts are run through, whose weights are swapped, and how it makes logits."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlflow_scalpel.checkpoints.models.swapping import SwappableModel
from mlflow_scalpel.comparison.forward.probes import ProbeText
from mlflow_scalpel.comparison.runner import Progress, UnsupportedModel

BATCH_TOKENS = 4096  # tokens a forward pass, padding included
PADDING_SHARE = (
    0.1  # share of a batch that may be padding: longer texts cost more than another call
)
CHECKED_TOKENS = 16  # tokens on which it is seen how a model makes its logits
BYTES_IN_MEMORY = 256 << 20  # bytes of the base's states; more of them wait on disk

# Fields of a config that scale logits, and whether they are divided by it; and that cap them.
_SCALES = (
    *(("logit_scale", False), ("logits_scaling", True), ("logits_scaling", False)),
    *(("lm_head_multiplier", False), ("output_multiplier", False)),
)
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap", "softcap")
_NONE = ("", False)


@dataclass(frozen=True)
class Head:
    """How a model makes logits of its final hidden states: scale (W h + b), capped where it is."""

    weight: Tensor
    """Output embedding, (V, H)."""
    bias: Tensor | None = None
    """(V,), or None."""
    scale: float = 1.0
    """Such as Cohere's logit_scale, or one divided by Granite's logits_scaling."""
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


class ForwardModel(SwappableModel):
    """The base or a checkpoint, and how it makes logits.

    Raises CannotOpen, and UnsupportedModel for one that has no output embedding.
    """

    _padded: bool | None = None  # whether texts of several lengths may share a batch, once known
    _logit_fields: tuple[tuple[str, bool], str] = _NONE, ""  # what `check_head` finds

    def _check(self, directory: Path, model: Any) -> None:
        if model.get_output_embeddings() is None:
            raise UnsupportedModel(
                f"{directory}: {type(model).__name__} does not say which is its output embedding, "
                "from which logits are formed"
            )

    @torch.inference_mode()
    def states(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Final hidden states of token IDs (B, T), as they reach the output embedding, (B, T, H).

        Models differ in what they do between their last layer and that embedding, and in how
        deep it stands in them; so they are run whole, and only the last position's logits are made.
        """
        found: list[Tensor] = []

        def take(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            found.append(inputs[0])
            return (inputs[0][:, -1:], *inputs[1:])

        handle = self.model.get_output_embeddings().register_forward_pre_hook(take)
        try:
            mask = None if mask is None else mask.to(self.device)
            self.model(input_ids=ids.to(self.device), attention_mask=mask, use_cache=False)
        finally:
            handle.remove()
        if len(found) != 1 or found[0].shape[:2] != ids.shape:
            raise UnsupportedModel(
                f"{type(self.model).__name__} does not put the hidden states of a text through its "
                "output embedding once, from which logits are formed"
            )
        return found[0]

    def hidden(self, items: Sequence[ProbeText], progress: Progress | None = None) -> list[Tensor]:
        """Final hidden states of each text, (T, H) float32, after the last norm."""
        states: list[Tensor] = [torch.empty(0)] * len(items)
        lengths = [len(item.ids) for item in items]
        together: Iterable[list[int]] = batches(lengths)
        if len(set(lengths)) > 1 and not self._ignores_padding(items[0]):
            together = [[index] for index in range(len(items))]
        for batch in together:
            longest = len(items[batch[0]].ids)
            ids = torch.zeros(len(batch), longest, dtype=torch.long)  # (B, T)
            mask = torch.zeros_like(ids)
            for row, index in enumerate(batch):
                text = items[index].ids
                ids[row, : len(text)] = torch.tensor(text)
                mask[row, : len(text)] = 1
            out = self.states(ids, None if bool(mask.all()) else mask)  # (B, T, H)
            for row, index in enumerate(batch):
                states[index] = out[row, : len(items[index].ids)].float().clone()
            if progress is not None:
                progress(len(batch))
        return states

    def _ignores_padding(self, item: ProbeText) -> bool:
        """Whether padding on the right changes nothing before it, as in nearly all causal models.

        CPM-Ant, for one, counts positions from the end.
        """
        if self._padded is None:
            few = torch.tensor([item.ids[:CHECKED_TOKENS]])  # (1, T)
            zeros = torch.zeros_like(few)
            mask = torch.cat([torch.ones_like(few), zeros], 1)
            alone = self.states(few).float()
            padded = self.states(torch.cat([few, zeros], 1), mask)[:, : few.shape[1]].float()
            limit = (1e-3 if self.dtype == "float32" else 0.1) * float(alone.abs().max())
            self._padded = not float((alone - padded).abs().max()) > limit  # NaN: rows say it
        return self._padded

    def head(self, dtype: torch.dtype = torch.float32) -> Head:
        """How its logits are made; the tensors are its own where they are of that dtype."""
        output = self.model.get_output_embeddings()
        bias = getattr(output, "bias", None)
        config = self.model.config.get_text_config()
        (scale, divides), cap = self._logit_fields
        factor = float(getattr(config, scale, None) or 1.0)
        return Head(
            output.weight.detach().to(dtype),
            None if bias is None else bias.detach().to(dtype),
            1.0 / factor if divides else factor,
            getattr(config, cap, None),
        )

    @torch.inference_mode()
    def check_head(self, item: ProbeText) -> None:
        """Find which scale and cap of those that its config names the model applies.

        Families give them other names, multiply or divide, and some have one that they ignore.
        Raises UnsupportedModel where it makes its logits in yet another way than `head` does.
        """
        few = ProbeText(item.ids[:CHECKED_TOKENS], slice(0))
        ids = torch.tensor([few.ids], device=self.device)  # (1, T)
        logits = self.model(input_ids=ids, use_cache=False).logits[0].float()  # (T, V)
        if not torch.isfinite(logits).all():
            return  # the rows say it
        hidden = self.hidden((few,))[0]
        config = self.model.config.get_text_config()
        scales = [one for one in _SCALES if getattr(config, one[0], None)]
        caps = [one for one in _CAPS if getattr(config, one, None)]
        errors = {}
        for self._logit_fields in itertools.product([*scales, _NONE], [*caps, ""]):
            errors[self._logit_fields] = float((logits - self.head().logits(hidden)).abs().max())
        self._logit_fields = min(errors, key=errors.__getitem__)  # the first, where several agree
        tolerance = 1e-3 if self.dtype == "float32" else 0.1
        if not errors[self._logit_fields] <= tolerance * float(logits.abs().max()):
            raise UnsupportedModel(
                f"KL: {type(self.model).__name__} does not form its logits as hidden state times "
                "output embedding, with a scale or a cap that its config names, which is not "
                "supported; leave the probes out"
            )


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of texts of like length, the longest first, with little padding in each batch."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while order:
        longest, size, tokens = lengths[order[0]], 1, lengths[order[0]]
        while size < len(order) and longest * (size + 1) <= BATCH_TOKENS:
            tokens += lengths[order[size]]
            if tokens < (1.0 - PADDING_SHARE) * longest * (size + 1):
                break
            size += 1
        yield order[:size]
        order = order[size:]


def keep(states: list[Tensor], before: int = 0) -> list[Tensor]:
    """The states, on disk where they are many; the file goes when nobody reads it.

    All are of one dtype. `before` is the number of bytes that were kept before, in other calls.
    """
    numbers = sum(state.numel() for state in states)
    if not states or before + numbers * states[0].element_size() <= BYTES_IN_MEMORY:
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
