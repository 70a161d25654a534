"""The group `kl_paper_compat`: KL in bfloat16, as the authors of arXiv 2507.10616 computed it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mlflow_scalpel.comparison.divergence import SLICE_LOGITS
from mlflow_scalpel.comparison.forward import ForwardModel, Head, Progress, keep, place
from mlflow_scalpel.comparison.probes import Probe, ProbeText
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics.paper_compat import bfloat16_divergence
from mlflow_scalpel.metrics.registry import Metric


class PaperDivergence:
    """Runs base and checkpoints in bfloat16, text by text, one model whose weights are swapped.

    Raises ScalpelError for a model whose logits are formed in a way that `Head` does not know.
    Only the base's final hidden states are kept; its logits are made again a slice at a time.
    """

    def __init__(self, model: ForwardModel, probes: Sequence[Probe]) -> None:
        self.model = model
        self.probes = list(probes)
        model.load_base()
        for item in [item for probe in self.probes for item in probe.items][:1]:
            model.check_head(item)
        self._head = model.head(torch.bfloat16).clone()
        self._base = [keep([self._hidden(item) for item in probe.items]) for probe in self.probes]

    def rows(
        self, metrics: Sequence[Metric], progress: Progress | None = None
    ) -> Iterator[dict[str, Any]]:
        """A row for each metric and probe, of the checkpoint whose weights the model has."""
        head = self.model.head(torch.bfloat16)
        if head.vocabulary != self._head.vocabulary:
            raise ScalpelError(
                f"kl_paper_compat: the base's vocabulary has {self._head.vocabulary} tokens, and "
                f"the checkpoint's {head.vocabulary}, of which the authors' way makes NaN; see kl"
            )
        for probe, base in zip(self.probes, self._base, strict=True):
            problems = []
            for item, before in zip(probe.items, base, strict=True):
                problems.append(self._divergence(before, self._hidden(item), head))
                if progress is not None:
                    progress(1)
            for one in metrics:
                for estimate in one.function(problems):
                    yield {**place(one, probe, "bfloat16"), **estimate.columns()}

    @torch.inference_mode()
    def _hidden(self, item: ProbeText) -> Tensor:
        """Final hidden states (T, H) bfloat16."""
        return self.model.states(torch.tensor([item.ids]))[0].clone()

    @torch.inference_mode()
    def _divergence(self, before: Tensor, after: Tensor, head: Head) -> Tensor:
        """KL of each position, (T,) bfloat16."""
        step = max(1, SLICE_LOGITS // head.vocabulary)
        before = before.to(after.device)  # what is kept on disk is read by the CPU
        slices = [slice(at, at + step) for at in range(0, len(before), step)]
        return torch.cat(
            [
                bfloat16_divergence(self._head.logits(before[these]), head.logits(after[these]))
                for these in slices
            ]
        ).cpu()
