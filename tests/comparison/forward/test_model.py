"""The model whose weights are swapped: batches, heads of every family, and what is kept."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

import mlflow_scalpel
from mlflow_scalpel.comparison.forward import model as forward
from mlflow_scalpel.comparison.forward.model import BATCH_TOKENS, ForwardModel, batches, keep
from mlflow_scalpel.comparison.forward.probes import build_probe
from tests.conftest import make_tokenizer

TEXTS = [("1+1=?", "2"), ("what is the capital", "a long answer of many letters"), ("a", "b")]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 96,
    "initializer_range": 0.6,
}
FAMILIES = {
    "gemma2": Gemma2Config(**SIZES, head_dim=16, final_logit_softcapping=5.0, sliding_window=8),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=8),
    "granite": GraniteConfig(**SIZES, logits_scaling=7.0, attention_multiplier=0.3),
    "cohere": CohereConfig(**SIZES, logit_scale=0.25),
    "cohere2": Cohere2Config(**SIZES, logit_scale=0.25, sliding_window=8),
    "phi": PhiConfig(**{**SIZES, "num_key_value_heads": 2}),  # its head has a bias
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    # Its files name each expert, and its memory holds them as one tensor.
    "qwen3_moe": Qwen3MoeConfig(
        **SIZES, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "llama": LlamaConfig(**SIZES),
}


def made(config, seed: int, directory: Path) -> Path:
    tokenizer = make_tokenizer()
    config.vocab_size = len(tokenizer)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config.bos_token_id = None
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    if model.get_output_embeddings().bias is not None:
        torch.nn.init.normal_(model.get_output_embeddings().bias)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("family", FAMILIES)
def test_families_against_their_own_logits_and_attention(family, tmp_path):
    base, checkpoint = (made(FAMILIES[family], n, tmp_path / str(n)) for n in (1, 2))
    table = mlflow_scalpel.compare(
        str(base), str(checkpoint), metrics=["kl/all_tokens", "attention"], texts=TEXTS
    )
    assert set(table["status"]) == {"ok"}
    tokenizer = AutoTokenizer.from_pretrained(base)
    first, second = (
        AutoModelForCausalLM.from_pretrained(one, attn_implementation="eager").eval()
        for one in (base, checkpoint)
    )
    kls, shifts = [], []
    for problem, solution in TEXTS:
        turns = [{"role": "user", "content": problem}, {"role": "assistant", "content": solution}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            p, q = (one(ids["input_ids"], output_attentions=True) for one in (first, second))
        log_p, log_q = (one.logits[0].double().log_softmax(-1) for one in (p, q))
        kls.append(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()))
        rows = [one.attentions[1][0, 0].double() for one in (p, q)]
        positions = torch.arange(len(rows[0]))
        looked_back = (rows[1] - rows[0]) * (positions[:, None] - positions)
        shifts.append(float(looked_back.sum(-1).mean()))
    kl = table[table["metric"] == "kl/all_tokens"]["value"].iloc[0]
    assert kl == pytest.approx(sum(kls) / 3, rel=1e-4)
    distance = table[table["metric"] == "attention/distance_change"]
    assert len(distance) == 4
    one = distance[(distance["layer"] == 1) & (distance["head"] == 0)]["value"].iloc[0]
    assert one == pytest.approx(sum(shifts) / 3, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("family", ["gemma2", "granite"])
def test_the_paper_way_follows_the_family_too(family, tmp_path):
    base, checkpoint = (made(FAMILIES[family], n, tmp_path / str(n)) for n in (1, 2))
    table = mlflow_scalpel.compare(
        str(base), str(checkpoint), metrics=["kl/all_tokens", "kl_paper_compat"], texts=TEXTS
    ).set_index("metric")
    exact, paper = (table.loc[f"{group}/all_tokens"] for group in ("kl", "kl_paper_compat"))
    assert (exact["dtype"], paper["dtype"]) == ("float32", "bfloat16")
    assert paper["value"] == pytest.approx(exact["value"], rel=0.1)
    assert paper["value"] != exact["value"]


@pytest.mark.parametrize("metric", ["kl/all_tokens", "kl_paper_compat/all_tokens"])
def test_a_head_that_is_not_known_is_a_row_with_its_reason(make_model, monkeypatch, metric):
    base, checkpoint = str(make_model(1)), str(make_model(2))
    real = ForwardModel.head

    def other(self, dtype=torch.float32):
        head = real(self, dtype)
        return forward.Head(head.weight, head.bias, scale=2.0)

    monkeypatch.setattr(ForwardModel, "head", other)
    table = mlflow_scalpel.compare(
        base, checkpoint, metrics=["weights/update_rms", metric], texts=TEXTS, cache=False
    )
    kl = table[table["metric"] == metric].iloc[0]
    assert kl["status"] == "not supported"
    assert "does not form its logits" in kl["reason"]
    assert (table[table["metric"] == "weights/update_rms"]["status"] == "ok").all()


@given(st.lists(st.integers(1, 6000), max_size=40))
def test_batches_hold_every_text_once_with_little_padding(lengths):
    found = list(batches(lengths))
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    for batch in found:
        sizes = [lengths[index] for index in batch]
        assert len(batch) == 1 or max(sizes) * len(batch) <= BATCH_TOKENS
        assert sum(sizes) >= (1 - forward.PADDING_SHARE) * max(sizes) * len(batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_wait_on_disk_where_they_are_many(dtype, monkeypatch):
    states = [torch.randn(n, 7).to(dtype) for n in (3, 1, 5)]
    assert keep(states) is states
    monkeypatch.setattr(forward, "BYTES_IN_MEMORY", 10)
    for before, after in zip(states, keep(states), strict=True):
        assert torch.equal(before, after)
        assert before.data_ptr() != after.data_ptr()
    assert keep([]) == []


def test_padding_changes_no_state(make_model):
    model = ForwardModel(make_model(1))
    tokenizer = make_tokenizer()
    items = build_probe("p", TEXTS, tokenizer).items
    together = model.hidden(items)
    for item, state in zip(items, together, strict=True):
        (alone,) = model.hidden([item])
        assert state.shape == (len(item.ids), 32)
        assert torch.allclose(state, alone, atol=1e-5)
        assert math.isfinite(float(state.sum()))
