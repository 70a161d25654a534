"""Tables of single tokens, and where they are kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import mlflow_scalpel
from mlflow_scalpel.comparison.forward import divergence as tables
from mlflow_scalpel.comparison.forward.divergence import named
from mlflow_scalpel.comparison.run_store import log_table, log_tokens, stored_tokens, token_steps
from mlflow_scalpel.comparison.table import TOKEN_DTYPES, tidy
from mlflow_scalpel.errors import ScalpelError

TEXTS = [(f"{n}+{n}=?", f"it is {2 * n}") for n in range(11)]


@pytest.fixture(scope="module")
def pair(make_model) -> tuple[str, str]:
    return str(make_model(1)), str(make_model(2))


@pytest.fixture
def table(pair) -> pd.DataFrame:
    return mlflow_scalpel.top_tokens(*pair, texts=TEXTS)


def test_every_token_of_eight_problems_and_the_ranked_ones_of_all(pair, monkeypatch):
    monkeypatch.setattr(tables, "RANKED", 20)
    table = mlflow_scalpel.top_tokens(*pair, texts=TEXTS)
    assert list(table.columns) == list(TOKEN_DTYPES)
    tokenizer = AutoTokenizer.from_pretrained(pair[0])
    for problem in range(8):
        rows = table[table["problem"] == problem]
        assert list(rows["position"]) == list(range(len(rows)))
        assert rows["token"].iloc[-1] is pd.NA
        ids = list(rows["token_id"].dropna())
        assert tokenizer.decode(ids).endswith(f"it is {2 * problem}")
        assert "".join(rows["token"].dropna()[rows["answer"]]) == f"it is {2 * problem}"
    ranked = table[table["rank"].notna()].sort_values("rank")
    assert list(ranked["rank"]) == list(range(1, 21))
    assert ranked["kl"].is_monotonic_decreasing
    beyond = table[table["problem"] >= 8]
    assert beyond["rank"].notna().all()
    assert table["context"].notna().equals(table["rank"].notna())
    alone = mlflow_scalpel.compare(*pair, metrics=["kl/quantile/all_tokens"], texts=TEXTS)
    assert ranked["kl"].iloc[0] == alone.set_index("bin").loc[1.0, "value"]


def test_rows_say_what_the_models_do(pair, table):
    base, checkpoint = (AutoModelForCausalLM.from_pretrained(one).eval() for one in pair)
    tokenizer = AutoTokenizer.from_pretrained(pair[0])
    rows = table[table["problem"] == 3].set_index("position")
    prompt = [{"role": "user", "content": TEXTS[3][0]}, {"role": "assistant", "content": "it is 6"}]
    ids = tokenizer.apply_chat_template(prompt, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        p, q = (one(input_ids=ids).logits[0].softmax(-1) for one in (base, checkpoint))
    for at in (0, 5, len(rows) - 2):
        row = rows.loc[at]
        best = p[at].topk(5)
        assert row["base_top"] == [tokenizer.decode([token]) for token in best.indices]
        assert row["base_top_p"] == pytest.approx(best.values.tolist(), rel=1e-4)
        assert row["checkpoint_top_p"] == pytest.approx(q[at].topk(5).values.tolist(), rel=1e-4)
        assert row["token_id"] == ids[0, at + 1]
        assert row["right_p_base"] == pytest.approx(float(p[at, ids[0, at + 1]]), rel=1e-4)
        kl = float((p[at] * (p[at] / q[at]).log()).sum())
        assert row["kl"] == pytest.approx(kl, rel=1e-3)
    context = rows["context"].dropna()
    assert context.loc[5] == tokenizer.decode(ids[0, :6])[-160:]


def test_tables_come_from_the_cache_too(pair, table, monkeypatch):
    monkeypatch.setattr(tables, "_top", None)  # nothing may be computed
    again = mlflow_scalpel.top_tokens(*pair, texts=TEXTS)
    pd.testing.assert_frame_equal(table, again)


def test_what_has_no_kl_has_no_table(pair, tmp_path):
    odd = tmp_path / "odd"
    shutil.copytree(pair[1], odd)
    tensors = load_file(odd / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, odd / "model.safetensors")
    with pytest.raises(ScalpelError, match=r"is missing the tensor model\.norm\.weight"):
        mlflow_scalpel.top_tokens(pair[0], str(odd), texts=TEXTS)


def test_a_run_keeps_a_table_a_step(tracking, table):
    with mlflow.start_run() as run:
        unknown = named(table, "", 20)
        log_tokens([named(table, "m-1", 5), named(table, "m-2", 5), unknown], run.info.run_id)
    run_id = run.info.run_id
    assert token_steps(run_id) == [5, 20]
    stored = stored_tokens(run_id, 5)
    assert len(stored) == 2 * len(table)
    one = stored[stored["model_id"] == "m-1"].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, named(table, "m-1", 5))
    log_table(tidy([{"metric": "x", "step": 20, "model_id": "m-3", "value": 1.0}]), run_id)
    assert set(stored_tokens(run_id, 20)["model_id"]) == {"m-3"}
    with pytest.raises(ScalpelError, match="no table of tokens for step 6; there is one for 5, 20"):
        stored_tokens(run_id, 6)


def test_models_without_a_step_are_numbered(tracking, table, tmp_path: Path):
    with mlflow.start_run() as run:
        log_tokens([named(table, "a", None), named(table, "b", None)], run.info.run_id)
    assert token_steps(run.info.run_id) == [0, 1]
    assert set(stored_tokens(run.info.run_id, 1)["model_id"]) == {"b"}
