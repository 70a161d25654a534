"""A base is what it holds, and goes by a name."""

from __future__ import annotations

import pandas as pd

from mlflow_scalpel.comparison.table import tidy
from mlflow_scalpel.views.bases import base_words

DIGEST, OTHER = "sha256:" + "a5" * 32, "sha256:" + "b6" * 32


def row(run: str, base: str, digest: str | None) -> dict:
    said = {"metric": "kl/all_tokens", "value": 1.0, "step": 1, "run_id": run, "base": base}
    return said | ({} if digest is None else {"base_digest": digest})


def test_one_base_of_three_experiments_is_one():
    ids = [f"m-{n}" + "0" * 31 for n in (1, 2, 3)]
    table = tidy([row(f"run{n}", one, DIGEST) for n, one in enumerate(ids)])
    runs = pd.DataFrame({"base_name": [None, "tiny-base/1", None]}, index=["run0", "run1", "run2"])
    assert base_words(table, runs) == ["tiny-base/1 (sha256:a5a5a5a5)"]
    runs = pd.DataFrame({"base_model": [f"models:/{ids[0]}", "org/base", "x"]}, index=runs.index)
    assert base_words(table, runs) == ["org/base (sha256:a5a5a5a5)"]
    assert base_words(table) == [f"{ids[0]} (sha256:a5a5a5a5)"]


def test_others_stand_by_themselves():
    table = tidy([row("a", "one", DIGEST), row("b", "two", OTHER), row("c", "OLMo", None)])
    names = ["one (sha256:a5a5a5a5)", "two (sha256:b6b6b6b6)", "OLMo"]
    assert base_words(table) == names
    assert base_words(tidy([row("a", "one", DIGEST), row("c", "one", None)])) == names[:1]
    assert base_words(tidy([])) == []
