"""Data files that people have: each value as it stands, or file, line and remedy."""

from __future__ import annotations

import datetime
import gzip
import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_scalpel.data import load_rows
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.recipes.fields import Data

ROW = b'{"problem": "3+4=", "answer": "7", "solution": "x"}'
HEAD = b"problem,answer,solution\n"


def answers(path, content: bytes, **fields) -> list[str | None]:
    path.write_bytes(content)
    return [row["answer"] for row in load_rows(Data(file=str(path), **fields))]


def with_answer(literal: str) -> bytes:
    return b'{"problem": "p", "answer": ' + literal.encode() + b"}\n"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("bom.jsonl", b"\xef\xbb\xbf" + ROW + b"\n", ["7"]),
        ("bom.json", b"\xef\xbb\xbf[" + ROW + b"]", ["7"]),
        ("bom.csv", b"\xef\xbb\xbf" + HEAD + b"3+4=,7,x\n", ["7"]),
        ("excel.csv", b"sep=;\r\nproblem;answer;solution\r\na,b;2,5;x\r\n", ["2,5"]),
        ("utf16.csv", (HEAD + b"3+4=,7,x\n").decode().encode("utf-16"), ["7"]),
        ("utf16.jsonl", ROW.decode().encode("utf-16"), ["7"]),
        ("lines.json", ROW + b"\n" + ROW + b"\n", ["7", "7"]),
        ("array.jsonl", b"[" + ROW + b",\n" + ROW + b"]", ["7", "7"]),
        ("pretty.jsonl", b"[\n  " + ROW + b"\n]\n", ["7"]),
        ("one.json", ROW, ["7"]),
        ("under.json", b'{"version": 2, "data": [' + ROW + b"]}", ["7"]),
        ("windows.jsonl", ROW + b"\r\n\r\n" + ROW + b"\r\n", ["7", "7"]),
        ("mac.jsonl", ROW + b"\r" + ROW, ["7", "7"]),
        ("separators.jsonl", with_answer('"a\u2028b\x85c"'), ["a\u2028b\x85c"]),
        ("huge.jsonl", with_answer(str(10**40)), [str(10**40)]),
        ("ints.jsonl", with_answer("11") + with_answer("null"), ["11", None]),
        (
            "long.jsonl",
            with_answer("12345678901234567") + with_answer("null"),
            ["12345678901234567", None],
        ),
        ("digits.jsonl", with_answer("3.14159265358979323846"), ["3.14159265358979323846"]),
        ("zeros.jsonl", with_answer("2.50"), ["2.50"]),
        (
            "power.jsonl",
            with_answer("1e16") + with_answer("-2E-3"),
            ["10000000000000000", "-0.002"],
        ),
        ("beyond.jsonl", with_answer("1e400"), ["1E+400"]),
        ("true.jsonl", with_answer("true"), ["true"]),
        ("later.jsonl", b'{"problem": "p"}\n' + with_answer("7"), [None, "7"]),
        ("gone.jsonl", with_answer("7") + b'{"problem": "p"}\n', ["7", None]),
        ("codes.csv", HEAD + b"p,004,x\n", ["004"]),
        ("na.csv", HEAD + b"p,NA,x\np,nan,x\np,,x\n", ["NA", "nan", None]),
        ("floats.csv", HEAD + b"p,11,x\np,,x\np,1e5,x\n", ["11", None, "1e5"]),
        ("quoted.csv", HEAD + b'p,"a\n""b"", c",x\np,2,x\n', ['a\n"b", c', "2"]),
        ("semicolon.csv", b"problem;answer\np;3,5\n", ["3,5"]),
        ("tabs.tsv", b"problem\tanswer\np\t3,5\n", ["3,5"]),
        ("tabs.csv", b"problem\tanswer\np\t7\n", ["7"]),
        ("index.csv", b",problem,answer\n0,p,7\n", ["7"]),
        ("upper.CSV", HEAD + b"p,7,x\n", ["7"]),
        ("packed.jsonl.gz", gzip.compress(ROW, mtime=0), ["7"]),
    ],
)
def test_values_are_what_stands_there(tmp_path, name, content, expected):
    assert answers(tmp_path / name, content) == expected


def test_zstandard_is_read(tmp_path):
    path = tmp_path / "packed.jsonl.zst"
    assert answers(path, pa.Codec("zstd").compress(ROW, asbytes=True)) == ["7"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "latin.jsonl",
            ROW + '\n{"problem": "café"}'.encode("latin-1"),
            "line 2.*0xe9 is not utf-8.*café.*encoding",
        ),
        (
            "cp1252.csv",
            HEAD + "p,“7”,x\n".encode("cp1252"),
            "line 2.*0x93 is not utf-8.*“7”.*save the file as UTF-8",
        ),
        ("nul.csv", "problem,answer\np,7\n".encode("utf-16-le"), "line 1.*utf-16-le"),
        ("cut.jsonl", ROW + b"\n\n" + ROW[:20], "line 3: is not complete JSON"),
        ("cut.json", b"[" + ROW + b",\n" + ROW[:20], "line 2: is not complete JSON"),
        ("scalars.jsonl", b"1\n2\n", "line 1: holds 1 and not an object"),
        ("scalars.json", b"[1, 2]", r"row 0 \(counted from 0\) is 1 and not an object"),
        ("text.json", b'"abc"', "line 1: holds .*abc.* and not rows"),
        ("mixed.jsonl", ROW + b"\n[1]\n", r"line 2: holds \[1\] and not an object"),
        ("empty.jsonl", b"", "is empty"),
        ("empty.json", b"\n", "is empty"),
        ("empty.csv", b"", "is empty"),
        ("none.json", b"[]", "there is no row in it"),
        ("header.csv", HEAD, "there is no row in it"),
        (
            "twice.jsonl",
            b'{"problem": "p", "answer": 1, "answer": 2}',
            "line 1.*'answer' is given twice",
        ),
        ("twice.csv", b"problem,answer,answer\np,1,2\n", "line 1: has two columns 'answer'"),
        ("nan.jsonl", with_answer("1") + with_answer("NaN"), "line 2.*answer holds nan"),
        ("infinity.jsonl", with_answer("-Infinity"), "line 1.*answer holds -inf"),
        ("many.csv", HEAD + b"p,7,x\np,1,2,3\n", "line 3: has 4 cells, and the header has 3"),
        ("few.csv", HEAD + b"p,7\n", "line 2: has 2 cells, and the header has 3"),
        ("open.csv", HEAD + b'p,7,x\np,"7,x\np,8,x\n', "line 3: is not complete CSV.*quote"),
        ("inner.csv", HEAD + b'p,"a"b",x\n', "line 2: is not complete CSV"),
        ("half.jsonl", with_answer('"\\ud800"'), "line 1.*half of a character"),
        ("columns.json", b'{"problem": {"0": "p"}, "answer": {"0": "7"}}', "orient=.records"),
        (
            "splits.json",
            b'{"a": [{"problem": 1}], "b": [{"problem": 2}]}',
            "is one object with a, b",
        ),
        ("deep.jsonl", b'{"a":' * 9999, "line 1: is not complete JSON"),
        ("bad.parquet", b"PAR1", "not readable Parquet"),
        ("cut.jsonl.gz", gzip.compress(ROW * 99, mtime=0)[:-20], "cannot be read"),
    ],
)
def test_what_cannot_be_read_names_file_line_and_what_is_wrong(tmp_path, name, content, said):
    with pytest.raises(ScalpelError, match=f"(?s){name}.*{said}"):
        answers(tmp_path / name, content)


def test_nan_in_a_column_that_nobody_needs_refuses_nothing(tmp_path):
    content = b'{"problem": "p", "answer": "7", "score": NaN}'
    assert answers(tmp_path / "a.jsonl", content) == ["7"]


def test_an_encoding_may_be_named(tmp_path):
    content = HEAD + "p,“7”,é\n".encode("cp1252")
    assert answers(tmp_path / "a.csv", content, encoding="cp1252") == ["“7”"]


def test_parquet_gives_values_as_they_stand(tmp_path):
    table = pa.table(
        {
            "problem": ["a", "b"],
            "answer": pa.array([12345678901234567, None], pa.int64()),
            "pandas": pa.array(
                [11.0, None], pa.float64()
            ),  # integers beside nulls, as pandas has them
            "large": pa.array([1.2345678901234568e16, 0.1], pa.float64()),
            "money": pa.array([Decimal("2.50"), None], pa.decimal128(9, 2)),
            "day": pa.array([datetime.date(2024, 2, 29), None]),
            "meta": [{"level": 5, "tags": ["x", "y"]}, {"level": 6, "tags": []}],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")

    def first(column: str) -> str | None:
        columns = {"problem": "problem", "answer": column}
        return load_rows(Data(file=f"{tmp_path}/a.parquet", columns=columns))[0]["answer"]

    named = ["answer", "pandas", "large", "money", "day", "meta.level", "meta.tags.-1"]
    assert [first(column) for column in named] == [
        "12345678901234567",
        "11",
        "12345678901234568",
        "2.50",
        "2024-02-29",
        "5",
        "y",
    ]
    with pytest.raises(
        ScalpelError,
        match=r"row 0.*columns.answer = meta.tags holds a list of 2; write meta.tags.0",
    ):
        first("meta.tags")


def test_narrow_floats_have_the_digits_that_were_written(tmp_path):
    written = ["0.1", "2.5", "0.7", "3"]  # what stood there before it became float32 or float16
    for kind in (pa.float32(), pa.float16()):
        values = pa.array(np.array(written, dtype=kind.to_pandas_dtype()))
        nested = pa.array(
            [{"of": [float(one)]} for one in written], pa.struct({"of": pa.list_(kind)})
        )
        table = pa.table({"problem": list("abcd"), "answer": values, "solution": nested})
        pq.write_table(table, tmp_path / "narrow.parquet")
        columns = {"solution": "solution.of.0"}
        rows = load_rows(Data(file=str(tmp_path / "narrow.parquet"), columns=columns))
        assert [row["answer"] for row in rows] == written
        assert [row["solution"] for row in rows] == written


def test_arrays_in_a_parquet_file_of_pandas_are_lists(tmp_path):
    frame = pd.DataFrame({"problem": ["p"], "generations": [np.array(["a", "b"])]})
    frame.to_parquet(tmp_path / "a.parquet")
    columns = {"answer": None, "solution": "generations.1"}
    (row,) = load_rows(Data(file=f"{tmp_path}/a.parquet", columns=columns))
    assert row["solution"] == "b"


LEVELS = [
    {
        "problem": f"{n}+1=",
        "level": n,
        "ok": bool(n % 2),
        "half": n / 2,
        "kind": None if n == 3 else "k",
    }
    for n in range(6)
]


@pytest.mark.parametrize(
    ("where", "problems"),
    [
        ({"level": 5}, ["5+1="]),
        ({"level": "5"}, ["5+1="]),
        ({"level": [1, "2"]}, ["1+1=", "2+1="]),
        ({"level": 5.0}, ["5+1="]),
        ({"half": 0.5}, ["1+1="]),
        ({"half": 1}, ["2+1="]),
        ({"ok": True}, ["1+1=", "3+1=", "5+1="]),
        ({"ok": "false"}, ["0+1=", "2+1=", "4+1="]),
        ({"kind": None}, ["3+1="]),
        ({"kind": "k", "ok": True}, ["1+1=", "5+1="]),
    ],
)
def test_where_takes_texts_numbers_booleans_and_null(tmp_path, where, problems):
    path = tmp_path / "levels.jsonl"
    path.write_text("\n".join(map(json.dumps, LEVELS)))
    assert [row["problem"] for row in load_rows(Data(file=str(path), where=where))] == problems


@pytest.mark.parametrize("where", [{"ok": 1}, {"level": True}, {"kind": "null"}, {"level": "05"}])
def test_what_where_does_not_find_is_told_with_what_there_is(tmp_path, where):
    path = tmp_path / "levels.jsonl"
    path.write_text("\n".join(map(json.dumps, LEVELS)))
    (column,) = where
    there = {"ok": "false, true", "level": "0, 1, 2, 3, 4, 5", "kind": "k, null"}[column]
    with pytest.raises(ScalpelError, match=f"where.{column} = .* leaves no row.* has {there}$"):
        load_rows(Data(file=str(path), where=where))


def test_where_finds_words_of_a_csv(tmp_path):
    (tmp_path / "a.csv").write_text("problem,level,ok\na,5,True\nb,05,FALSE\n")
    for where, problem in (({"level": 5}, "a"), ({"level": "05"}, "b"), ({"ok": False}, "b")):
        rows = load_rows(Data(file=f"{tmp_path}/a.csv", where=where))
        assert [row["problem"] for row in rows] == [problem]
