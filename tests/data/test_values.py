"""Columns, paths and templates as text, and what is refused."""

from __future__ import annotations

import json

import pytest

from mlflow_scalpel.data import load_rows
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.recipes.fields import Columns, Data


def read(tmp_path, row: dict, **columns) -> dict:
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    named = {"answer": None, "solution": None, **columns}
    return load_rows(Data(file=f"{tmp_path}/a.jsonl", columns=named))[0]


TURNS = [{"role": "user", "content": "3+4="}, {"role": "assistant", "content": "7"}]
PARTS = [{"type": "text", "text": "3+4="}]


@pytest.mark.parametrize(
    ("role", "value", "said"),
    [
        ("solution", TURNS, "columns.solution = x holds a list of messages; write x.1.content"),
        ("answer", TURNS, "columns.answer = x holds a list of messages; write x.1.content"),
        ("problem", TURNS, "columns.problem = x holds a list of messages; write x.0.content"),
        ("problem", [{"from": "human", "value": "3"}], r"write x\.0\.value"),
        ("problem", PARTS, r"holds a list of 1; write x\.0\.text"),
        ("solution", [{"role": "assistant", "content": PARTS}], r"write x\.0\.content\.0\.text"),
        ("solution", ["a", "b"], r"holds a list of 2; write x\.0"),
        ("answer", {"text": ["7"], "start": [1]}, r"holds a mapping; write x\.text\.0"),
        ("answer", {}, "holds no text; name another column"),
        ("solution", [], "holds no text; name another column"),
        ("solution", str(TURNS), "list of messages that was written as text"),
        ("solution", json.dumps(TURNS), "list of messages that was written as text"),
    ],
)
def test_a_list_or_mapping_is_never_taken_for_its_repr(tmp_path, role, value, said):
    with pytest.raises(ScalpelError, match=f"line 1: .*{said}"):
        read(tmp_path, {"problem": "p", "x": value}, **{role: "x"})


def test_paths_may_count_from_the_end(tmp_path):
    found = read(tmp_path, {"m": TURNS}, problem="m.-2.content", solution="m.-1.content")
    assert (found["problem"], found["solution"]) == ("3+4=", "7")
    found = read(tmp_path, {"m": TURNS, "problem": "p"}, solution="m.-3.content")
    assert found["solution"] is None


ROW = {"instruction": "Add.", "input": "3+4=", "empty": "", "none": None, "n": 5}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{instruction}\n{input}", "Add.\n3+4="),
        ("{instruction}\n{empty}", "Add."),
        ("{instruction}\n\n{none}", "Add."),
        ("{empty}\n{instruction}", "Add."),
        ("{instruction}\n\n{empty}\n\n{input}", "Add.\n\n3+4="),
        ("{instruction}\nInput: {empty}\nEnd", "Add.\nEnd"),
        ("{n}. {instruction} {empty}", "5. Add. "),
        ("Box it in \\boxed{}: {input}", "Box it in \\boxed{}: 3+4="),
    ],
)
def test_columns_can_be_joined(tmp_path, template, text):
    assert read(tmp_path, ROW, problem=template)["problem"] == text


def test_a_template_that_names_no_column_or_nothing_is_refused(tmp_path):
    with pytest.raises(ScalpelError, match="no column 'inptu' to take the problem from"):
        read(tmp_path, ROW, problem="{instruction}\n{inptu}")
    with pytest.raises(ScalpelError, match="line 1: there is no problem in it"):
        read(tmp_path, ROW, problem="{empty}{none}")
    with pytest.raises(ValueError, match="a backslash and an n where a line break"):
        Columns(problem=r"{instruction}\n{input}")


def test_a_column_whose_name_has_braces_is_a_column(tmp_path):
    assert read(tmp_path, {"{q}": "3+4="}, problem="{q}")["problem"] == "3+4="
