"""The problems that a run learns from, without repetitions and without what is too long."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlflow_scalpel.chat import render, render_answered, settled
from mlflow_scalpel.data.account import Account
from mlflow_scalpel.data.conversations import EARLIER, question
from mlflow_scalpel.data.sources import load
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.recipes.training import GrpoRecipe, SftRecipe, TrainingRecipe
from mlflow_scalpel.run_warnings import warn
from mlflow_scalpel.training.rewards import choose_rewards

_BATCH = 1000  # texts that are tokenized at a time


@dataclass(frozen=True)
class Pool:
    """The problems that a run draws from, one row a distinct problem, and what was left out."""

    rows: list[dict[str, Any]]
    account: Account
    cut: int = 0
    """Of the rows, those whose solution loses its end at `train.max_length`."""
    system_prompt: str | None = None
    """The recipe's, or the one system turn that all rows bring."""
    warnings: dict[str, str] = field(default_factory=dict)
    """By code."""

    def params(self) -> dict[str, int | str]:
        """Counts for the run's params: few, since MLflow shows them beside each chart."""
        counts = {**self.account.dropped, "cut at max_length": self.cut}
        dropped = [f"{reason} {count}" for reason, count in counts.items() if count]
        return {
            "data_rows": self.account.rows,
            "data_problems": len(self.rows),
            "data_dropped": ", ".join(dropped) or "none",
        }


def open_pool(recipe: TrainingRecipe, tokenizer: Any = None, run_id: str = "") -> Pool:
    """The recipe's problems, without repetitions and without what is too long or cannot be read.

    Prints what was left out and why; warns of it, on the run `run_id`, where that is half or more.
    `tokenizer` is needed where the recipe limits lengths. Raises ScalpelError where nothing is
    left, or where the data has nothing that the recipe learns from.
    """
    pool = _make_pool(recipe, tokenizer)
    line = pool.account.line()
    if line is not None and os.environ.get("RANK", "0") == "0":
        print(line, flush=True)
    for code, message in pool.warnings.items():
        warn(code, message, run_id)
    return pool


def _make_pool(recipe: TrainingRecipe, tokenizer: Any) -> Pool:
    data, needs = recipe.data, {"problem"}
    rewards = choose_rewards(recipe) if isinstance(recipe, GrpoRecipe) else []
    if isinstance(recipe, SftRecipe) or data.max_solution_tokens is not None:
        needs.add("solution")
    needs.update(column for one in rewards for column in one.reward.columns)
    loaded, warnings = load(data, needs=tuple(sorted(needs))), {}
    if any(one.reward.answers_are_mathematics for one in rewards):
        from mlflow_scalpel.evaluation.grading.unreadable import readable_golds

        loaded, unreadable = readable_golds(loaded, data)
        if unreadable is not None:
            warnings["unreadable_golds"] = unreadable
    account = loaded.account
    _check_system_prompts(recipe, loaded.rows, loaded.places)
    rows = _distinct(loaded.rows, account)
    rows = _short_ones(recipe, rows, tokenizer, account)
    cut = 0
    if isinstance(recipe, SftRecipe) and recipe.train.max_length is not None:
        rows, cut = _fitting(recipe, rows, tokenizer, recipe.train.max_length, account)
        if cut:
            warnings["cut"] = (
                f"train.max_length = {recipe.train.max_length}: {cut} of {len(rows)} solutions are "
                "cut there, and lose their end, answer and end of turn included; raise it, or "
                "leave them out with data.max_solution_tokens"
            )
    earlier = sum(any(one["role"] != "system" for one in row[EARLIER]) for row in rows)
    if earlier:
        account.note(f"{earlier} have earlier turns, which are context and not learned")
    lost = account.warning()
    if lost is not None and account.dropped.get("repeated"):
        lost += "; where another column tells them apart, join it, as in the recipe's "
        lost += 'problem: "{instruction}\\n{input}"'
    if lost is not None:
        warnings["data"] = lost
    prompts = {_system_prompt(recipe, row) for row in rows}
    if len(prompts) > 1:
        warnings["system_prompts"] = (
            f"the data brings {len(prompts)} different system prompts (no prompt is one of them "
            "where a row has none), and what is measured and evaluated after training has none; "
            "give one with system_prompt, and leave the data's out by naming the turns' paths in "
            "columns.problem and columns.solution"
        )
    elif recipe.system_prompt is None and recipe.probes and prompts != {None}:
        warnings["system_prompts"] = (
            f"the data brings the system prompt {next(iter(prompts))!r}, which the probes have "
            "only where their rows bring it too; set system_prompt to it for both"
        )
    same = next(iter(prompts)) if len(prompts) == 1 else None
    return Pool(rows, account, cut, same, warnings)


def _check_system_prompts(
    recipe: TrainingRecipe, rows: list[dict[str, Any]], places: list[str]
) -> None:
    """Raise ScalpelError where a row brings a system prompt other than the recipe's."""
    for row, place in zip(rows, places, strict=True):
        own = _system_prompt(recipe, row)
        if None not in (own, recipe.system_prompt) and own != recipe.system_prompt:
            raise ScalpelError(
                f"data {recipe.data.describe()}: {place} has the system turn "
                f"{str(own)[:60]!r}, and system_prompt = {str(recipe.system_prompt)[:60]!r} is "
                "given too; set system_prompt=null to take the data's, or name the turns' paths "
                "(columns.problem, columns.solution) to leave it out"
            )


def _system_prompt(recipe: TrainingRecipe, row: dict[str, Any]) -> str | None:
    """The system prompt with which a row is asked: its own system turn, or else the recipe's."""
    first = row[EARLIER][0] if row[EARLIER] else None
    if first is not None and first["role"] == "system":
        return str(first["content"])
    return recipe.system_prompt


def _distinct(rows: list[dict[str, Any]], account: Account) -> list[dict[str, Any]]:
    """The first row of each problem: then an epoch sees each problem once, and counts are exact.

    A problem is the question with the turns before it.
    """
    first: dict[str, dict[str, Any]] = {}
    others = 0
    for row in rows:
        key = json.dumps([row[EARLIER], row["problem"]])
        kept = first.setdefault(key, row)
        others += any(kept[role] != row[role] for role in ("solution", "answer"))
    repeated = len(rows) - len(first)
    detail = f" ({others} of them with another solution or answer)" if others else ""
    account.drop("repeated", repeated, f"repeat an earlier problem{detail}")
    return list(first.values())


def _short_ones(
    recipe: TrainingRecipe, rows: list[dict[str, Any]], tokenizer: Any, account: Account
) -> list[dict[str, Any]]:
    """The rows within `data.max_prompt_tokens` and `data.max_solution_tokens`."""
    data, distinct = recipe.data, len(rows)
    dropped = {"prompts": 0, "solutions": 0}
    if data.max_prompt_tokens is not None:
        prompts = [
            render(tokenizer, settled(tokenizer, question(row, recipe.system_prompt)))
            for row in rows
        ]
        rows = _short(rows, prompts, tokenizer, data.max_prompt_tokens)
        dropped["prompts"] = distinct - len(rows)
        account.drop(
            "long_prompts", dropped["prompts"], f"prompts are over {data.max_prompt_tokens} tokens"
        )
    if data.max_solution_tokens is not None:
        before = len(rows)
        rows = _short(rows, [row["solution"] for row in rows], tokenizer, data.max_solution_tokens)
        dropped["solutions"] = before - len(rows)
        account.drop(
            "long_solutions",
            dropped["solutions"],
            f"solutions are over {data.max_solution_tokens} tokens",
        )
    if not rows:
        raise ScalpelError(
            f"data {data.describe()}: all {distinct} problems are too long ({dropped['prompts']} "
            f"prompts over {data.max_prompt_tokens} tokens, {dropped['solutions']} solutions over "
            f"{data.max_solution_tokens}); raise data.max_prompt_tokens or max_solution_tokens"
        )
    return rows


def _fitting(
    recipe: SftRecipe, rows: list[dict[str, Any]], tokenizer: Any, limit: int, account: Account
) -> tuple[list[dict[str, Any]], int]:
    """The rows of which `train.max_length` leaves something to learn, and how many it cuts.

    TRL cuts the rendered tokens at `max_length`, and drops without a word the examples of which no
    learned token is left. Raises ScalpelError where none is left uncut.
    """
    asked = [settled(tokenizer, question(row, recipe.system_prompt)) for row in rows]
    pairs = [(turns, row["solution"]) for turns, row in zip(asked, rows, strict=True)]
    kept, cut = [], 0
    for row, one in zip(rows, render_answered(tokenizer, pairs), strict=True):
        if recipe.train.loss_on == "all" or one.start < limit:
            kept.append(row)
            cut += len(one.ids) > limit
    account.drop(
        "max_length",
        len(rows) - len(kept),
        f"have a prompt that fills train.max_length = {limit}, so that nothing is left to learn",
    )
    if cut:
        account.note(f"{cut} are cut at train.max_length = {limit}")
    if cut == len(kept):
        raise ScalpelError(
            f"train.max_length = {limit}: none of {len(rows)} examples fits ({len(rows) - cut} "
            f"have a prompt that fills it, {cut} lose their end); raise it, or set it to null"
        )
    return kept, cut


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
