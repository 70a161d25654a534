"""Templates that leave out, cut or add: what is refused, what is told, and with which remedy."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_scalpel.chat import (
    Checked,
    check_answered,
    check_prompt,
    render,
    render_answered,
    settled,
)
from mlflow_scalpel.errors import ScalpelError
from tests.chat.made import REAL, make_tokenizer

ASKED = [{"role": "user", "content": "What is it?"}]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def check(template: str, answers: list[str], *, eos: str = "<|im_end|>", learned: bool = True):
    tokenizer = make_tokenizer(template, eos=eos)
    pairs: list[Any] = [(ASKED, answer) for answer in answers]
    rendered = render_answered(tokenizer, pairs)
    ends = [tokenizer.eos_token_id]
    return check_answered(tokenizer, pairs, rendered, ends, what="T", learned=learned)


def test_nothing_is_said_of_a_good_template() -> None:
    assert check(CHATML, ["One.", "Two.\n\n", "three", "<think>\na\n</think>\nb"]).counts == {}


def test_an_answer_that_is_one_token_with_the_prompt_is_told_where_it_is_learned() -> None:
    told = check(CHATML, ["One.", "\nTwo."])
    assert told.counts == {"answer_merges_with_prompt": 1}
    assert check(CHATML, ["\nTwo."], learned=False).counts == {}


def test_a_turn_that_ends_with_nothing_is_refused_where_it_is_learned() -> None:
    endless = CHATML.replace("<|im_end|>", "")
    with pytest.raises(ScalpelError, match=r"2 of 2 answers.*never stops.*\{\{ eos_token \}\}"):
        check(endless, ["One.", "Two."])
    assert check(endless, ["One."], learned=False).counts == {}


def test_a_turn_that_ends_with_another_token_than_the_models_says_what_to_set() -> None:
    """As of Qwen2.5's base models, whose end token is <|endoftext|>."""
    told = check(CHATML, ["One.", "Two."], eos="<|endoftext|>").warnings()["never_stops"]
    assert "'<|endoftext|>'" in told
    assert "Set eos_token: '<|im_end|>'" in told
    # Phi-3 ends a turn with a token, and a conversation with the end token.
    phi = CHATML.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
    assert check(phi, ["One."], eos="<|endoftext|>").counts == {}


def test_every_answer_is_looked_at_and_the_cut_ones_are_counted() -> None:
    cutting = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")
    answers = ["plain", "<think>\nfirst\n</think>\n5", "plain", "<think>\nx\n</think>\n6"]
    with pytest.raises(ScalpelError, match=r"cuts text out of 2 of 4 answers.*first.*chat_temp"):
        check(cutting, answers)
    with pytest.raises(ScalpelError, match="cuts text"):  # a probe would be of other texts
        check(cutting, answers, learned=False)


def test_a_template_that_shortens_answers_is_refused() -> None:
    with pytest.raises(ScalpelError, match="cuts text out of 1 of 2 answers"):
        check(CHATML.replace("m['content']", "m['content'][:20]"), ["short", "long " * 9])


def test_an_answer_that_the_problem_holds_too_must_still_be_learned() -> None:
    tokenizer = make_tokenizer(
        CHATML.replace("{{ m['content'] }}", "{{ m['content'] if m['role'] == 'user' }}")
    )
    pairs: list[Any] = [([{"role": "user", "content": "Say yes"}], "yes")]
    rendered = render_answered(tokenizer, pairs)
    with pytest.raises(ScalpelError, match="cuts text"):
        check_answered(tokenizer, pairs, rendered, [0], what="T", learned=True)


def test_blanks_that_a_template_changes_are_told() -> None:
    told = check(CHATML.replace("m['content']", "m['content'] | replace('\n', ' ')"), ["a\nb"])
    assert set(told.counts) == {"template_changes_blanks"}


def test_an_answer_behind_another_prompt_is_refused_where_it_is_learned() -> None:
    opening = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    with pytest.raises(ScalpelError, match="1 of 2 answers would be learned behind another prompt"):
        check(opening, ["<think>\na\n</think>\n5", "5"])
    told = check(opening, ["5"], learned=False)
    assert set(told.counts) == {"template_changes_prompt"}


def test_a_system_prompt_that_goes_once_an_answer_follows_is_named() -> None:
    """As in Mistral-7B-Instruct v0.3, which writes it into the last turn if that is a user's."""
    mistral = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {% if loop.last and "
        "messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n\n{% endif %}"
        "{{ m['content'] }}[/INST]{% elif m['role'] == 'assistant' %} {{ m['content'] }}"
        "{{ eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = make_tokenizer(mistral)
    pairs: list[Any] = [([{"role": "system", "content": "Be brief, friend."}, *ASKED], "5")]
    ends = [tokenizer.eos_token_id]
    rendered = render_answered(tokenizer, pairs)
    with pytest.raises(
        ScalpelError, match=r"system prompt .*once an answer.*system_prompt to null"
    ):
        check_answered(tokenizer, pairs, rendered, ends, what="T", learned=True)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            CHATML.replace("in messages", "in messages if m['role'] != 'system'"),
            "leaves out the system prompt",
        ),
        (
            "{{ raise_exception('System role not supported') if messages[0]['role'] == 'system' }}"
            + CHATML,
            "System role not supported.*set system_prompt to null",
        ),
        (None, "has no chat template"),
        (CHATML.replace("m['content']", "m['content'][0]['text']"), "refuses|leaves out"),
    ],
)
def test_a_prompt_that_lacks_the_system_prompt_is_refused(template: str | None, said: str) -> None:
    tokenizer = make_tokenizer(template)
    turns = [{"role": "system", "content": "Be brief, friend."}, *ASKED]
    with pytest.raises(ScalpelError, match=said):
        check_prompt(turns, render(tokenizer, turns), Checked(), what="T")


def test_an_empty_system_prompt_where_the_template_says_something_by_itself() -> None:
    empty = [{"role": "system", "content": ""}, *ASKED]
    own = (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind<|im_end|>\n{% endif %}"
    )
    assert settled(make_tokenizer(own + CHATML), empty) == empty
    assert settled(make_tokenizer(CHATML), empty) == ASKED
    assert settled(make_tokenizer((REAL / "gemma.jinja").read_text()), empty) == ASKED
    for always in (
        "You are a good assistant.\n",
        "<|im_start|>system\nYou are very kind<|im_end|>\n",
    ):
        with pytest.raises(ScalpelError, match=r"cannot be switched off.*prompt to null"):
            settled(make_tokenizer(always + CHATML), empty)
    with pytest.raises(ScalpelError, match="T of b: the tokenizer has no chat template"):
        settled(make_tokenizer(None), empty, what="T of b")
    assert settled(make_tokenizer(own + CHATML), ASKED) == ASKED  # null leaves it as it is
