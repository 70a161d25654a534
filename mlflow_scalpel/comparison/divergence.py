"""KL of a checkpoint from its base over probe texts, with the base run only once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlflow_scalpel.checkpoints.weights import load_weights
from mlflow_scalpel.comparison.probes import Probe, ProbeText
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics.registry import metrics_of_kind

BATCH_TOKENS = 4096  # tokens a forward pass, padding included
SLICE_LOGITS = 1 << 22  # logits formed at once: 16 MB in float32, whatever the vocabulary


class Divergence:
    """Runs base and checkpoints over the same texts, in one model whose weights are swapped.

    The base's final hidden states are kept, and its output embedding; logits are formed a slice at
    a time in float32 and reduced at once.
    """

    def __init__(
        self,
        base: Path,
        probes: list[Probe],
        *,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        from transformers import AutoModelForCausalLM

        self.probes = probes
        self.dtype = dtype
        self._device = device
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
        self._model = model.to(device).eval()
        self._check_logits()
        self._base_head = self._head().clone()
        self._base_hidden = [self._hidden(probe.items) for probe in probes]

    def rows(self, checkpoint: Path) -> Iterator[dict[str, Any]]:
        """Rows of each divergence metric over all tokens and over answer tokens, for each probe."""
        load_weights(self._model, checkpoint)
        head = self._head()
        for metric in metrics_of_kind("divergence"):
            for probe, base_hidden in zip(self.probes, self._base_hidden, strict=True):
                hidden = self._hidden(probe.items)
                per_token = [
                    self._reduce(metric.function, before, after, head)
                    for before, after in zip(base_hidden, hidden, strict=True)
                ]
                spans = {
                    "all_tokens": per_token,
                    "answer_tokens": [
                        values[item.answer]
                        for values, item in zip(per_token, probe.items, strict=True)
                    ],
                }
                for tokens, values in spans.items():
                    yield {
                        "metric": f"{metric.name}/{tokens}",
                        "metric_version": metric.version,
                        "unit": metric.unit,
                        "dtype": self.dtype,
                        "texts": probe.texts,
                        **_mean_over_problems(values),
                    }

    @torch.inference_mode()
    def _hidden(self, items: tuple[ProbeText, ...]) -> list[Tensor]:
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
        return states

    @torch.inference_mode()
    def _reduce(self, function: Any, before: Tensor, after: Tensor, head: Tensor) -> Tensor:
        """The metric at each of the T positions of a text, (T,) float64."""
        step = max(1, SLICE_LOGITS // head.shape[0])
        parts = [
            function(
                before[start : start + step] @ self._base_head.T,  # (t, V)
                after[start : start + step] @ head.T,
            )
            for start in range(0, before.shape[0], step)
        ]
        return torch.cat(parts).cpu()

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


def _mean_over_problems(values: list[Tensor]) -> dict[str, Any]:
    """Mean within each problem, then over problems, with the standard error over problems."""
    means = torch.stack([problem.mean() for problem in values])  # (problems,)
    finite = means[torch.isfinite(means)]
    if len(finite) < len(means):
        return {
            "value": math.nan,
            "n": len(means),
            "status": "not finite",
            "reason": f"{len(means) - len(finite)} of {len(means)} problems gave NaN or infinity",
        }
    error = float(means.std() / math.sqrt(len(means))) if len(means) > 1 else math.nan
    return {"value": float(means.mean()), "stderr": error, "n": len(means)}
