"""Attention of base and checkpoint over texts, in a table."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config

import mlflow_scalpel
from mlflow_scalpel.comparison.forward import attention
from mlflow_scalpel.comparison.forward import model as forward
from mlflow_scalpel.comparison.forward.probes import Probe, ProbeText, build_probe
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics.attention import js
from mlflow_scalpel.metrics.registry import choose_metrics
from tests.conftest import make_tokenizer
from tests.tensors.tiny_families import tiny_model

TEXTS = [("1+1=?", "2"), ("what is the capital", "a long answer of many letters"), ("a", "b")]
METRICS = {"js", "entropy_change", "first_token_change", "distance_change"}


@pytest.fixture(scope="module")
def pair(make_model) -> tuple[str, str]:
    return str(make_model(1)), str(make_model(2))


@pytest.mark.parametrize("on_disk", [False, True])
def test_every_layer_and_head_against_the_models_own_rows(pair, on_disk, monkeypatch):
    if on_disk:
        monkeypatch.setattr(forward, "BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(attention, "SLICE_ROWS", 1)  # one head at a time
    table = mlflow_scalpel.compare(*pair, metrics=["attention"], texts=TEXTS)
    assert set(table["metric"]) == {f"attention/{name}" for name in METRICS}
    assert len(table) == 4 * 2 * 2
    assert set(table["status"]) == {"ok"}
    values = own_values(*pair)
    found = table[table["metric"] == "attention/js"].set_index(["layer", "head"])
    for (layer, head), row in found.iterrows():
        over_texts = [text[layer][head] for text in values]
        assert row["value"] == pytest.approx(np.mean(over_texts), rel=1e-4)
        assert row["stderr"] == pytest.approx(np.std(over_texts, ddof=1) / 3**0.5, rel=1e-3)
        assert (row["n"], row["unit"], row["dtype"]) == (3, "nats", "float32")
        assert row["texts"].startswith("texts sha256:")


def own_values(base, checkpoint) -> list[list[np.ndarray]]:
    """Jensen-Shannon of the rows that Transformers gives, by text and layer, (H,) each."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    models = [
        AutoModelForCausalLM.from_pretrained(one, attn_implementation="eager").eval()
        for one in (base, checkpoint)
    ]
    values = []
    for problem, solution in TEXTS:
        turns = [{"role": "user", "content": problem}, {"role": "assistant", "content": solution}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            p, q = (m(ids["input_ids"], output_attentions=True).attentions for m in models)
        values.append([js(before[0], after[0]).numpy() for before, after in zip(p, q, strict=True)])
    return values


@pytest.fixture
def gemma(tmp_path):
    """Save a small Gemma 2 of other settings, with the weights of the first."""

    def make(name: str, **settings: object) -> str:
        tokenizer = make_tokenizer()
        config = Gemma2Config(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=8,
            max_position_embeddings=96, initializer_range=0.6,
            **({"query_pre_attn_scalar": 8} | settings),
        )  # fmt: skip
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return make


@pytest.mark.parametrize(
    "settings", [{"query_pre_attn_scalar": 64}, {"attn_logit_softcapping": 2.0}], ids=str
)
def test_the_bases_rows_are_its_own_beside_a_checkpoint_of_other_settings(gemma, settings):
    base, same, other = gemma("base"), gemma("same"), gemma("other", **settings)
    table = mlflow_scalpel.compare(
        base, [other, same], metrics=["attention/js"], texts=TEXTS, cache=False
    )
    values = own_values(base, other)
    for _, row in table[table["model_id"] == other].iterrows():
        over_texts = [text[row["layer"]][row["head"]] for text in values]
        assert row["value"] == pytest.approx(np.mean(over_texts), rel=1e-4)
    assert (table[table["model_id"] == same]["value"] == 0.0).all()


def test_rows_over_other_positions_are_not_compared(gemma):
    base, other = gemma("base"), gemma("other", layer_types=["full_attention"] * 2)
    table = mlflow_scalpel.compare(base, other, metrics=["attention/js"], texts=TEXTS, cache=False)
    assert set(table["status"]) == {"not comparable"}
    assert "layer 0 of the checkpoint attends to other positions" in table["reason"].iloc[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_attends_as_itself_whatever_ran_before(pair, dtype):
    base, checkpoint = pair
    groups = ["attention", "kl/all_tokens"]
    table = mlflow_scalpel.compare(
        base, [checkpoint, base], metrics=groups, texts=TEXTS, dtype=dtype, cache=False
    )
    of_itself = table[(table["model_id"] == base) & ~table["metric"].str.startswith("kl/floor/")]
    assert (of_itself["value"] == 0.0).all()
    other = table[(table["model_id"] == checkpoint) & (table["metric"] == "attention/js")]
    assert (other["value"] > 0.0).all()


def test_nan_is_a_row_with_its_reason(pair, tmp_path):
    odd = tmp_path / "odd"
    shutil.copytree(pair[1], odd)
    tensors = load_file(odd / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.weight"].fill_(float("nan"))
    save_file(tensors, odd / "model.safetensors")
    table = mlflow_scalpel.compare(pair[0], str(odd), metrics=["attention/js"], texts=TEXTS)
    assert set(table[table["layer"] == 0]["status"]) == {"ok"}
    assert set(table[table["layer"] == 1]["status"]) == {"not finite"}
    assert "3 of 3 problems" in table[table["layer"] == 1]["reason"].iloc[0]


def test_a_model_without_eager_attention_is_a_row_with_its_reason(pair, monkeypatch):
    from transformers.models.llama import modeling_llama

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", None)
    table = mlflow_scalpel.compare(*pair, metrics=["attention", "kl"], texts=TEXTS, cache=False)
    shift = table[table["metric"].str.startswith("attention/")]
    assert set(shift["status"]) == {"not supported"}
    assert "has no eager attention" in shift["reason"].iloc[0]
    kl = table[table["metric"] == "kl/all_tokens"]
    assert list(kl["status"]) == ["ok"]


def test_the_models_way_to_attend_is_as_before(pair):
    model = forward.ForwardModel(Path(pair[0]))
    before = model.model.config._attn_implementation
    probe = build_probe("p", TEXTS, AutoTokenizer.from_pretrained(pair[0]))
    attention.AttentionShift(model, [probe])
    assert model.model.config._attn_implementation == before


def test_positions_that_a_layer_chooses_itself_are_not_compared_where_it_chose_others(tmp_path):
    model = tiny_model("dots3_note_text")
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "other")
    items = (ProbeText(tuple(range(3, 15)), slice(0, 5)),)
    probe = Probe("p", "p", "d", (("a", "b"),), items)
    one = forward.ForwardModel(tmp_path / "base")
    shift = attention.AttentionShift(one, [probe])
    metrics = choose_metrics(["attention/js"])
    one.load_checkpoint(tmp_path / "base")
    assert {row["value"] for row in shift.rows(metrics)} == {0.0}
    one.load_checkpoint(tmp_path / "other")
    with pytest.raises(ScalpelError, match="attends to other positions"):
        list(shift.rows(metrics))
