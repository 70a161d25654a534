"""Templates that would take all memory or time are refused; all others pass."""

from __future__ import annotations

import time

import pytest

from mlflow_scalpel.chat import load_tokenizer, render, render_answered
from mlflow_scalpel.chat.trial import check_bounded
from mlflow_scalpel.errors import ScalpelError
from tests.conftest import make_tokenizer

TURNS = [{"role": "user", "content": "1+1"}]
ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{{ '' }}{% endfor %}{% endfor %}{% endfor %}"
)
DOUBLING = (
    "{% set n = namespace(x='x') %}{% for a in range(64) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 9999999999 }}",
        "{% set x = [0] * 9999999999 %}",
        "{{ 'x' | center(9999999999) }}",
        "{{ 9 ** (9 ** 9) }}",
        DOUBLING,
        ENDLESS,
        "{% if messages | length > 2 %}" + ENDLESS + "{% endif %}",
        "{% if not add_generation_prompt %}" + ENDLESS + "{% endif %}",
        "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    ],
)
def test_what_never_ends_is_refused(template):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    began = time.monotonic()
    with pytest.raises(ScalpelError, match="the chat template: takes more than 10 seconds"):
        render(tokenizer, TURNS)
    assert time.monotonic() - began < 60


def test_what_never_ends_for_some_data(first_model):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% if '7' in messages[0].content %}" + ENDLESS + "{% endif %}."
    assert render(tokenizer, TURNS) == "."
    with pytest.raises(ScalpelError, match="takes more than 10 seconds"):
        render_answered(tokenizer, [(TURNS, "2"), ([{"role": "user", "content": "7"}], "7")])


def test_a_tokenizer_with_such_a_template_is_not_opened(make_model):
    model = make_model(3)
    (model / "chat_template.jinja").write_text("{{ 'x' * 9999999999 }}")
    with pytest.raises(ScalpelError, match=f"the chat template of {model}: takes more"):
        load_tokenizer(model)


@pytest.mark.parametrize(
    "template",
    [
        "{% generation %}{{ messages[0].content }}{% endgeneration %}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m | tojson }}"
        "{% endfor %}{{ strftime_now('%Y') }}",
        "{{ raise_exception('no') }}",
        "{{ nothing.at.all }}",
        "{% if %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_all_else_passes(template):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    check_bounded(tokenizer, "it")
