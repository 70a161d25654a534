"""The group `kl`: base and checkpoints over the same texts, with the base run only once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlflow_scalpel.checkpoints.weights import load_weights
from mlflow_scalpel.comparison.probes import Probe, ProbeText
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics.compiling import compiled
from mlflow_scalpel.metrics.kl.tokens import TokenDivergence, token_divergence
from mlflow_scalpel.metrics.registry import Metric

BATCH_TOKENS = 4096  # tokens a forward pass, padding included
# Logits formed at once, whatever the vocabulary: 4 MB in float32, which fit the cache of the many
# eager passes; the compiled ones are few, and like larger products.
SLICE_LOGITS, COMPILED_SLICE_LOGITS = 1 << 20, 1 << 22
COMPILED_FROM = 1 << 27  # logits of a probe from which compiling (seconds) is worth its time
KEPT_IN_MEMORY = 256 << 20  # bytes of the base's hidden states; more of them wait on disk

Progress = Callable[[int], object]
"""Called with a number of texts each time so many more have been run."""


class Divergence:
    """Runs base and checkpoints over the same texts, in one model whose weights are swapped.

    The base's final hidden states are kept, and its output embedding; logits are formed a slice at
    a time in float32 and reduced at once. Raises ScalpelError for a model whose logits are not its
    hidden state times its output embedding.
    """

    def __init__(
        self, base: Path, probes: Sequence[Probe], *, dtype: str = "float32", device: str = "cpu"
    ) -> None:
        from transformers import AutoModelForCausalLM

        self.probes = list(probes)
        self.dtype = dtype
        self._device = device
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
        self._model = model.to(device).eval()
        self._check_logits()
        self._base_head = self._head().clone()
        self._base_hidden = [_kept(self._hidden(probe.items)) for probe in self.probes]
        self._floor = self._measure_floor(base)

    def rows(
        self, checkpoint: Path, metrics: Sequence[Metric], progress: Progress | None = None
    ) -> Iterator[dict[str, Any]]:
        """Rows of each metric on each probe; a checkpoint of another model is rows that say so."""
        try:
            load_weights(self._model, checkpoint)
        except ScalpelError as error:
            yield from failed_rows(
                metrics, self.probes, self.dtype, "not comparable", f"KL: {error}"
            )
            return
        head = self._head()
        for probe, hidden, floor in zip(self.probes, self._base_hidden, self._floor, strict=True):
            after = self._hidden(probe.items, progress)
            texts = self._tokens(probe, hidden, self._base_head, after, head)
            yield from _rows(metrics, probe, texts, floor, self.dtype)

    def _measure_floor(self, base: Path) -> list[list[TokenDivergence]]:
        """The base in float32 against the base in the dtype in use, over each probe."""
        if self.dtype == "float32":
            # A model is at 0 from itself, so nothing needs to be run.
            return [
                [
                    TokenDivergence(*[torch.zeros(len(item.ids)).double()] * 7)
                    for item in probe.items
                ]
                for probe in self.probes
            ]
        exact = Divergence(base, self.probes, device=self._device)
        return [
            self._tokens(probe, before, exact._base_head, after, self._base_head)
            for probe, before, after in zip(
                self.probes, exact._base_hidden, self._base_hidden, strict=True
            )
        ]

    @torch.inference_mode()
    def _hidden(
        self, items: tuple[ProbeText, ...], progress: Progress | None = None
    ) -> list[Tensor]:
        """Final hidden states of each text, (T, H) float32, after the last norm."""
        order = sorted(range(len(items)), key=lambda index: len(items[index].ids))
        states: list[Tensor] = [torch.empty(0)] * len(items)
        while order:
            # Texts of like length share a batch; a causal model ignores padding on the right.
            longest = len(items[order[-1]].ids)
            size = max(1, BATCH_TOKENS // longest)
            batch, order = order[-size:], order[:-size]
            ids = torch.zeros(len(batch), longest, dtype=torch.long)  # (B, T)
            mask = torch.zeros_like(ids)
            for row, index in enumerate(batch):
                text = items[index].ids
                ids[row, : len(text)] = torch.tensor(text)
                mask[row, : len(text)] = 1
            out = self._model.base_model(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                use_cache=False,
            ).last_hidden_state  # (B, T, H)
            for row, index in enumerate(batch):
                states[index] = out[row, : len(items[index].ids)].float().clone()
            if progress is not None:
                progress(len(batch))
        return states

    @torch.inference_mode()
    def _tokens(
        self,
        probe: Probe,
        before: list[Tensor],
        before_head: Tensor,
        after: list[Tensor],
        after_head: Tensor,
    ) -> list[TokenDivergence]:
        """Divergences at each position of each text of a probe."""
        vocabulary = after_head.shape[0]
        function, size = token_divergence, SLICE_LOGITS
        if vocabulary * sum(len(item.ids) for item in probe.items) >= COMPILED_FROM:
            function, size = compiled(token_divergence), COMPILED_SLICE_LOGITS
        step = max(1, size // vocabulary)
        found = []
        for item, base, checkpoint in zip(probe.items, before, after, strict=True):
            following = torch.tensor([*item.ids[1:], -1], device=after_head.device)  # (T,)
            parts = []
            for start in range(0, len(item.ids), step):
                these = slice(start, start + step)
                logits = base[these] @ before_head.T  # (t, V)
                parts.append(function(logits, checkpoint[these] @ after_head.T, following[these]))
            found.append(
                TokenDivergence(
                    *(
                        torch.cat([getattr(part, field.name) for part in parts]).cpu()
                        for field in fields(TokenDivergence)
                    )
                )
            )
        return found

    def _head(self) -> Tensor:
        """The output embedding, (V, H) float32."""
        return self._model.get_output_embeddings().weight.detach().float()

    @torch.inference_mode()
    def _check_logits(self) -> None:
        """Some families scale or cap their logits, which hidden states and embedding alone miss."""
        first = next((item for probe in self.probes for item in probe.items), None)
        if first is None:
            return
        ids = torch.tensor([first.ids], device=self._device)  # (1, T)
        logits = self._model(input_ids=ids, use_cache=False).logits[0].float()  # (T, V)
        ours = self._hidden((first,))[0] @ self._head().T
        tolerance = 1e-3 if self.dtype == "float32" else 0.1
        if not torch.allclose(logits, ours, atol=tolerance * float(logits.abs().max()), rtol=0):
            raise ScalpelError(
                f"KL: {type(self._model).__name__} does not form its logits as hidden state times "
                "output embedding (it scales or caps them), which is not supported; "
                "leave the probes out"
            )


def failed_rows(
    metrics: Sequence[Metric], probes: Sequence[Probe], dtype: str, status: str, reason: str
) -> Iterator[dict[str, Any]]:
    """A row without a value for each metric and probe, with its reason."""
    for probe in probes:
        for one in metrics:
            yield {**_place(one, probe, dtype), "status": status, "reason": reason}


def _rows(
    metrics: Sequence[Metric],
    probe: Probe,
    texts: list[TokenDivergence],
    floor: list[TokenDivergence],
    dtype: str,
) -> Iterator[dict[str, Any]]:
    answers = [item.answer for item in probe.items]
    for one in metrics:
        chosen = floor if one.name.startswith("kl/floor/") else texts
        if one.name.endswith("/answer_tokens"):
            chosen = [text.of(answer) for text, answer in zip(chosen, answers, strict=True)]
        for estimate in one.function(chosen):
            row = {
                **_place(one, probe, dtype),
                "value": estimate.value,
                "stderr": estimate.stderr,
                "n": estimate.n,
                "bin": estimate.bin,
            }
            if estimate.bad:
                row["status"] = "not finite"
                row["reason"] = f"{estimate.bad} of {estimate.n} problems gave NaN or infinity"
            yield row


def _place(one: Metric, probe: Probe, dtype: str) -> dict[str, Any]:
    return {
        "metric": one.name,
        "metric_version": one.version,
        "unit": one.unit,
        "dtype": dtype,
        "texts": probe.texts,
    }


def _kept(states: list[Tensor]) -> list[Tensor]:
    """The hidden states, on disk where they are many; the file goes when nobody reads it."""
    numbers = sum(state.numel() for state in states)
    if 4 * numbers <= KEPT_IN_MEMORY:
        return states
    with tempfile.NamedTemporaryFile(prefix="scalpel-hidden-states-") as file:
        store = torch.from_file(file.name, shared=True, size=numbers, dtype=torch.float32)
        found, start = [], 0
        for state in states:
            place = store[start : start + state.numel()].view(state.shape)
            place.copy_(state)
            found.append(place)
            start += state.numel()
        return found
