"""Where an answer begins and ends in the tokens, which date is written, and what files say."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mlflow_scalpel.chat import (
    context_of,
    end_tokens,
    load_tokenizer,
    prompt_opening,
    render,
    render_answered,
    stored_eos,
    stored_template,
    with_chat,
)
from mlflow_scalpel.chat.dates import dated
from mlflow_scalpel.errors import ScalpelError
from tests.chat.made import REAL, make_tokenizer

ASKED = [{"role": "user", "content": "What is it?"}]
QWEN = (REAL / "qwen2_5.jinja").read_text()
R1 = (REAL / "deepseek_r1_distill.jinja").read_text()
# A prompt that ends within a piece of the tokenizer, of signs and line breaks.
ODD = "{% for m in messages %}[{{ m['role'] }}] >{{ m['content'] }}<|im_end|>\n{% endfor %}"
ODD += "{% if add_generation_prompt %}[assistant] >{% endif %}"
CHATS = [make_tokenizer(QWEN), make_tokenizer(ODD)]


@given(st.sampled_from(CHATS), st.text(alphabet="\n\r\t >.ab1é", min_size=1, max_size=8))
def test_an_answer_begins_at_the_first_token_with_a_character_of_it(
    tokenizer: Any, answer: str
) -> None:
    (one,) = render_answered(tokenizer, [(ASKED, answer)])
    # The bytes of the first n tokens are the text's first, so their number says where it begins.
    lengths = [len(tokenizer.decode(one.ids[:n]).encode()) for n in range(len(one.ids) + 1)]
    before = len(one.text[: one.boundary].encode())
    first = next(n for n in range(len(one.ids)) if lengths[n + 1] > before)
    assert tokenizer.decode(one.ids) == one.text
    assert one.start == first
    assert tokenizer.convert_ids_to_tokens(one.ids[one.end - 1]) == "<|im_end|>"


def test_a_line_break_that_is_merged_with_the_prompts_belongs_to_the_answer() -> None:
    tokenizer = CHATS[0]
    (one,) = render_answered(tokenizer, [(ASKED, "\nIt is 5.")])
    prompt = tokenizer(one.prompt, add_special_tokens=False)["input_ids"]
    assert list(one.ids[: len(prompt)]) != prompt  # else it would show nothing
    assert one.merged
    assert tokenizer.decode(one.ids[one.start : one.end]) == "\n\nIt is 5.<|im_end|>"


def test_what_the_prompt_opens_of_an_answer() -> None:
    assert prompt_opening(make_tokenizer(R1)) == "<think>\n"
    assert prompt_opening(make_tokenizer(QWEN)) == ""
    closed = (REAL / "qwen3_5_nothink.jinja").read_text()
    assert prompt_opening(make_tokenizer(closed)) == ""


@given(
    st.dates(datetime.date(1970, 1, 1), datetime.date(2099, 12, 31)),
    st.sampled_from(["%d %b %Y", "%Y-%m-%d", "%A, %B %-d, %Y", "%d/%m/%y %H:%M", "100%% %F %j"]),
)
def test_every_form_of_date_is_the_stated_one(date: datetime.date, form: str) -> None:
    template = "\n{{ strftime_now('" + form + "') }}|{% for m in messages %}{{ m }}{% endfor %}"
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["strftime_now"] = lambda _: "today"
    rendered = environment.from_string(dated(template, date)).render(messages=["x"])
    assert rendered == f"\n{date.strftime(form)}|x"


def test_a_template_without_a_date_is_left_as_it_is() -> None:
    assert dated(QWEN, datetime.date(2020, 1, 1)) == QWEN


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"model_type": "llama", "max_position_embeddings": 4096}, 4096),
        (
            {  # Llama 3.1 states the length after scaling
                "model_type": "llama",
                "max_position_embeddings": 131072,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            131072,
        ),
        (
            {  # as Qwen2.5's model card says to set it, for 131,072 tokens
                "model_type": "qwen2",
                "max_position_embeddings": 32768,
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                },
            },
            131072,
        ),
        (
            {  # a window of attention is not the context
                "model_type": "mistral",
                "max_position_embeddings": 32768,
                "sliding_window": 4096,
            },
            32768,
        ),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"model_type": "bloom"}, None),
        ({"model_type": "mamba"}, None),
    ],
)
def test_the_context_is_what_the_config_says(config: dict[str, Any], context: int | None) -> None:
    assert context_of(AutoConfig.for_model(config.pop("model_type"), **config)) == context


def test_a_base_with_another_template_and_end_token(first_model: Path, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] }}<|user|>{% endfor %}"
    made = with_chat(first_model, tmp_path / "base", template, "<|user|>")
    tokenizer = load_tokenizer(made)
    number = tokenizer.convert_tokens_to_ids("<|user|>")
    before = AutoTokenizer.from_pretrained(first_model)
    assert (tokenizer.eos_token, tokenizer.chat_template) == ("<|user|>", template)
    assert end_tokens(made, tokenizer) == [number, before.eos_token_id]
    assert tokenizer.get_vocab() == before.get_vocab()
    model = AutoModelForCausalLM.from_pretrained(made)
    assert model.config.eos_token_id == number
    assert model.generation_config.eos_token_id == [number, before.eos_token_id]
    weights = made / "model.safetensors"
    assert weights.resolve() == (first_model / "model.safetensors").resolve()
    assert (stored_template(made), stored_eos(made)) == (template, "<|user|>")
    # The base's own files are as they were.
    assert AutoTokenizer.from_pretrained(first_model).eos_token == before.eos_token
    assert with_chat(first_model, tmp_path / "none") == first_model
    with pytest.raises(ScalpelError, match=r"eos_token = '<\|usr\|>'.*'<\|user\|>'"):
        with_chat(first_model, tmp_path / "base", None, "<|usr|>")


def test_end_tokens_are_those_of_the_generation_config(first_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(first_model)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert end_tokens(tmp_path, tokenizer) == [7, tokenizer.eos_token_id]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    assert end_tokens(tmp_path, tokenizer) == [3, 4, tokenizer.eos_token_id]


def test_a_template_with_an_error_of_syntax_is_named() -> None:
    with pytest.raises(ScalpelError, match="not a valid Jinja template \\(line 2"):
        render(make_tokenizer("a\n{% for m in %}"), ASKED)
