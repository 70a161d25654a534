"""How views read a table."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd

from mlflow_scalpel.comparison.table import DTYPES, tidy
from mlflow_scalpel.views.tidy import read


def test_ninety_thousand_rows_are_read_fast():
    """0.15 s; three times that here, since the machine may be busy, and the best of five."""
    numbers = np.arange(90_000)
    table = pd.DataFrame(
        {
            "model_id": [f"m-{i // 2240}" for i in numbers],
            "run_id": [f"r{i // 45_000}" for i in numbers],
            "step": numbers // 2240,
            "metric": [f"weights/m{i % 10}" for i in numbers],
            "layer": numbers // 10 % 32,
            "matrix": [f"m{i // 320 % 7}" for i in numbers],
            "value": numbers / 7.0,
            "status": "ok",
        }
    )
    table = table.reindex(columns=list(DTYPES)).astype(DTYPES)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        clean = read(table)
        times.append(time.perf_counter() - start)
    assert len(clean) == len(table)
    assert min(times) < 0.45, times


def test_what_was_read_is_not_read_again(table):
    clean = read(table)
    assert read(clean) is clean
    some = clean[clean["step"] == 100]
    assert read(some) is some


def test_pairs_with_different_seconds_are_not_doubles():
    one = {"run_id": "a", "step": 1, "metric": "pairs/update_cosine", "value": 0.1, "other": "m-1"}
    table = tidy([one, {**one, "other": "m-2"}, {**one, "value": 0.3}])
    assert list(read(table)["value"]) == [0.1, 0.3] or list(read(table)["value"]) == [0.3, 0.1]
    assert set(read(table)["other"]) == {"m-1", "m-2"}
    older = table.drop(columns="other")
    assert list(read(older)["value"]) == [0.3]


def test_an_empty_text_is_an_absent_one():
    one = {"run_id": "a", "step": 1, "metric": "kl/all_tokens", "value": 0.1}
    assert len(read(tidy([one, {**one, "texts": "", "value": 0.2}]))) == 1
