"""Training data in the form that TRL's trainers take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from mlflow_scalpel.chat import render, settled, system_turn
from mlflow_scalpel.data import load_rows
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.recipes.training import GrpoRecipe, SftRecipe, TrainingRecipe

_BATCH = 1000  # texts that are tokenized at a time


@dataclass(frozen=True)
class Pool:
    """The problems that a run draws from, one row a distinct problem, and what was left out."""

    rows: list[dict[str, Any]]
    repeated: int
    """Rows whose problem an earlier row has."""
    long_prompts: int
    """Problems with a prompt over `data.max_prompt_tokens`."""
    long_solutions: int
    """Of the others, problems with a solution over `data.max_solution_tokens`."""

    def params(self) -> dict[str, int]:
        """Counts for the run's params."""
        return {
            "data_problems": len(self.rows),
            "data_dropped_repeated": self.repeated,
            "data_dropped_long_prompts": self.long_prompts,
            "data_dropped_long_solutions": self.long_solutions,
        }


def open_pool(recipe: TrainingRecipe, tokenizer: Any = None) -> Pool:
    """The recipe's problems, without repetitions and without what is too long.

    `tokenizer` is needed where the recipe limits lengths. Raises ScalpelError where nothing is
    left, or where the data lacks what the recipe learns from.
    """
    data, needs = recipe.data, ["problem"]
    if isinstance(recipe, SftRecipe) or data.max_solution_tokens is not None:
        needs.append("solution")
    if isinstance(recipe, GrpoRecipe) and recipe.rewards.accuracy > 0:
        needs.append("answer")
    read = load_rows(data, needs=tuple(needs))
    distinct = _distinct(read)
    rows, dropped = distinct, [0, 0]
    if data.max_prompt_tokens is not None:
        prompts = [render(tokenizer, settled(tokenizer, _question(recipe, row))) for row in rows]
        rows = _short(rows, prompts, tokenizer, data.max_prompt_tokens)
        dropped[0] = len(distinct) - len(rows)
    if data.max_solution_tokens is not None:
        before = len(rows)
        rows = _short(rows, [row["solution"] for row in rows], tokenizer, data.max_solution_tokens)
        dropped[1] = before - len(rows)
    if not rows:
        raise ScalpelError(
            f"data {data.describe()}: all {len(distinct)} problems are too long ({dropped[0]} "
            f"prompts over {data.max_prompt_tokens} tokens, {dropped[1]} solutions over "
            f"{data.max_solution_tokens}); raise data.max_prompt_tokens or max_solution_tokens"
        )
    if any(dropped):
        print(
            f"data: {len(rows)} of {len(distinct)} problems kept; {dropped[0]} prompts are over "
            f"{data.max_prompt_tokens} tokens, {dropped[1]} solutions over "
            f"{data.max_solution_tokens}",
            flush=True,
        )
    return Pool(rows, len(read) - len(distinct), dropped[0], dropped[1])


def sft_examples(recipe: SftRecipe, pool: Pool) -> datasets.Dataset:
    """Columns `prompt` and `completion`, as chat messages; one row a problem."""
    return datasets.Dataset.from_list(
        [
            {
                "prompt": _question(recipe, row),
                "completion": [{"role": "assistant", "content": row["solution"]}],
            }
            for row in pool.rows
        ]
    )


def grpo_examples(recipe: GrpoRecipe, pool: Pool) -> datasets.Dataset:
    """Columns `prompt` (chat messages) and `answer`; one row a problem."""
    return datasets.Dataset.from_list(
        [{"prompt": _question(recipe, row), "answer": row["answer"]} for row in pool.rows]
    )


def _question(recipe: TrainingRecipe, row: dict[str, Any]) -> list[dict[str, str]]:
    return [*system_turn(recipe.system_prompt), {"role": "user", "content": row["problem"]}]


def _distinct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first row of each problem: then an epoch sees each problem once, and counts are exact."""
    return list({row["problem"]: row for row in reversed(rows)}.values())[::-1]


def _short(
    rows: list[dict[str, Any]], texts: Sequence[str], tokenizer: Any, limit: int
) -> list[dict[str, Any]]:
    """The rows whose text has at most `limit` tokens (a template writes special tokens itself)."""
    kept = []
    for start in range(0, len(rows), _BATCH):
        batch = list(texts[start : start + _BATCH])
        lengths = map(len, tokenizer(batch, add_special_tokens=False)["input_ids"])
        pairs = zip(rows[start : start + _BATCH], lengths, strict=True)
        kept += [row for row, length in pairs if length <= limit]
    return kept
