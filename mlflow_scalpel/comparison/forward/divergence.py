"""The group `kl`: base and checkpoints over the same texts, with the base run only once.

What a pass finds at single tokens is a table of its own beside the tidy one (`token_table`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mlflow_scalpel.comparison.forward.model import ForwardModel, Head, keep
from mlflow_scalpel.comparison.forward.probes import Probe
from mlflow_scalpel.comparison.runner import Progress, place
from mlflow_scalpel.comparison.table import (
    TOKEN_DTYPES,
)
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics.compiling import compiled
from mlflow_scalpel.metrics.registry import Metric
from mlflow_scalpel.metrics.token_divergence import TokenDivergence, token_divergence

# Logits formed at once, whatever the vocabulary: 4 MB in float32, which fit the cache of the many
# eager passes; the compiled pass is one, and the products before it are faster when they are large.
# 32 MB are the most that glibc hands out without asking the kernel for pages each time.
SLICE_LOGITS, COMPILED_SLICE_LOGITS = 1 << 20, 1 << 23
FLOOR = "/floor/"  # in the names of the metrics that are of the base alone
IMPOSSIBLE_LOGIT = -1e30  # logit of a token without probability: infinity times that would be NaN
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
        """The last result of `rows`, one for each probe."""
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
    return (
        torch.nn.functional.pad(logits, (0, missing), value=IMPOSSIBLE_LOGIT) if missing else logits
    )


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


PROBLEMS, RANKED, TOP, CONTEXT = 8, 200, 5, 160


@torch.inference_mode()
def token_table(measured: Sequence[Measured], tokenizer: Any) -> pd.DataFrame:
    """Divergences and most likely tokens at single positions; `named` fills in model_id and step.

    A row is a position of a text: `token` is what the text goes on with there (null after the last
    position), and the divergences are those of the two models' distributions over it. There are all
    tokens of the first 8 problems of each probe, and the 200 of the largest KL over all texts.
    """
    ranks = _ranks(measured)
    texts = _Texts(tokenizer)
    records = []
    for number, one in enumerate(measured):
        for problem, item in enumerate(one.probe.items):
            everywhere = range(len(item.ids)) if problem < PROBLEMS else ()
            ranked = [at for probe, text, at in ranks if (probe, text) == (number, problem)]
            positions = sorted({*everywhere, *ranked})
            if not positions:
                continue
            base_p, base_top = _top(one, "base", problem, positions)
            checkpoint_p, checkpoint_top = _top(one, "checkpoint", problem, positions)
            answer = range(len(item.ids))[item.answer]
            values = one.texts[problem]
            for row, at in enumerate(positions):
                following = item.ids[at + 1] if at + 1 < len(item.ids) else None
                rank = ranks.get((number, problem, at))
                records.append(
                    {
                        "texts": one.probe.texts,
                        "problem": problem,
                        "position": at,
                        "token": None if following is None else texts.of(following),
                        "token_id": following,
                        "answer": at in answer,
                        "kl": float(values.forward[at]),
                        "reverse": float(values.reverse[at]),
                        "base_entropy": float(values.base_entropy[at]),
                        "rank": rank,
                        "context": None if rank is None else texts.before(item.ids, at),
                        "base_top": [texts.of(token) for token in base_top[row]],
                        "checkpoint_top": [texts.of(token) for token in checkpoint_top[row]],
                        "base_top_p": base_p[row],
                        "checkpoint_top_p": checkpoint_p[row],
                        "right_p_base": float(values.base_right[at]),
                        "right_p_checkpoint": float(values.checkpoint_right[at]),
                    }
                )
    return pd.DataFrame(records, columns=list(TOKEN_DTYPES)).astype(TOKEN_DTYPES)


def named(table: pd.DataFrame, model_id: str, step: int | None) -> pd.DataFrame:
    """The table with its model and step; an empty model ID is null: it is not known yet."""
    return table.assign(model_id=model_id or None, step=step).astype(TOKEN_DTYPES)


def _ranks(measured: Sequence[Measured]) -> dict[tuple[int, int, int], int]:
    """Rank of each of the tokens with the largest KL: by number of probe, problem and position."""
    places, values = [], []
    for number, one in enumerate(measured):
        for problem, text in enumerate(one.texts):
            places += [(number, problem, at) for at in range(len(text.forward))]
            values.append(text.forward)
    if not places:
        return {}
    # NaN and infinity come first, since they want to be looked at.
    order = torch.cat(values).nan_to_num(math.inf).argsort(descending=True, stable=True)
    return {places[index]: rank for rank, index in enumerate(order[:RANKED].tolist(), 1)}


def _top(
    one: Measured, side: str, problem: int, positions: list[int]
) -> tuple[list[list[float]], list[list[int]]]:
    """Probabilities and IDs of the most likely tokens at some positions of a problem."""
    model = getattr(one, side)
    hidden: Tensor = model.hidden[problem][positions].to(model.head.weight.device)
    step = max(1, SLICE_LOGITS // model.head.vocabulary)
    probabilities, tokens = [], []
    for start in range(0, len(positions), step):
        logits = model.head.logits(hidden[start : start + step])  # (t, V)
        best, index = logits.topk(min(TOP, logits.shape[-1]), dim=-1)
        probabilities += (best - logits.logsumexp(-1, keepdim=True)).exp().tolist()
        tokens += index.tolist()
    return probabilities, tokens


class _Texts:
    """Texts of tokens, each decoded once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def of(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._tokenizer.decode([token])
        return self._known[token]

    def before(self, ids: Sequence[int], at: int) -> str:
        """The end of the text up to and with position `at`; a token has one character or more."""
        near = ids[max(0, at + 1 - CONTEXT) : at + 1]
        return str(self._tokenizer.decode(list(near)))[-CONTEXT:]
