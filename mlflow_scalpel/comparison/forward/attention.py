"""The group `attention`: attention rows of base and checkpoint over the same texts.

The rows of one text of 1000 tokens are 4 GB in a model of 32 layers with 32 heads, so they are
never all there: the base's queries and keys are kept (on disk if large), and its rows are formed
again, one layer of one text at a time, beside the checkpoint's, and reduced at once. Both come from
the model's own eager attention, with its scale, caps and masks.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlflow_scalpel.comparison.forward.model import ForwardModel, keep
from mlflow_scalpel.comparison.forward.probes import Probe, ProbeText
from mlflow_scalpel.comparison.runner import Progress, UnsupportedModel, place
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics.on_texts import over_means
from mlflow_scalpel.metrics.registry import Metric

SLICE_ROWS = 1 << 20  # attention weights reduced at once: 4 MB, which fit the cache
ATTENTION = "scalpel_rows"


@dataclass(frozen=True)
class Layer:
    """How a layer forms its attention rows: its module, and what the model calls it with."""

    module: Any
    value: Tensor | None
    mask: Any
    settings: dict[str, Any]

    def run(self, query: Tensor, key: Tensor) -> Any:
        """Output and attention weights of queries (1, H, T, D) and keys (1, G, T, D)."""
        eager = getattr(sys.modules[type(self.module).__module__], "eager_attention_forward", None)
        if eager is None:
            raise UnsupportedModel(
                f"attention: {type(self.module).__name__} has no eager attention, which gives the "
                "rows; leave the group out"
            )
        value = self.value  # whose result is passed over; but it has a head for each of the keys'
        if value is None or value.shape[1] != key.shape[1]:
            value = key
        return eager(self.module, query, key, value, self.mask, **self.settings)

    def rows(self, query: Tensor, key: Tensor) -> Tensor:
        """Attention rows (H, T, T)."""
        weights: Tensor = self.run(query, key)[1]
        return weights[0].float()

    def kept(self) -> Layer:
        """The part that outlasts a swap of the model: its settings, without matrices and texts."""
        module = copy.copy(self.module)
        module._parameters = {
            name: torch.nn.Parameter(one.detach().clone(), requires_grad=False)
            for name, one in module._parameters.items()
            if one is not None and one.ndim < 2
        }
        module._modules = {
            name: one for name, one in module._modules.items() if not list(one.parameters())
        }
        plain = {
            name: value
            for name, value in self.settings.items()
            if value is None or isinstance(value, int | float | str)
        }
        return Layer(module, None, None, plain)

    def read(self) -> dict[str, Tensor]:
        """Digests of the positions that each one attends to, by what says so: mask and indices."""
        found = {}
        if isinstance(self.mask, Tensor):
            mask = self.mask[0]  # (1 or H, T, T)
            allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
            found["mask"] = torch.stack([_digest(head) for head in allowed])
        for name, value in self.settings.items():
            if isinstance(value, Tensor) and not value.is_floating_point():
                found[name] = _digest(value)
        return found


def _digest(numbers: Tensor) -> Tensor:
    """Sums of integers over the last dimension, with weights that tell them apart."""
    seeded = torch.Generator().manual_seed(0)
    weights = torch.randint(1 << 40, numbers.shape[-1:], generator=seeded).to(numbers.device)
    return (numbers.long() * weights).sum(-1).cpu()


Listener = Callable[[int, Tensor, Tensor, Tensor, Layer], None]
"""Called in each attention layer with its number, queries, keys, rows, and how rows are formed."""

_listener: ContextVar[Listener] = ContextVar("listener")


class AttentionShift:
    """Runs texts one by one through a model, and sets its attention rows beside the base's."""

    def __init__(self, model: ForwardModel, probes: Sequence[Probe]) -> None:
        self.model = model
        self.probes = list(probes)
        model.load_base()
        self._bytes = 0  # of what is kept so far
        self._layers: dict[int, Layer] = {}
        self._masks: dict[tuple[int, ...], dict[int, dict[str, Tensor]]] = {}  # by the text's IDs
        self._base = [[self._states(item) for item in probe.items] for probe in self.probes]

    def rows(
        self, metrics: Sequence[Metric], progress: Progress | None = None
    ) -> Iterator[dict[str, Any]]:
        """A row for each metric, probe, layer and head, of the checkpoint that the model is."""
        for probe, base in zip(self.probes, self._base, strict=True):
            texts = []
            for item, states in zip(probe.items, base, strict=True):
                texts.append(self._changes(item, states, metrics))
                if progress is not None:
                    progress(1)
            for number, one in enumerate(metrics):
                for layer in texts[0]:
                    values = torch.stack([text[layer][number] for text in texts])  # (N, H)
                    for head, means in enumerate(values.T.tolist()):
                        where = {"layer": layer, "head": head}
                        estimate = over_means(means)
                        yield {**place(one, probe, self.model.dtype), **where, **estimate.columns()}

    def _states(self, item: ProbeText) -> dict[int, tuple[Tensor, Tensor]]:
        """Queries and keys of each layer."""
        found: dict[int, tuple[Tensor, Tensor]] = {}

        def take(layer: int, query: Tensor, key: Tensor, rows: Tensor, how: Layer) -> None:
            if not found:
                _check_rows(rows, self.model)
            found[layer] = query, key
            self._layers.setdefault(layer, how.kept())
            self._masks.setdefault(item.ids, {})[layer] = how.read()

        self._run(item, take)
        if not found:
            raise UnsupportedModel(
                f"attention: {type(self.model.model).__name__} does not say how it forms its "
                "attention rows (transformers' attention interface); leave the group out"
            )
        states = [state for layer in found.values() for state in layer]
        kept = iter(keep(states, self._bytes))
        self._bytes += sum(state.numel() * state.element_size() for state in states)
        return {layer: (next(kept), next(kept)) for layer in found}

    def _changes(
        self, item: ProbeText, base: dict[int, tuple[Tensor, Tensor]], metrics: Sequence[Metric]
    ) -> dict[int, list[Tensor]]:
        """For each layer the metrics' values, (H,) float64 each."""
        found: dict[int, list[Tensor]] = {}

        def take(layer: int, query: Tensor, key: Tensor, rows: Tensor, how: Layer) -> None:
            # Copies, so that both products are of memory that is laid out alike: equal to the bit.
            before = self._as_base(layer, how, item).rows(
                *(state.to(query.device, copy=True) for state in base[layer])
            )
            after = rows  # (H, T, T), as before
            step = max(1, SLICE_ROWS // before[0].numel())
            slices = [slice(at, at + step) for at in range(0, len(before), step)]
            found[layer] = [
                torch.cat([one.function(before[these], after[these]) for these in slices]).cpu()
                for one in metrics
            ]

        self._run(item, take)
        return found

    def _as_base(self, layer: int, how: Layer, item: ProbeText) -> Layer:
        """How the base forms the rows of a layer: a checkpoint may have a scale or cap of its own.

        Raises ScalpelError where it looks at other positions than the base, by its masks.
        """
        before, now = self._masks[item.ids][layer], how.read()
        if before.keys() != now.keys() or not all(torch.equal(before[n], now[n]) for n in now):
            raise ScalpelError(
                f"attention: layer {layer} of the checkpoint attends to other positions than the "
                "base's (its config.json has another sliding window or other kinds of layers, or "
                "the layer chooses them itself), so that their rows cannot be compared; leave the "
                "group out"
            )
        base = self._layers[layer]
        return Layer(base.module, how.value, how.mask, how.settings | base.settings)

    @torch.inference_mode()
    def _run(self, item: ProbeText, listener: Listener) -> None:
        token = _listener.set(listener)
        try:
            with _listening(self.model.model):
                self.model.states(torch.tensor([item.ids]))
        finally:
            _listener.reset(token)


@contextmanager
def _listening(model: Any) -> Iterator[None]:
    """The model's attention layers call the listener."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, eager_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **settings: Any
) -> Any:
    """The model's own eager attention, and what the listener does with its queries and keys."""
    layer = Layer(module, value, attention_mask, settings)
    query, key = query.contiguous(), key.contiguous()
    output, weights = layer.run(query, key)  # weights: (1, H, T, T)
    _listener.get()(module.layer_idx, query, key, weights[0].float(), layer)
    return output, weights


def _check_rows(rows: Tensor, model: ForwardModel) -> None:
    """A head with a sink of its own (gpt-oss) has rows that are not distributions."""
    if float((rows.sum(-1) - 1.0).abs().max()) > 0.05:
        raise UnsupportedModel(
            f"attention: the rows of {type(model.model).__name__} do not sum to 1 (it has "
            "attention sinks as parameters), which is not supported; leave the group out"
        )
