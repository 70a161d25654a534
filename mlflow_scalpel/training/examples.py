"""What the trainers are given to read and to learn, checked before a model is loaded.

SFT's examples are rendered and tokenized here, so that what is learned is what was checked; GRPO's
prompts are rendered by its trainer, with the same tokenizer and template.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import datasets

from mlflow_scalpel.chat import (
    Checked,
    Rendered,
    check_answered,
    check_prompt,
    render,
    render_answered,
    settled,
)
from mlflow_scalpel.data.conversations import question
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.run_warnings import warn
from mlflow_scalpel.training.rewards import choose_rewards

if TYPE_CHECKING:
    from mlflow_scalpel.recipes.training import GrpoRecipe, SftRecipe
    from mlflow_scalpel.training.base import OpenBase
    from mlflow_scalpel.training.pool import Pool


def sft_examples(recipe: SftRecipe, pool: Pool) -> datasets.Dataset:
    """Columns `prompt` and `completion`, as chat messages; one row a problem."""
    return datasets.Dataset.from_list(
        [
            {
                "prompt": question(row, recipe.system_prompt),
                "completion": [{"role": "assistant", "content": row["solution"]}],
            }
            for row in pool.rows
        ]
    )


def grpo_examples(recipe: GrpoRecipe, pool: Pool) -> datasets.Dataset:
    """Columns `prompt` (chat messages), `answer` and what rewards name; one row a problem."""
    named = {column for one in choose_rewards(recipe) for column in one.reward.named_columns}
    columns = ["answer", *sorted(named - {"answer"})]
    return datasets.Dataset.from_list(
        [
            {
                "prompt": question(row, recipe.system_prompt),
                **{column: row[column] for column in columns},
            }
            for row in pool.rows
        ]
    )


def learned_examples(
    examples: datasets.Dataset, base: OpenBase, run_id: str = ""
) -> datasets.Dataset:
    """Columns `input_ids` and `completion_mask` (1 for the answer's tokens), a row an example.

    `examples` has the columns `prompt` and `completion`, as chat messages. Raises ScalpelError
    where a template refuses, cuts or leaves out what was given, or teaches no model to stop; warns
    on the run of what may be wrong.
    """
    pairs = [
        (
            settled(base.tokenizer, row["prompt"], what=base.what),
            str(row["completion"][0]["content"]),
        )
        for row in examples
    ]
    rendered = render_answered(base.tokenizer, pairs, what=base.what)
    checked = check_answered(
        base.tokenizer, pairs, rendered, base.ends, what=base.what, learned=True
    )
    for code, message in checked.warnings().items():
        warn(code, message, run_id)
    _warn_of_long([len(one.ids) for one in rendered], base, "examples", run_id)
    return datasets.Dataset.from_list([_learned(one) for one in rendered])


def asked_examples(
    examples: datasets.Dataset, recipe: GrpoRecipe, base: OpenBase, run_id: str = ""
) -> datasets.Dataset:
    """GRPO's examples as the template takes them, once each prompt has been looked at.

    Raises ScalpelError where a template refuses or leaves out what was given; warns on the run of
    what may be wrong.
    """
    rows, lengths = [], []
    checked = Checked(total=len(examples))
    for row in examples:
        turns = settled(base.tokenizer, row["prompt"], what=base.what)
        prompt = render(base.tokenizer, turns, what=base.what)
        check_prompt(turns, prompt, checked, what=base.what)
        lengths.append(prompt)
        rows.append({**row, "prompt": turns})
    _check_an_answer(base, checked)
    for code, message in checked.warnings().items():
        warn(code, message, run_id)
    tokens = base.tokenizer(lengths, add_special_tokens=False)["input_ids"]
    new = recipe.train.max_completion_length
    what = f"prompts (with max_completion_length = {new})"
    _warn_of_long([len(ids) + new for ids in tokens], base, what, run_id)
    return datasets.Dataset.from_list(rows)


def _learned(one: Rendered) -> dict[str, Any]:
    mask = [0] * one.start + [1] * (len(one.ids) - one.start)
    return {"input_ids": list(one.ids), "completion_mask": mask}


def _check_an_answer(base: OpenBase, checked: Checked) -> None:
    """Count a template whose turns end with what ends no completion, or that opens no answer."""
    pair = ([{"role": "user", "content": "What is 1 + 1?"}], "2")
    try:
        rendered = render_answered(base.tokenizer, [pair], what=base.what)
        found = check_answered(
            base.tokenizer, [pair], rendered, base.ends, what=base.what, learned=False
        )
        unopened = render(base.tokenizer, pair[0], answer=True, what=base.what)
    except ScalpelError:
        return  # it takes no finished answer, and GRPO gives it none
    if "never_stops" in found.counts:
        checked.count("never_stops", found.firsts["never_stops"])
    if "template_adds_text" in found.counts and rendered[0].prompt == unopened:
        checked.count(
            "prompt_opens_no_answer",
            f"{base.what} writes the same whether add_generation_prompt is given or not, so that "
            f"prompts end with {unopened[-20:]!r} and the model itself must write what leads to "
            f"an answer ({rendered[0].text[rendered[0].boundary :]!r}); let the template write "
            "that for add_generation_prompt (chat_template)",
        )


def _warn_of_long(lengths: list[int], base: OpenBase, what: str, run_id: str) -> None:
    if base.context is None:
        return
    long = [length for length in lengths if length > base.context]
    if long:
        warn(
            "longer_than_context",
            f"{len(long)} of {len(lengths)} {what} are longer than the model's context of "
            f"{base.context} tokens (the longest has {max(long)}), where it was never trained; "
            "leave them out with data.max_prompt_tokens and data.max_solution_tokens, or set "
            "train.max_length or train.max_completion_length lower",
            run_id,
        )
