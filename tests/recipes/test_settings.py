"""What `-P set=` carries: quoted text is text, and nothing is lost."""

from __future__ import annotations

import shlex
import subprocess

import pytest
import yaml

from mlflow_scalpel.errors import RecipeError
from mlflow_scalpel.recipes.settings import Loader, dump, parse_settings
from mlflow_scalpel.runs.experiment import as_settings

TEXTS = [
    "Solve it. #1 rule: box it.",
    "# only",
    "&x hi",
    "*x",
    "!tag y",
    "%TAG",
    "@at",
    "`tick",
    "[INST] solve",
    "{a}",
    "{problem}: {input}",
    "yes",
    "null",
    "~",
    "12e4567",
    "1e-5",
    "- item",
    "? key",
    "a: b",
    "key: [",
    "| text",
    "> text",
    "a\nb",
    " blank ends ",
    r"####\s*(-?[\d,.]+)",
    r"\boxed{}",
    'say "x"',
    "é \U0001f600 \u2028",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_quoted_value_is_the_text_between_the_quotes(text):
    assert parse_settings(f"system_prompt='{text}' a=1") == {"system_prompt": text, "a": 1}
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    assert parse_settings(f'a=1 system_prompt="{escaped}"') == {"a": 1, "system_prompt": text}


@pytest.mark.parametrize("value", [*TEXTS, 1, 0.5, 1e-05, None, True, ["a #b", 1], {"a": "x: y"}])
def test_an_experiment_hands_on_what_it_has(value):
    assert parse_settings(as_settings({"field": value, "other": 2})) == {"field": value, "other": 2}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x=1e-5", 1e-5),
        ("x=yes", True),
        ("x=null", None),
        ("x=", None),
        ("x=[1,2]", [1, 2]),
        ('x=["a b",c]', ["a b", "c"]),
        ("'x=[1, 2]'", [1, 2]),
        ("'x={a: b c}'", {"a": "b c"}),
        ("x={a:,b:}", {"a": None, "b": None}),
        ("'x=some words'", "some words"),
        ("'x=some #1 words'", "some #1 words"),
        ("x=004", "004"),
        ("x=[007,0,0.5,00.5]", ["007", 0, 0.5, "00.5"]),
        ("x=#1", "#1"),
        ("x=&y", "&y"),
        ("x=12e4567", "12e4567"),
        ("x=2024-01-02", "2024-01-02"),
        (r"x=\d+", r"\d+"),
        (r"x=a\ b", "a b"),
        ("x=a=b", "a=b"),
        ("x=pre'fix d'", "prefix d"),
    ],
)
def test_other_values_are_yaml_or_words(text, value):
    assert parse_settings(text) == {"x": value}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x='a", "no closing quotation"),
        ("x=Don't", "no closing quotation"),
        ("x=[a", "x is not YAML.*x='...'"),
        ("words", "'words' is not FIELD=VALUE"),
        ("=1", "is not FIELD=VALUE"),
        ("'x={a: 1, a: 2}'", "given twice"),
    ],
)
def test_what_is_no_setting_is_told(text, said):
    with pytest.raises(RecipeError, match=said):
        parse_settings(text)


@pytest.mark.parametrize("text", ["#1: &x [b] {c} *d yes", r"####\s*(-?[\d,.]+)"])
def test_a_shell_changes_nothing_on_the_way(text):
    """MLflow quotes the parameter for the shell that starts the stage."""
    given = f"system_prompt='{text}' x=1"
    said = subprocess.run(
        ["bash", "-c", f"printf %s {shlex.quote(given)}"], capture_output=True, text=True
    ).stdout
    assert parse_settings(said)["system_prompt"] == text


@pytest.mark.parametrize(
    "value",
    ["1e5", "12e4567", "0x1F", "10:50", "1_000", "007", ".5", "yes", "null", "", "😀 é", "a\nb",
     "2024-07-26", "#x", 1e-05, 1e300, 100000.0, 7, True, None],
)  # fmt: skip
def test_a_recipe_that_is_kept_on_its_run_is_read_back_as_it_was(value):
    text = dump({"value": value, "nested": {"list": [value]}})
    read = yaml.load(text, Loader)
    assert read == {"value": value, "nested": {"list": [value]}}
    assert type(read["value"]) is type(value)
    if isinstance(value, str):
        assert yaml.safe_load(text)["value"] == value  # as other readers have it
