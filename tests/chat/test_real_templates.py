"""The chat templates that TRL ships, which are those of real models: the checks say the truth.

What is true of each is read from the template itself, in the tables below, not from the checks.
"""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from mlflow_scalpel.chat import (
    check_answered,
    prompt_opening,
    render,
    render_answered,
    settled,
)
from mlflow_scalpel.errors import ScalpelError
from tests.chat.made import REAL, make_tokenizer

ALL = sorted(file.stem for file in REAL.glob("*.jinja"))
ASKED = [{"role": "user", "content": "What is 2+3?"}]
TOLD = [{"role": "system", "content": "Answer in few words, friend."}, *ASKED]
REASONED = "<think>\nTwo and three.\n</think>\n\nIt is 5."

# Templates of vision models, which take lists of parts and no plain text.
PARTS_ONLY = {"idefics3", "idefics3_training", "llava_next", "llava_next_training"}
PARTS_ONLY |= {"smolvlm", "smolvlm_training"}
REFUSE_SYSTEM = {"gemma", "gemma_training"}
WITHOUT_END = {"glm4moe"}  # the next turn's <|user|> ends an answer; the last has none
CUT_REASONING = {"deepseek_r1_distill", "deepseekv3", "deepseekv3_training"}
OPEN_THINK = {
    *(f"deepseek{name}" for name in ("_r1_distill", "_r1_distill_training", "v3", "v3_training")),
    *(name for name in ALL if name.startswith("nemotron")),
    *(name for name in ALL if name.startswith(("qwen3_5_think", "qwen3_6", "qwen3_8"))),
}
# Whose finished answers lack the <think> that the prompt opens, unless they bring it.
ALWAYS_OPEN = {name for name in OPEN_THINK if name.startswith("deepseek")}
CLOSE_THINK = {"qwen3_5_nothink", "qwen3_5_nothink_training"}  # in the prompt, without a word


def tokenizer_of(name: str) -> Any:
    template = (REAL / f"{name}.jinja").read_text()
    return make_tokenizer(template, eos="<|endoftext|>")


def ends_of(tokenizer: Any) -> set[int]:
    """Every mark but those that begin a turn: what ends one is not the question here."""
    return set(tokenizer.get_added_vocab().values())


def learn(name: str, turns: Any, answer: str) -> tuple[Any, Any]:
    tokenizer = tokenizer_of(name)
    pairs = [(turns, answer)]
    rendered = render_answered(tokenizer, pairs)
    ends = ends_of(tokenizer)
    return check_answered(tokenizer, pairs, rendered, ends, what="T", learned=True), rendered[0]


def refusal_of(name: str, answer: str) -> str | None:
    """What must be said of an answer under a template; None where it is learned."""
    reasoned = "</think>" in answer
    if reasoned and name in CUT_REASONING:
        return "cuts text out of 1 of 1 answers"
    if name in WITHOUT_END:
        return "never stops"
    elsewhere = name in (CLOSE_THINK if reasoned else ALWAYS_OPEN)
    return "another prompt than the model is given" if elsewhere else None


@pytest.mark.parametrize("answer", ["It is 5.", "\nIt is 5.", REASONED])
@pytest.mark.parametrize("name", [name for name in ALL if name not in PARTS_ONLY])
def test_what_a_real_template_learns_holds_what_was_given(name: str, answer: str) -> None:
    tokenizer = tokenizer_of(name)
    refusal = refusal_of(name, answer)
    if refusal is not None:
        with pytest.raises(ScalpelError, match=refusal):
            learn(name, ASKED, answer)
        return
    _, one = learn(name, ASKED, answer)
    learned = tokenizer.decode(one.ids[one.start :])
    # What is learned, with what the prompt opens, holds the answer whatever its blanks are.
    opened = "" if "</think>" not in answer else prompt_opening(tokenizer)
    assert "".join(answer.split()) in "".join((opened + learned).split())
    assert "What is 2+3?" not in learned
    assert one.ids == tuple(tokenizer(one.text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", [name for name in ALL if name not in PARTS_ONLY])
def test_a_real_template_takes_the_system_prompt_or_is_refused(name: str) -> None:
    tokenizer = tokenizer_of(name)
    if name in REFUSE_SYSTEM:
        with pytest.raises(ScalpelError, match="set system_prompt to null"):
            render(tokenizer, TOLD)
    else:
        assert TOLD[0]["content"] in render(tokenizer, TOLD)


@pytest.mark.parametrize("name", sorted(PARTS_ONLY))
def test_a_template_that_takes_parts_and_no_text_is_refused(name: str) -> None:
    with pytest.raises(ScalpelError, match=r"leaves out what the user says|refuses a conv"):
        learn(name, ASKED, "It is 5.")


@pytest.mark.parametrize("name", ALL)
def test_which_real_templates_open_think_in_the_prompt(name: str) -> None:
    if name not in PARTS_ONLY:
        assert bool(prompt_opening(tokenizer_of(name))) == (name in OPEN_THINK)


def test_reasoning_that_a_template_adds_is_told() -> None:
    checked, one = learn("qwen3", ASKED, "It is 5.")
    assert r"<think>\n\n</think>\n\n" in checked.warnings()["template_adds_text"]
    assert one.text.endswith("<think>\n\n</think>\n\nIt is 5.<|im_end|>\n")
    checked, _ = learn("qwen3", ASKED, REASONED)
    assert not checked.warnings()


def test_reasoning_of_an_earlier_answer_that_a_template_cuts_is_told() -> None:
    turns = [*ASKED, {"role": "assistant", "content": REASONED}, *ASKED]
    checked, _ = learn("qwen3", turns, "It is 5.")
    assert "earlier assistant turn" in checked.warnings()["template_cuts_context"]


@pytest.mark.parametrize(
    ("name", "empty"),
    [("qwen2_5", [{"role": "system", "content": ""}]), ("qwen3", []), ("gemma", []), ("phi3", [])],
)
def test_an_empty_system_prompt_switches_the_templates_own_off(name: str, empty: Any) -> None:
    tokenizer = tokenizer_of(name)
    turns = settled(tokenizer, [{"role": "system", "content": ""}, *ASKED])
    assert turns == [*empty, *ASKED]
    assert "You are" not in render(tokenizer, turns)


@pytest.mark.parametrize(
    ("name", "own"), [("llama3_2", "Cutting Knowledge Date"), ("gptoss", "You are ChatGPT")]
)
def test_a_template_that_cannot_be_kept_quiet_says_so(name: str, own: str) -> None:
    with pytest.raises(ScalpelError, match=f"{own}.* cannot be switched off"):
        settled(tokenizer_of(name), [{"role": "system", "content": ""}, *ASKED])


def test_a_template_that_writes_the_date_writes_the_stated_one(tmp_path: Any) -> None:
    from mlflow_scalpel.chat import load_tokenizer

    for name, form in (("llama3_2", "%d %b %Y"), ("gptoss", "%Y-%m-%d"), ("llama3_1", "%d %b %Y")):
        tokenizer = tokenizer_of(name)
        tokenizer.save_pretrained(tmp_path / name)
        for date in (datetime.date(2024, 7, 26), datetime.date(2021, 12, 3)):
            stated = load_tokenizer(tmp_path / name, date)
            assert date.strftime(form) in render(stated, ASKED)
            assert stated.chat_template == tokenizer.chat_template  # what it saves
        plain, stated = tokenizer, load_tokenizer(tmp_path / name)
        today = datetime.datetime.now().strftime(form)
        # Nothing but the date is another; the tokenizer of somebody else is left as it was.
        default = datetime.date(2024, 7, 26).strftime(form)
        assert render(plain, ASKED).replace(today, default) == render(stated, ASKED)
