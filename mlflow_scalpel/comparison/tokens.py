"""Tables of single tokens: what base and checkpoint say where, kept on a run beside its tidy table.

A row is a position of a text: `token` is what the text goes on with there (null after the last
position), and the divergences are those of the two models' distributions over it. A table holds all
tokens of the first 8 problems of each probe, and the 200 tokens of the largest KL over all texts.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow import MlflowClient
from torch import Tensor

from mlflow_scalpel.comparison.divergence import SLICE_LOGITS, Measured
from mlflow_scalpel.comparison.run_queries import TOKENS
from mlflow_scalpel.comparison.token_files import (
    DTYPES,
    artifact_name,
    read_tokens,
    write_tokens,
)
from mlflow_scalpel.errors import ScalpelError

PROBLEMS, RANKED, TOP, CONTEXT = 8, 200, 5, 160
_NAME = re.compile(r"step-(\d+)\.parquet")


@torch.inference_mode()
def token_table(measured: Sequence[Measured], tokenizer: Any) -> pd.DataFrame:
    """The table of one checkpoint; `named` fills in model_id and step."""
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
    return pd.DataFrame(records, columns=list(DTYPES)).astype(DTYPES)


def named(table: pd.DataFrame, model_id: str, step: int | None) -> pd.DataFrame:
    """The table with its model and step; an empty model ID is null: it is not known yet."""
    return table.assign(model_id=model_id or None, step=step).astype(DTYPES)


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


def log_tokens(tables: Sequence[pd.DataFrame], run_id: str) -> None:
    """Store tables on a run, a file a step; models without a step are numbered in order.

    Tables of models at the same step share its file.
    """
    if not tables:
        return
    by_step: dict[int, list[pd.DataFrame]] = {}
    for number, table in enumerate(tables):
        step = table["step"].iloc[0]
        by_step.setdefault(number if pd.isna(step) else int(step), []).append(table)
    with tempfile.TemporaryDirectory() as scratch:
        for step, same in by_step.items():
            write_tokens(pd.concat(same, ignore_index=True), Path(scratch) / artifact_name(step))
        MlflowClient().log_artifacts(run_id, scratch, TOKENS)


def token_steps(run_id: str) -> list[int]:
    """Steps of which the run has a table, in order."""
    files = [Path(file.path).name for file in MlflowClient().list_artifacts(run_id, TOKENS)]
    return sorted(int(found[1]) for name in files if (found := _NAME.fullmatch(name)))


def stored_tokens(run_id: str, step: int) -> pd.DataFrame:
    """The table that the run has of a step.

    A table that was written as training went on does not name the model, which was still on its way
    to MLflow; it is taken from the run's tidy table. Raises ScalpelError where there is no table.
    """
    from mlflow_scalpel.comparison.run_store import stored_table

    known = token_steps(run_id)
    if step not in known:
        raise ScalpelError(
            f"run {run_id}: has no table of tokens for step {step}; there is one for "
            f"{', '.join(map(str, known)) or 'no step'}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        name = f"runs:/{run_id}/{TOKENS}/{artifact_name(step)}"
        table = read_tokens(mlflow.artifacts.download_artifacts(name, dst_path=scratch))
    if table["model_id"].isna().any():
        tidy = stored_table(run_id)
        models = {} if tidy is None else dict(zip(tidy["step"], tidy["model_id"], strict=True))
        table["model_id"] = table["model_id"].fillna(_named(models, step))
    return table


def _named(models: Mapping[Any, Any], step: int) -> str:
    name = models.get(step)
    return "" if name is None or pd.isna(name) else str(name)
