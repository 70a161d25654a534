"""Parquet files of anybody are read within bounds, or refused by a named error."""

from __future__ import annotations

import io
import random

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_scalpel.comparison import parquet
from mlflow_scalpel.comparison.parquet import read_bounded
from mlflow_scalpel.comparison.run_queries import joined
from mlflow_scalpel.comparison.table import read_table, tidy
from mlflow_scalpel.errors import ScalpelError

ROW = {"step": 1, "metric": "kl/all_tokens", "value": 0.5}


def file_of(**columns: object) -> io.BytesIO:
    made = io.BytesIO()
    pq.write_table(pa.table(columns), made)
    made.seek(0)
    return made


def test_a_file_of_very_many_rows_is_refused_before_it_is_read():
    made, rows = io.BytesIO(), 1_000_000
    schema = pa.schema([("step", pa.int64()), ("value", pa.float64())])
    group = pa.table({"step": np.ones(rows, int), "value": np.ones(rows)}, schema=schema)
    with pq.ParquetWriter(made, schema, compression="zstd") as writer:
        for _ in range(40):
            writer.write_table(group)
    assert made.tell() < 2_000_000
    made.seek(0)
    before = psutil.Process().memory_info().rss
    with pytest.raises(ScalpelError, match="it has 40000000 rows"):
        read_table(made)
    assert psutil.Process().memory_info().rss - before < 50_000_000


def test_texts_that_a_dictionary_holds_once_are_counted_as_often_as_they_stand(monkeypatch):
    monkeypatch.setattr(parquet, "MOST_BYTES", 1_000_000)
    made = file_of(reason=pa.array(["x" * 1000] * 10_000).dictionary_encode())
    assert len(made.getvalue()) < 100_000
    with pytest.raises(ScalpelError, match=r"at most 10000000 rows and 1000000 bytes are read"):
        read_table(made)
    monkeypatch.undo()
    with pytest.raises(ScalpelError, match="a text in it has 2000000 bytes"):
        read_table(file_of(reason=pa.array(["x" * 2_000_000])))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"step": [0.5]}, "column step holds what is not Int64"),
        ({"step": ["1"]}, "column step holds string and not Int64"),
        ({"step": [-1]}, "column step holds -1"),
        ({"layer": [1 << 60]}, "column layer holds"),
        ({"value": ["much"]}, "column value holds string and not Float64"),
        ({"metric": [1]}, "column metric holds int64 and not string"),
        ({"metric": [b"\xff"]}, "column metric holds binary and not string"),
        ({"metric": [{"a": 1}]}, "column metric holds struct"),
        ({"metric": [[["a"]]]}, "column metric holds list"),
        ({"value": pa.array([1], pa.timestamp("ns"))}, "column value holds timestamp"),
    ],
)
def test_what_no_table_holds_is_refused(columns, said):
    with pytest.raises(ScalpelError, match=said):
        read_table(file_of(**columns))


def test_columns_that_are_missing_or_of_a_narrower_type():
    made = file_of(step=pa.array([1], pa.int8()), value=pa.array([0.5], pa.float32()),
                   metric=["kl/all_tokens"], layer=pa.nulls(1), more=["x"])  # fmt: skip
    pd.testing.assert_frame_equal(read_table(made).drop(columns="status"),
                                  tidy([ROW]).drop(columns="status"))  # fmt: skip


def test_files_that_were_damaged_anywhere():
    made = io.BytesIO()
    tidy([{**ROW, "step": step, "reason": "a" * step} for step in range(50)]).to_parquet(made)
    content, chance = made.getvalue(), random.Random(0)
    read = 0
    for _ in range(300):
        bad = bytearray(content)
        for _ in range(chance.randint(1, 8)):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        try:
            read += len(read_table(io.BytesIO(bytes(bad)))) > 0
        except ScalpelError:
            continue
    assert read < 300
    with pytest.raises(ScalpelError):
        read_bounded(io.BytesIO(b"PAR1"), None)


def test_models_without_a_run_are_kept_apart():
    one = {"model_id": "a", "metric": "kl/all_tokens", "value": 0.1}
    table = tidy([one, {**one, "model_id": "b", "value": 0.2}])
    whole = joined([table, tidy([{**one, "value": 0.3}])])
    assert list(whole["model_id"]) == ["a", "b"]
    assert list(whole["value"]) == [0.1, 0.2]


def test_what_two_tables_measured_of_one_run_stays_once():
    one = {"model_id": "a", "run_id": "r", "step": 5, "metric": "kl/all_tokens", "value": 0.1}
    other = {**one, "model_id": "the same by another name", "value": 0.3}
    whole = joined([tidy([one]), tidy([other])])
    assert list(whole["value"]) == [0.1]


def test_scores_of_the_base_that_two_runs_hold_stay_once():
    one = {"model_id": "a", "step": 0, "metric": "eval/in/sums/sampled", "value": 0.1}
    other = {**one, "model_id": "the same by another name", "value": 0.3}
    assert list(joined([tidy([one]), tidy([other])])["value"]) == [0.1]
