"""The group `kl`: base and checkpoints over the same texts, with the base run only once."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from mlflow_scalpel.comparison.forward import ForwardModel, Head, Progress, keep, place
from mlflow_scalpel.comparison.probes import Probe
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics.compiling import compiled
from mlflow_scalpel.metrics.registry import Metric
from mlflow_scalpel.metrics.token_divergence import TokenDivergence, token_divergence

# Logits formed at once, whatever the vocabulary: 4 MB in float32, which fit the cache of the many
# eager passes; the compiled pass is one, and the products before it are faster when they are large.
# 32 MB are the most that glibc hands out without asking the kernel for pages each time.
SLICE_LOGITS, COMPILED_SLICE_LOGITS = 1 << 20, 1 << 23
FLOOR = "/floor/"  # in the names of the metrics that are of the base alone
NEVER = -1e30  # logit of a token without probability: infinity times that would be NaN
COMPILED_FROM = 1 << 27  # logits of a probe from which compiling (seconds) is worth its time


@dataclass(frozen=True)
class Side:
    """One model over one probe: final hidden states of each text (T, H), and its head."""

    hidden: list[Tensor]
    head: Head


@dataclass(frozen=True)
class Measured:
    """Base and checkpoint over one probe."""

    probe: Probe
    base: Side
    checkpoint: Side
    texts: list[TokenDivergence]


class Divergence:
    """Runs base and checkpoints over the same texts, in one model whose weights are swapped.

    The base's final hidden states are kept, and its output embedding; logits are formed a slice at
    a time in float32 and reduced at once. Raises ScalpelError for a model whose logits are formed
    in a way that `Head` does not know.
    """

    def __init__(self, model: ForwardModel, probes: Sequence[Probe]) -> None:
        self.model = model
        self.probes = list(probes)
        self.last: list[Measured] = []
        """What `rows` measured last, a probe each."""
        model.load_base()
        for item in [item for probe in self.probes for item in probe.items][:1]:
            model.check_head(item)
        head = model.head().clone()
        self._base = [Side(keep(model.hidden(probe.items)), head) for probe in self.probes]

    def rows(
        self, metrics: Sequence[Metric], progress: Progress | None = None
    ) -> Iterator[dict[str, Any]]:
        """Rows of each metric on each probe, of the checkpoint whose weights the model has."""
        head = self.model.head()
        if (size := head.vocabulary) < (wanted := self._base[0].head.vocabulary):
            raise ScalpelError(
                f"the checkpoint's vocabulary has {size} tokens, and the base's {wanted}: KL is "
                "infinite, as the base gives the others some probability"
            )
        self.last = []
        floors = (
            self._floor if any(FLOOR in one.name for one in metrics) else [[] for _ in self.probes]
        )
        for probe, base, floor in zip(self.probes, self._base, floors, strict=True):
            checkpoint = Side(self.model.hidden(probe.items, progress), head)
            texts = divergences(probe, base, checkpoint)
            self.last.append(Measured(probe, base, checkpoint, texts))
            yield from _rows(metrics, probe, texts, floor, self.model.dtype)

    @functools.cached_property
    def _floor(self) -> list[list[TokenDivergence]]:
        """The base in float32 against the base in the dtype in use, over each probe."""
        if self.model.dtype == "float32":
            # A model is at 0 from itself, so nothing needs to be run.
            return [
                [
                    TokenDivergence(*[torch.zeros(len(item.ids)).double()] * 7)
                    for item in probe.items
                ]
                for probe in self.probes
            ]
        exact = Divergence(ForwardModel(self.model.base, device=self.model.device), self.probes)
        return [
            divergences(probe, before, after)
            for probe, before, after in zip(self.probes, exact._base, self._base, strict=True)
        ]


@torch.inference_mode()
def divergences(probe: Probe, base: Side, checkpoint: Side) -> list[TokenDivergence]:
    """Divergences at each position of each text of a probe.

    A checkpoint's vocabulary may have been grown: over all tokens, of which the base gives the new
    ones no probability, KL(base || checkpoint) is finite and KL(checkpoint || base) is not.
    """
    vocabulary = base.head.vocabulary
    function, size = token_divergence, SLICE_LOGITS
    if vocabulary * sum(len(item.ids) for item in probe.items) >= COMPILED_FROM:
        function, size = compiled(token_divergence), COMPILED_SLICE_LOGITS
    step = max(1, size // vocabulary)
    # Slices go across texts: products of one good size, however short the texts are.
    following = [torch.tensor([*item.ids[1:], -1]) for item in probe.items]  # (T,) each
    device = base.head.weight.device  # what is kept on disk is read by the CPU
    lengths = [len(item.ids) for item in probe.items]
    # Made before the first slice: a small tensor that stays, taken from the room of logits that
    # were just freed, would leave too little for the next ones, and the heap would grow by each.
    columns = torch.empty(len(fields(TokenDivergence)), sum(lengths), dtype=torch.float64)
    done = 0
    for before, after, tokens in zip(
        *(_slices(states, step) for states in (base.hidden, checkpoint.hidden, following)),
        strict=True,
    ):
        logits = base.head.logits(before.to(device)), checkpoint.head.logits(after.to(device))
        found = function(
            _grown(logits[0], checkpoint.head.vocabulary), logits[1], tokens.to(device)
        )
        if checkpoint.head.vocabulary > vocabulary:
            found = replace(found, reverse=torch.full_like(found.reverse, math.inf))
        for column, field in zip(columns, fields(found), strict=True):
            column[done : done + len(tokens)] = getattr(found, field.name)
        done += len(tokens)
    return [TokenDivergence(*text.clone()) for text in columns.split(lengths, dim=1)]


def _grown(logits: Tensor, vocabulary: int) -> Tensor:
    """The base's logits (T, V), with tokens that it does not know and so never says."""
    missing = vocabulary - logits.shape[-1]
    return torch.nn.functional.pad(logits, (0, missing), value=NEVER) if missing else logits


def _slices(states: Sequence[Tensor], size: int) -> Iterator[Tensor]:
    """The states one after the other, `size` of their rows at a time."""
    waiting: list[Tensor] = []
    room = size
    for state in states:
        while len(state):
            waiting.append(state[:room])
            state = state[room:]
            room -= len(waiting[-1])
            if room == 0:
                yield torch.cat(waiting)
                waiting, room = [], size
    if waiting:
        yield torch.cat(waiting)


def _rows(
    metrics: Sequence[Metric],
    probe: Probe,
    texts: list[TokenDivergence],
    floor: list[TokenDivergence],
    dtype: str,
) -> Iterator[dict[str, Any]]:
    answers = [item.answer for item in probe.items]
    for one in metrics:
        chosen = floor if FLOOR in one.name else texts
        if one.name.endswith("/answer_tokens"):
            chosen = [text.of(answer) for text, answer in zip(chosen, answers, strict=True)]
        for estimate in one.function(chosen):
            yield {**place(one, probe, dtype), **estimate.columns()}
