r"""Whether a lost answer is gone, or only out of reach: how likely the gold answer still is.

Of each problem that the base gets right with its first sample, the gold answer is scored twice:
right after the prompt, and after the opening that the base gave it, its own completion up to where
the answer begins (so that it does not hold the answer). Of checkpoints only the problems that they
lost are scored.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from mlflow_scalpel.evaluation.harness import Evaluator

KEY = ["label", "kind", "problem_id"]
_BOX = r"\boxed{"
_TAG = re.compile(r"<answer>\s*")


def opening_of(completion: str, gold: str, problem: str = "") -> str | None:
    r"""The completion up to where its answer begins; None where no answer is found.

    That is after the last \boxed{; without one, after the last <answer> and its blanks. Where the
    gold answer stands in the text before (as in working that ends in it), or without either mark,
    it is before the first such place: else a model would only have to copy. A place that repeats
    the problem does not count. An intermediate result that equals the answer ends it too early.
    """
    box = completion.rfind(_BOX)
    tags = list(_TAG.finditer(completion))
    marked = box + len(_BOX) if box >= 0 else tags[-1].end() if tags else None
    stated = _stated(completion, gold, problem)
    if stated is None or marked is None:
        end = marked if stated is None else stated
    else:
        end = min(marked, stated)
    return None if end is None else completion[:end]


def _stated(completion: str, gold: str, problem: str) -> int | None:
    """Position at which the gold answer first stands by itself, not as part of the problem."""
    if not gold:
        return None
    # Not within a word or a longer number, nor an exponent or index.
    for found in re.finditer(rf"(?<![\w^_.]){re.escape(gold)}(?!\w|\.\d)", completion):
        with_what_follows = completion[found.start() : found.end() + 2]
        if len(with_what_follows) < len(gold) + 2 or with_what_follows not in problem:
            return found.start()
    return None


def score_gold_answers(
    evaluator: Evaluator, samples: pd.DataFrame, base: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The rows with the columns gold_loglik and gold_loglik_after_opening, in nats.

    `samples` are the rows of the model whose weights are loaded, which the evaluator has just run,
    and `base` those of the base; None where `samples` are the base's. Values stand on the first
    sample of a problem; they are NaN where nothing was scored.
    """
    rows = samples.assign(gold_loglik=float("nan"), gold_loglik_after_opening=float("nan"))
    first = _first(rows)
    openings = _openings(rows if base is None else base, evaluator)
    wanted = first if base is None else first[first["score"] < 1.0]
    # An array, since an empty list would choose columns.
    wanted = wanted[np.array([key in openings for key in _keys(wanted)], dtype=bool)]
    plain, after = [], []
    for key, gold in zip(_keys(wanted), wanted["gold"].astype(str), strict=True):
        prompt, opening = evaluator.prompts[key], openings[key]
        plain.append((prompt, gold))
        after.append((prompt + (opening or ""), gold if opening is not None else ""))
    values = evaluator.loglikelihoods(plain + after)
    rows.loc[wanted.index, "gold_loglik"] = values[: len(wanted)]
    rows.loc[wanted.index, "gold_loglik_after_opening"] = values[len(wanted) :]
    return rows


def _openings(base: pd.DataFrame, evaluator: Evaluator) -> dict[tuple[str, str, str], str | None]:
    """The opening that the base gave each problem that it gets right and generated for."""
    first = _first(base)
    right = first[first["score"] == 1.0]
    openings = map(opening_of, right["completion"], right["gold"], right["problem"])
    found = zip(_keys(right), openings, strict=True)
    return {key: opening for key, opening in found if key in evaluator.prompts}


def _first(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["sample"] == 0].drop_duplicates(KEY)


def _keys(rows: pd.DataFrame) -> list[tuple[str, str, str]]:
    return list(rows[KEY].itertuples(index=False, name=None))
