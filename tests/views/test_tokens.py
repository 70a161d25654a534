"""The reader of tokens: what it shows, and that nothing in it is taken for HTML."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from mlflow_scalpel import views
from mlflow_scalpel.views.divergence.tokens import LEVELS, LONGEST

EVIL = "<script>alert(\"x\")</script> ' onmouseover='x"


def token(position: int, text: str | None, kl: float | None, **more: object) -> dict[str, object]:
    """A row of the table of tokens."""
    return {
        "model_id": "m-1",
        "step": 60,
        "texts": "math sha256:aa template:bb",
        "problem": 3,
        "position": position,
        "token": text,
        "token_id": position,
        "answer": position > 1,
        "kl": kl,
        "reverse": 0.5,
        "base_entropy": 1.25,
        "rank": None,
        "context": None,
        "base_top": [" the", "\n", "a", "b", "c"],
        "checkpoint_top": [" So", " the", "x", "y", "z"],
        "base_top_p": [0.5, 0.2, 0.1, 0.05, 0.01],
        "checkpoint_top_p": [0.61, 0.1, 0.05, 1e-3, 2e-5],
        "right_p_base": 0.5,
        "right_p_checkpoint": 0.02,
        **more,
    }


@pytest.fixture
def tokens() -> pd.DataFrame:
    values = (1e-5, 0.005, 0.05, 0.2, 0.5, 2.0, 7.0)
    texts = ("What", " is", "\n", " 1", "+", " 1", "?")
    rows = [token(i, text, kl) for i, (text, kl) in enumerate(zip(texts, values, strict=True))]
    rows += [token(7, None, 0.3)]
    rows += [token(40, " two", 4.0, problem=9, rank=2, context="one and one are")]
    rows += [token(44, " ten", 5.0, problem=9, rank=1, context="before ten")]
    return pd.DataFrame(rows)


def words(page: str) -> str:
    """The text of a fragment, without tips and style."""
    page = re.sub(r"<style>.*?</style>", "", str(page), flags=re.S)
    page = re.sub(r'<span class="tip".*?</span></span></span>', "</span>", page, flags=re.S)
    return html.unescape(re.sub(r"<[^>]+>", "", page))


def test_each_token_has_the_colour_of_its_kl(tokens):
    page = views.token_reader(tokens, problem=3)
    levels = re.findall(r'<span class="t k(\d)( prompt)?" tabindex="0">', page)
    assert [int(level) for level, _ in levels] == list(range(len(LEVELS) + 1))
    assert [bool(prompt) for _, prompt in levels] == [True, True] + [False] * 5
    for limit in ("below 0.001", "0.1\u20130.3", "3 and more", "nats per token"):
        assert limit in page


def test_the_text_is_whole_and_tips_hold_both_models(tokens):
    page = views.token_reader(tokens, problem=3)
    assert "What is\u21b5\n 1+ 1?" in words(page)
    tip = re.findall(r'role="tooltip">(.*?)</span></span></span>', page, flags=re.S)[-1]
    assert (
        html.unescape(re.sub(r"<[^>]+>", "|", tip)).replace("|", " ").split()
        == (
            "KL 7 nats reverse KL 0.5 nats entropy of the base 1.25 nats probability of this token "
            "0.5 \u2192 0.02 base checkpoint \u00b7the 0.5 \u00b7So 0.61 \u21b5 0.2 \u00b7the 0.1 "
            "a 0.1 x 0.05 b 0.05 y 0.001 c 0.01 z 2e-5"
        ).split()
    )
    assert "<script" not in page
    assert ".t:focus > .tip" in page
    assert "Step 60 (m-1)" in page


def test_a_problem_held_in_part_has_its_context(tokens):
    text = words(views.token_reader(tokens, problem=9))
    assert "\u2026 one and one are two\n\u2026 before ten ten" in text


def test_what_is_not_there_says_so(tokens):
    assert "no tokens of problem 5; it has some of: 3, 9." in words(
        views.token_reader(tokens, problem=5)
    )
    assert "To measure: mlflow-scalpel compare" in words(
        views.token_reader(pd.DataFrame(), problem=0)
    )
    assert "No ranked tokens" in views.token_ranking(tokens.iloc[:3])
    with pytest.raises(ValueError, match=r"is missing the columns \['kl'\]"):
        views.token_reader(tokens.drop(columns="kl"), problem=3)


def test_one_of_several_texts_and_models(tokens):
    other = tokens.assign(texts="chat sha256:cc", model_id="m-2", token=" other")
    both = pd.concat([tokens, other])
    page = views.token_reader(both, problem=3)
    assert "the table also holds the texts chat" in page
    assert " other" not in words(page)
    page = views.token_reader(both, problem=3, texts="chat sha256:cc", model_id="m-2")
    assert " other other" in words(page)
    assert "Problem 3 of chat" in page


class Tags(HTMLParser):
    """The tags of a page and their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_everything_is_escaped(tokens):
    evil = tokens.astype(object)
    for column in ("token", "context", "model_id", "texts"):
        evil[column] = EVIL
    for column in ("base_top", "checkpoint_top"):
        evil[column] = [[EVIL] * 5] * len(evil)
    for page in (
        views.token_reader(evil, problem=3),
        views.token_reader(evil, problem=9),
        views.token_reader(evil, problem=4),
        views.token_ranking(evil),
    ):
        tags = Tags()
        tags.feed(page)
        assert "script" not in tags.seen
        assert tags.attributes <= {"class", "tabindex", "role", "dir"}


def test_long_and_right_to_left_and_odd_tokens(tokens):
    odd = tokens.astype(object)
    odd.loc[0, "token"] = "x" * 1_000_000
    odd.loc[1, "token"] = " \u05e9\u05dc\u05d5\u05dd"
    odd.loc[2, ["kl", "base_top", "base_top_p"]] = [float("nan"), None, None]
    page = views.token_reader(odd, problem=3)
    assert len(page) < 30_000
    assert "x" * (LONGEST - 1) + "\u2026" in page
    assert " \u05e9\u05dc\u05d5\u05dd" in words(page)
    assert "no value" in page


def test_ranked_tokens_in_their_order(tokens):
    page = words(views.token_ranking(tokens, count=1))
    assert "before ten ten" in page
    assert "one and one" not in page
    assert words(views.token_ranking(tokens)).index("before ten") < words(
        views.token_ranking(tokens)
    ).index("one and one are two")


def test_an_override_turns_no_token_after_it(tokens, browser):
    odd = tokens.astype(object)
    odd.loc[0, "token"] = "turned \u202e"
    odd.loc[1, "token"] = " not turned"
    odd.loc[[8, 9], "context"] = "\u202etext"
    page = browser.new_page()
    for fragment in (views.token_reader(odd, problem=3), views.token_reader(odd, problem=9),
                     views.token_ranking(odd)):  # fmt: skip
        page.set_content(str(fragment))
        turned = page.evaluate(
            """() => [...document.querySelectorAll(".t, td.words [class^=k]")].filter((one) => {
                const text = one.firstChild, range = document.createRange();
                const x = (i) => (range.setStart(text, i), range.setEnd(text, i + 1),
                                  range.getBoundingClientRect().x);
                return text.length > 2 && x(1) > x(2);
            }).map((one) => one.firstChild.data)"""
        )
        assert turned == []
    page.close()
    text = words(views.token_reader(odd, problem=3))
    assert "turned \u202e not turned" in text


def test_tokens_of_a_right_to_left_text_are_one_line(tokens):
    odd = tokens.astype(object)
    odd.loc[1, "token"] = " \u05e9\u05dc\u05d5\u05dd"
    assert ' alone"' not in views.token_reader(odd, problem=3)
