"""Rows from files, and what is told where they do not fit."""

from __future__ import annotations

import json

import pytest

from mlflow_scalpel.data import load_rows
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.recipes.fields import Data

ROWS = [
    {"question": "1+1", "answer": "one and one\n#### 2", "kind": "sum"},
    {"question": "2*3", "answer": "three twos\n#### 6", "kind": "product"},
    {"question": "2+3", "answer": "two and three\n#### 5", "kind": "sum"},
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def gsm(file: str, **fields) -> Data:
    columns = {"problem": "question", "answer": "answer", "solution": "answer"}
    return Data(file=file, columns=columns, answer_pattern=r"####\s*(.+)", **fields)


def test_roles_are_taken_from_the_named_columns(file):
    rows = load_rows(gsm(file), needs=("problem", "answer", "solution"))
    assert [row["answer"] for row in rows] == ["2", "6", "5"]
    assert rows[0]["problem"] == "1+1"
    assert rows[0]["solution"] == "one and one\n#### 2"
    assert rows[0]["kind"] == "sum"


def test_where_rows_and_limit(file):
    assert [r["problem"] for r in load_rows(gsm(file, where={"kind": "sum"}))] == ["1+1", "2+3"]
    assert [r["problem"] for r in load_rows(gsm(file, rows="1:"))] == ["2*3", "2+3"]
    drawn = load_rows(gsm(file, limit=2, seed=3))
    assert len(drawn) == 2
    assert drawn == load_rows(gsm(file, limit=2, seed=3))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"columns": {"problem": "frage"}}, "no column 'frage'.*question, answer, kind"),
        ({"where": {"level": "1"}}, "where.level names no column"),
        ({"where": {"kind": "x"}}, "where.kind = x leaves no row; the column has sum, product"),
        ({"rows": "9:"}, "leave no row"),
    ],
)
def test_what_does_not_fit_is_told(file, fields, said):
    data = Data(file=file, **{"columns": {"problem": "question"}, **fields})
    with pytest.raises(ScalpelError, match=said):
        load_rows(data)


def test_a_row_without_what_is_needed_is_told(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"problem": "a", "answer": "1"}\n{"problem": "b", "answer": null}\n')
    assert load_rows(Data(file=str(path)))[1]["answer"] is None
    with pytest.raises(ScalpelError, match="line 2: there is no answer in it"):
        load_rows(Data(file=str(path)), needs=("problem", "answer"))


@pytest.mark.parametrize("role", ["problem", "answer", "solution"])
def test_what_is_only_blanks_is_not_there(tmp_path, role):
    path = tmp_path / "rows.jsonl"
    row = {"problem": "a", "answer": "1", "solution": "so 1"}
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, role: " \n"}) + "\n")
    with pytest.raises(ScalpelError, match=f"line 2: there is no {role} in it"):
        load_rows(Data(file=str(path)), needs=("problem", "answer", "solution"))
    data = Data(file=str(path), drop_unreadable=True)
    assert len(load_rows(data, needs=("problem", "answer", "solution"))) == 1


def test_files_that_are_missing_or_of_another_kind(tmp_path):
    with pytest.raises(ScalpelError, match="no such file"):
        load_rows(Data(file=str(tmp_path / "none.jsonl")))
    (tmp_path / "rows.pkl").write_bytes(b"")
    with pytest.raises(ScalpelError, match=r"\.pkl.*\.jsonl"):
        load_rows(Data(file=str(tmp_path / "rows.pkl")))


def test_a_column_may_be_a_path_into_lists_and_mappings(tmp_path):
    turns = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "it is 2"}]
    rows = [{"problem": "1+1", "messages": turns, "a.b": "plain"}, {"problem": "2+2"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    def read(column: str) -> list:
        columns = {"problem": "problem", "answer": None, "solution": column}
        return [
            row["solution"]
            for row in load_rows(Data(file=f"{tmp_path}/rows.jsonl", columns=columns))
        ]

    assert read("messages.1.content") == ["it is 2", None]
    assert read("messages.7.content") == [None, None]
    assert read("a.b") == ["plain", None]
    with pytest.raises(ScalpelError, match=r"no column 'turns\.1'"):
        read("turns.1")
