"""What SFT learns and GRPO asks: as TRL would tokenize it, and refused or told if it is wrong."""

from __future__ import annotations

import datasets
import pytest

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.recipes import load_recipe
from mlflow_scalpel.training.base import OpenBase
from mlflow_scalpel.training.examples import asked_examples, learned_examples
from tests.chat.made import REAL, make_tokenizer
from tests.training.test_training import PROJECTS

QWEN = (REAL / "qwen2_5.jinja").read_text()


def base_of(template: str, tmp_path, context: int | None = None) -> OpenBase:
    tokenizer = make_tokenizer(template)
    ends = (tokenizer.eos_token_id,)
    return OpenBase(tmp_path, tokenizer, "", "", ends=ends, context=context)


def examples(*answers: str) -> datasets.Dataset:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is {number}?"}],
            "completion": [{"role": "assistant", "content": answer}],
        }
        for number, answer in enumerate(answers)
    ]
    return datasets.Dataset.from_list(rows)


def test_examples_are_what_trl_makes_of_them(tmp_path):
    from trl import SFTConfig, SFTTrainer

    given = examples("It is 0.", "\nIt is 1.", "\n\n  It is 2.\n", " 3")
    base = base_of(QWEN, tmp_path)
    ours = learned_examples(given, base)
    trainer = SFTTrainer.__new__(SFTTrainer)
    trainer._tokenizer, trainer.chat_template = base.tokenizer, None
    trainer.completion_only_loss = True
    arguments = SFTConfig(output_dir=str(tmp_path), max_length=None, report_to="none", use_cpu=True)
    theirs, same = (
        trainer._prepare_dataset(one, base.tokenizer, arguments, False, None, "train")
        for one in (given, ours)
    )
    assert theirs["input_ids"] == same["input_ids"]
    assert theirs["labels"] == same["labels"]


def test_what_is_longer_than_the_context_is_told(tmp_path, monkeypatch):
    told: dict[str, str] = {}
    monkeypatch.setattr(
        "mlflow_scalpel.training.examples.warn", lambda code, text, _: told.update({code: text})
    )
    # The template's own system prompt takes 69 tokens, letters are tokens but for few.
    rows = examples("short", "long " * 40)
    lengths = [len(row["input_ids"]) for row in learned_examples(rows, base_of(QWEN, tmp_path))]
    assert told == {}
    learned_examples(rows, base_of(QWEN, tmp_path, context=max(lengths) - 1))
    assert "1 of 2 examples are longer" in told["longer_than_context"]
    told.clear()
    recipe = load_recipe("tiny", PROJECTS / "grpo" / "recipes", stage="grpo")
    asked_examples(rows, recipe, base_of(QWEN, tmp_path, context=100_000))
    assert told == {}
    asked_examples(rows, recipe, base_of(QWEN, tmp_path, context=100))
    assert f"max_completion_length = {recipe.train.max_completion_length}" in str(told)


def test_a_prompt_for_grpo_is_checked_too(tmp_path):
    recipe = load_recipe("tiny", PROJECTS / "grpo" / "recipes", stage="grpo")
    rows = datasets.Dataset.from_list(
        [{"prompt": [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "?"}]}]
    )
    with pytest.raises(ScalpelError, match="System role not supported"):
        asked_examples(rows, recipe, base_of((REAL / "gemma.jinja").read_text(), tmp_path))
    (row,) = asked_examples(rows, recipe, base_of(QWEN, tmp_path))
    assert row["prompt"] == rows[0]["prompt"]


def test_a_template_that_opens_no_answer_is_told_of_before_grpo(tmp_path, monkeypatch):
    told: dict[str, str] = {}
    monkeypatch.setattr(
        "mlflow_scalpel.training.examples.warn", lambda code, text, _: told.update({code: text})
    )
    recipe = load_recipe("tiny", PROJECTS / "grpo" / "recipes", stage="grpo")
    turn = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    unopened = "{% for m in messages %}" + turn + "{% endfor %}"
    asked_examples(examples("a"), recipe, base_of(unopened, tmp_path))
    assert "<|im_start|>assistant" in told.pop("prompt_opens_no_answer")
    opened = unopened + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    always = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )  # what ends a question is what opens the answer, as in Mistral's
    for template in (opened, always, QWEN, (REAL / "qwen3.jinja").read_text()):
        asked_examples(examples("a"), recipe, base_of(template, tmp_path))
        assert "prompt_opens_no_answer" not in told


def test_an_empty_system_prompt_reaches_grpos_trainer_as_the_template_needs_it(tmp_path):
    recipe = load_recipe("tiny", PROJECTS / "grpo" / "recipes", stage="grpo")
    turns = [{"role": "system", "content": ""}, {"role": "user", "content": "?"}]
    rows = datasets.Dataset.from_list([{"prompt": turns}])
    (kept,) = asked_examples(rows, recipe, base_of(QWEN, tmp_path))
    (left,) = asked_examples(rows, recipe, base_of((REAL / "qwen3.jinja").read_text(), tmp_path))
    assert (kept["prompt"], left["prompt"]) == (turns, turns[1:])


def test_a_model_that_ends_with_another_token_than_its_template_is_told_of(tmp_path, monkeypatch):
    told: dict[str, str] = {}
    monkeypatch.setattr(
        "mlflow_scalpel.training.examples.warn", lambda code, text, _: told.update({code: text})
    )
    base = base_of(QWEN, tmp_path)
    other = OpenBase(tmp_path, base.tokenizer, "", "", ends=(0,))
    recipe = load_recipe("tiny", PROJECTS / "grpo" / "recipes", stage="grpo")
    learned_examples(examples("a"), other)
    assert "Set eos_token: '<|im_end|>'" in told.pop("never_stops")
    asked_examples(examples("a"), recipe, other)
    assert "Set eos_token: '<|im_end|>'" in told.pop("never_stops")
