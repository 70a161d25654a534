"""Conversations by role: TRL's and ShareGPT's forms, and those that are not taken."""

from __future__ import annotations

import json

import pytest

from mlflow_scalpel.data import load_rows
from mlflow_scalpel.data.conversations import question
from mlflow_scalpel.data.sources import load
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.recipes.fields import Data


def turn(role: str, content) -> dict:
    return {"role": role, "content": content}


def shared(who: str, value: str) -> dict:
    return {"from": who, "value": value}


SYSTEM, ASK, TELL = turn("system", "Be brief."), turn("user", "3+4="), turn("assistant", "7")
MORE = [turn("user", "And 5+6=?"), turn("assistant", "11")]


def read(tmp_path, *rows: dict, messages="messages", needs=("problem", "solution"), **fields):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"messages": messages, "answer": None}
    return load(Data(file=f"{tmp_path}/a.jsonl", columns=columns, **fields), needs=needs)


@pytest.mark.parametrize(
    ("value", "before", "problem", "solution"),
    [
        ([ASK, TELL], [], "3+4=", "7"),
        ([SYSTEM, ASK, TELL], [SYSTEM], "3+4=", "7"),
        ([SYSTEM, ASK, TELL, *MORE], [SYSTEM, ASK, TELL], "And 5+6=?", "11"),
        (
            [shared("system", "Be brief."), shared("human", "3+4="), shared("gpt", "7")],
            [SYSTEM],
            "3+4=",
            "7",
        ),
        (
            [turn("user", [{"type": "text", "text": "3+"}, {"type": "text", "text": "4="}]), TELL],
            [],
            "3+4=",
            "7",
        ),
        (
            [
                turn("developer", "Be brief."),
                turn("user", [{"type": "input_text", "text": "3+4="}]),
                turn("assistant", [{"type": "output_text", "text": "7"}]),
            ],
            [SYSTEM],
            "3+4=",
            "7",
        ),
        ({"role": ["user", "assistant"], "content": ["3+4=", "7"]}, [], "3+4=", "7"),
        (json.dumps([ASK, TELL]), [], "3+4=", "7"),
        ([{**ASK, "name": None, "tool_calls": None}, TELL], [], "3+4=", "7"),
    ],
)
def test_the_last_turns_are_problem_and_solution(tmp_path, value, before, problem, solution):
    (row,) = read(tmp_path, {"messages": value}).rows
    assert (row["earlier_turns"], row["problem"], row["solution"]) == (before, problem, solution)


def test_columns_of_turns_follow_one_another(tmp_path):
    """TRL's prompt and completion, and a preference file's prompt and chosen."""
    row = {"prompt": [SYSTEM, ASK], "completion": [TELL]}
    (found,) = read(tmp_path, row, messages=["prompt", "completion"]).rows
    assert found["earlier_turns"] == [SYSTEM]
    assert (found["problem"], found["solution"]) == ("3+4=", "7")
    (found,) = read(tmp_path, {"chosen": [ASK, TELL], "rejected": []}, messages="chosen").rows
    assert found["solution"] == "7"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([ASK], "its last turn is of the user; no solution there"),
        ([ASK, turn("assistant", "")], "turn 1, of the assistant, is empty"),
        ([ASK, turn("assistant", None)], "turn 1, of the assistant, is empty"),
        ([ASK, {"role": "assistant", "value": "7"}], "turn 1 has no content beside its role"),
        ([ASK, {**TELL, "weight": 0}], "turn 1, of the assistant, has weight 0"),
        ([ASK, TELL, TELL], "turns 1 and 2 are both of the assistant"),
        ([ASK, ASK, TELL], "turns 0 and 1 are both of the user"),
        ([TELL, ASK, TELL], "begins with an assistant turn"),
        ([SYSTEM, TELL], "begins with an assistant turn"),
        ([ASK, SYSTEM, TELL], "turn 1 is a system turn"),
        ([SYSTEM], "it has no user turn"),
        ([], "it has no turn"),
        (None, "it is NoneType and not a list"),
        ("3+4=", "it is a text and not a list of turns"),
        (["3+4=", "7"], "turn 0 has neither `role`"),
        ([ASK, turn("tool", "7"), TELL], "turn 1 is of a tool"),
        (
            [shared("human", "3"), shared("function_call", "f"), shared("gpt", "7")],
            "turn 1 is of a function_call",
        ),
        ([ASK, turn("critic", "7")], "turn 1 has the role 'critic'"),
        (
            [ASK, {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}],
            "turn 1 has tool_calls",
        ),
        ([ASK, {**TELL, "reasoning_content": "3 and 4"}], "turn 1 has reasoning_content"),
        (
            [turn("user", [{"type": "image"}, {"type": "text", "text": "?"}]), TELL],
            "turn 0 has a part of type 'image'",
        ),
        ([turn("user", {"text": "3"}), TELL], "turn 0 holds dict"),
    ],
)
def test_what_is_not_taken_names_line_and_turn(tmp_path, value, said):
    good = {"messages": [ASK, TELL]}
    with pytest.raises(ScalpelError, match=f"line 2: .*{said}.*drop_unreadable"):
        read(tmp_path, good, {"messages": value})
    loaded = read(tmp_path, good, {"messages": value}, drop_unreadable=True)
    assert [row["solution"] for row in loaded.rows] == ["7"]
    assert loaded.account.dropped["unreadable"] == 1
    assert said.partition("`")[0] in str(loaded.account.line())


def test_an_earlier_turn_of_weight_0_is_context_as_any_other(tmp_path):
    turns = [ASK, {**TELL, "weight": 0}, ASK, {**TELL, "weight": 1}]
    (row,) = read(tmp_path, {"messages": turns}).rows
    assert row["earlier_turns"] == [ASK, TELL]


def test_a_prompt_needs_no_answer(tmp_path):
    (row,) = read(tmp_path, {"messages": [ASK, TELL, ASK]}, needs=("problem",)).rows
    assert row["problem"] == "3+4="
    assert row["earlier_turns"] == [ASK, TELL]


def test_no_readable_row_is_refused_with_the_first(tmp_path):
    with pytest.raises(ScalpelError, match=r"no row is left: 1 cannot be read .*line 1.*no turn"):
        read(tmp_path, {"messages": []}, drop_unreadable=True)


def test_what_is_asked_is_the_whole_conversation():
    row = {"earlier_turns": [SYSTEM, ASK, TELL], "problem": "5+6="}
    assert question(row, None) == [SYSTEM, ASK, TELL, turn("user", "5+6=")]
    assert question({"problem": "5+6="}, "x")[0] == turn("system", "x")
    assert question({"problem": "5+6="}, None) == [turn("user", "5+6=")]


def test_an_answer_may_be_taken_beside(tmp_path):
    row = {"messages": [ASK, turn("assistant", "It is 7.\n#### 7")]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    columns = {"messages": "messages", "answer": "messages.-1.content"}
    data = Data(file=f"{tmp_path}/a.jsonl", columns=columns, answer_pattern=r"####\s*(.+)")
    (found,) = load_rows(data, needs=("problem", "answer"))
    assert (found["problem"], found["answer"]) == ("3+4=", "7")


def test_messages_and_other_columns_are_one_or_the_other():
    with pytest.raises(ValueError, match="solution = text is given too"):
        Data(file="x", columns={"messages": "messages", "solution": "text"})
    with pytest.raises(ValueError, match="problem is null, and messages too"):
        Data(file="x", columns={"problem": None})


def test_a_system_column_beside_the_turns_is_the_system_turn(tmp_path):
    """As LLaMA-Factory's ShareGPT files have it, with `tools` beside."""
    turns = [shared("human", "3+4="), shared("gpt", "7")]
    rows = read(tmp_path, {"messages": turns, "system": "You add.", "tools": "[]"})
    assert question(rows.rows[0], None) == [turn("system", "You add."), turn("user", "3+4=")]
    assert question(read(tmp_path, {"messages": turns, "system": ""}).rows[0], None) == [
        turn("user", "3+4=")
    ]
    stated = [turn("system", "You add."), turn("user", "3+4="), turn("assistant", "7")]
    assert (
        len(question(read(tmp_path, {"messages": stated, "system": "You add."}).rows[0], None)) == 2
    )
    with pytest.raises(ScalpelError, match=r"line 1.*`system` and its system turn differ"):
        read(tmp_path, {"messages": stated, "system": "You subtract."})
    with pytest.raises(ScalpelError, match=r"line 1.*`tools` beside its turns"):
        read(tmp_path, {"messages": turns, "tools": '[{"name": "add"}]'})
